//! The console: the page at `/` and its files, which stand beside this one in `console/` and inside the binary.
//!
//! The files are what a browser runs: plain HTML, CSS and ES modules, no build step, nothing from elsewhere. They ask the same paths as anybody
//! (`/v1/sql`, `/v1/subscribe`, `/healthz`). A browser keeps a file and asks whether it is still the same (`ETag`).

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

struct File {
    path: &'static str,
    content_type: &'static str,
    content: &'static str,
}

/// Routes of the files.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, file| {
        let tag = tag(file.content);
        router.route(file.path, get(move |headers: HeaderMap| std::future::ready(answer(file, &tag, &headers))))
    })
}

fn answer(file: &File, tag: &str, headers: &HeaderMap) -> Response {
    let named = [(header::ETAG, tag.to_owned()), (header::CACHE_CONTROL, "no-cache".to_owned())];
    let known = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    if known.is_some_and(|tags| tags.split(',').any(|known| known.trim().trim_start_matches("W/") == tag)) {
        return (StatusCode::NOT_MODIFIED, named).into_response();
    }
    (named, [(header::CONTENT_TYPE, file.content_type)], file.content).into_response()
}

fn tag(content: &str) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Everything that the page loads.
const FILES: &[File] = &[
    File { path: "/", content_type: HTML, content: include_str!("console/index.html") },
    File { path: "/console/style.css", content_type: CSS, content: include_str!("console/style.css") },
    File { path: "/console/icon.svg", content_type: SVG, content: include_str!("console/icon.svg") },
    File { path: "/console/app.js", content_type: SCRIPT, content: include_str!("console/app.js") },
    File { path: "/console/ask.js", content_type: SCRIPT, content: include_str!("console/ask.js") },
    File { path: "/console/page.js", content_type: SCRIPT, content: include_str!("console/page.js") },
    File { path: "/console/map.js", content_type: SCRIPT, content: include_str!("console/map.js") },
    File { path: "/console/panels.js", content_type: SCRIPT, content: include_str!("console/panels.js") },
    File { path: "/console/editor.js", content_type: SCRIPT, content: include_str!("console/editor.js") },
];
