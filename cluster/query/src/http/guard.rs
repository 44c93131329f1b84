//! Who may ask over HTTP, and what every answer says to a browser.
//!
//! Promise: only loopback is let in, and of browsers only pages that this server gave. A page of another site can neither send a question nor read
//! an answer, whatever name it makes point here: a request that names another origin, another site or a public host name is refused.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;

use super::told;

/// Lets a request through or refuses it; either way the answer says what a browser may do with it.
pub(super) async fn guard(ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    let why = match peer.ip().to_canonical().is_loopback() {
        true => foreign(request.method(), request.uri().path(), request.headers()),
        false => Some("there are no passwords yet, so only loopback is let in".to_owned()),
    };
    let mut response = match why {
        None => next.run(request).await,
        Some(why) => told(StatusCode::FORBIDDEN, &json!({ "error": why })),
    };
    for (name, value) in ALWAYS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
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
