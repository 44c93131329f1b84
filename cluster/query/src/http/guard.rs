//! Who may ask over HTTP, and what every answer says to a browser.
//!
//! Promise: only loopback is let in, where there are roles with the password of one, and of browsers only pages that this server gave. A page of another site can neither send a question nor read
//! an answer, whatever name it makes point here: a request that names another origin, another site or a public host name is refused.

use std::net::{IpAddr, SocketAddr};

use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{Shared, told};
use crate::access::Role;

/// Lets a request through or refuses it; either way the answer says what a browser may do with it.
pub(super) async fn guard(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let why = match peer.ip().to_canonical().is_loopback() {
        true => foreign(request.method(), request.uri().path(), request.headers()),
        false => Some("passwords would come in the clear here, so only loopback is let in".to_owned()),
    };
    let mut response = match why {
        Some(why) => told(StatusCode::FORBIDDEN, &json!({ "error": why })),
        None if WITHOUT_LOGIN.contains(&request.uri().path()) => next.run(request).await,
        None => match login(&shared, request.headers()).await {
            Some(role) => {
                request.extensions_mut().insert(shared.engine.asked_by(&role));
                next.run(request).await
            }
            None => {
                let body = json!({ "error": "log in as a role of [[sql.roles]]", "sqlstate": crate::error::WRONG_PASSWORD });
                let mut response = told(StatusCode::UNAUTHORIZED, &body);
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
                response
            }
        },
    };
    for (name, value) in ALWAYS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// As whom a request is made: by the password in it, or as everybody where there are no roles.
async fn login(shared: &Arc<Shared>, headers: &HeaderMap) -> Option<Arc<Role>> {
    if let Some(role) = shared.access.open() {
        return Some(Arc::clone(role));
    }
    let (user, password) = named_in(headers)?;
    let access = Arc::clone(&shared.access);
    // Some milliseconds of hashing are no work for a thread that others wait for.
    tokio::task::spawn_blocking(move || access.login(&user, &password)).await.ok()?
}

/// The user and password of `Authorization: Basic` (RFC 7617).
fn named_in(headers: &HeaderMap) -> Option<(String, String)> {
    let (scheme, encoded) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

/// Why a request comes from a page that is not ours; nothing when it does not, or comes from no page at all.
fn foreign(method: &Method, path: &str, headers: &HeaderMap) -> Option<String> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST);
    if let Some(host) = host.filter(|host| !is_local_name(host)) {
        let cure = "ask by IP address, as localhost, or by a name without a dot";
        return Some(format!("the host name {host:?} is not taken, because any site could make it point here: {cure}"));
    }
    if let Some(origin) = text(header::ORIGIN)
        && origin.split_once("://").map(|(_, named)| named) != host
    {
        return Some(format!("a page of {origin:?} may not ask here: only the console of this server may"));
    }
    match text(HeaderName::from_static("sec-fetch-site")) {
        None | Some("same-origin" | "none") => None,
        // Somebody follows a link to the console.
        Some(_)
            if method == Method::GET && path == "/" && text(HeaderName::from_static("sec-fetch-mode")) == Some("navigate") =>
        {
            None
        }
        Some(site) => Some(format!("a {site} request of a browser may not ask here: only the console of this server may")),
    }
}

/// What a browser asks its user for.
const CHALLENGE: &str = "Basic realm=\"weir\", charset=\"UTF-8\"";
/// What a supervisor and a collector of metrics on the same host ask for: figures of the node, no rows.
const WITHOUT_LOGIN: [&str; 2] = ["/healthz", "/metrics"];

/// A name that no public DNS can make point here.
fn is_local_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.parse::<IpAddr>().is_ok() || (!name.is_empty() && !name.contains('.'))
}

/// Scripts, styles and connections of this server alone; no text becomes markup, no other page may frame or read this.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const ALWAYS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_others_are_told_from_ours() {
        for (path, named, taken) in [
            ("/v1/sql", "host: 127.0.0.1:7480", true),
            ("/v1/sql", "host: [::1]:7480", true),
            ("/metrics", "host: db1:7480", true),
            ("/", "host: localhost", true),
            ("/v1/sql", "", true),
            ("/v1/sql", "host: evil.example:7480", false),
            ("/v1/sql", "host: :7480", false),
            ("/v1/sql", "host: localhost:7480\norigin: http://localhost:7480", true),
            ("/v1/sql", "host: localhost:7480\norigin: http://localhost:8000", false),
            ("/v1/sql", "host: localhost:7480\norigin: null", false),
            ("/v1/sql", "origin: http://evil.example", false),
            ("/v1/sql", "host: localhost\nsec-fetch-site: same-origin", true),
            ("/v1/sql", "host: localhost\nsec-fetch-site: same-site", false),
            ("/v1/query", "host: localhost\nsec-fetch-site: cross-site\nsec-fetch-mode: navigate", false),
            ("/", "host: localhost\nsec-fetch-site: cross-site\nsec-fetch-mode: navigate", true),
            ("/", "host: localhost\nsec-fetch-site: cross-site\nsec-fetch-mode: no-cors", false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in named.lines().filter_map(|line| line.split_once(": ")) {
                headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            }
            let why = foreign(&Method::GET, path, &headers);
            assert_eq!(why.is_none(), taken, "{path} {named}: {why:?}");
        }
    }
}
