//! Requests to sinks over HTTP, and what their answers mean where a sink says nothing else.

use std::path::Path;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, StatusCode};

use crate::sink::{Outcome, Verdict};

/// A request, complete.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// Upper case.
    pub method: &'static str,
    /// Where.
    pub url: String,
    /// Names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// What.
    pub body: Vec<u8>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// `Retry-After` in milliseconds, when it is a number of seconds.
    pub after_ms: Option<u64>,
    /// The first bytes of its body.
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Request {
    /// Headers and addresses may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} with {} bytes", self.method, self.body.len())
    }
}

impl Request {
    /// A POST of JSON.
    pub fn json(url: &str, body: &serde_json::Value) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self { method: "POST", url: url.to_owned(), headers, body: body.to_string().into_bytes() }
    }

    /// The same with a header more.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl Answer {
    /// A failed attempt's words.
    pub fn why(&self) -> String {
        let said = crate::alert::cut(String::from_utf8_lossy(&self.body).trim(), SAID_BYTES_MAX);
        format!("the sink answered {}{}{said}", self.status, if said.is_empty() { "" } else { ": " })
    }

    /// Its body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or(serde_json::Value::Null)
    }

    /// 2xx is done; 408, 425, 429 and 5xx are tried again, with `Retry-After`; 401 and 403 too, because people repair keys; the rest is refused.
    pub fn verdict(&self) -> Verdict {
        Verdict::Done(match self.status {
            200..=299 => Outcome::Delivered,
            401 | 403 | 408 | 425 | 429 | 500..=599 => Outcome::Retry { why: self.why(), after_ms: self.after_ms },
            _ => Outcome::Refused { why: self.why() },
        })
    }
}

/// Speaks HTTP for one sink.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: Client,
}

impl Http {
    pub(crate) fn new(ca: Option<&Path>, time_ms_max: u64) -> Result<Self, String> {
        let client = Client::builder()
            .use_preconfigured_tls(crate::tls::client(ca)?)
            .timeout(Duration::from_millis(time_ms_max))
            // An address that leads elsewhere is a mistake to be seen; a secret must not follow it.
            .redirect(reqwest::redirect::Policy::none())
            .pool_idle_timeout(IDLE_MAX)
            .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { client: client.map_err(|why| why.to_string())? })
    }

    /// Sends a request; the error is for people and names no secret.
    pub(crate) async fn send(&self, request: Request) -> Result<Answer, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            let mut value = HeaderValue::from_str(value).map_err(|_| format!("header {name} holds what no header may"))?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static(name), value);
        }
        let method = Method::from_bytes(request.method.as_bytes()).map_err(|why| why.to_string())?;
        let sent = self.client.request(method, &request.url).headers(headers).body(request.body).send();
        let mut response = sent.await.map_err(told)?;
        let (status, mut body) = (response.status(), Vec::new());
        let after_ms = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
        while body.len() < ANSWER_BYTES_MAX {
            let Some(piece) = response.chunk().await.map_err(told)? else { break };
            body.extend_from_slice(&piece);
        }
        body.truncate(ANSWER_BYTES_MAX);
        // A redirection is the operator's to follow.
        let status = if status.is_redirection() { StatusCode::NOT_FOUND } else { status };
        Ok(Answer { status: status.as_u16(), after_ms: after_ms.map(|seconds| seconds.saturating_mul(1_000)), body })
    }
}

/// Without the address, which may be a secret.
fn told(failed: reqwest::Error) -> String {
    use std::error::Error as _;
    let failed = failed.without_url();
    let mut text = failed.to_string();
    let mut cause = failed.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// What of an answer is read: the words of a refusal, or a short list.
const ANSWER_BYTES_MAX: usize = 65_536;
/// What of it is repeated.
const SAID_BYTES_MAX: usize = 300;
/// Shorter than what load balancers grant.
const IDLE_MAX: Duration = Duration::from_secs(30);
