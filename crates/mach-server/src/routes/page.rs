//! `GET /`: a page for people who open the server in a browser, and for programs the word that a server is here. What the
//! page loads lies below `/page`. None of it needs a key; the data that it asks for do.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mach_api::{ApiError, ErrorKind};
use serde_json::json;

use crate::failure::Failure;

/// The page loads and asks nothing but this server, and nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const INDEX: &str = include_str!("../page/index.html");

/// Name, type and contents of the other files.
const FILES: [(&str, &str, &str); 9] = [
    ("style.css", "text/css; charset=utf-8", include_str!("../page/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("../page/icon.svg")),
    ("app.js", SCRIPT, include_str!("../page/app.js")),
    ("api.js", SCRIPT, include_str!("../page/api.js")),
    ("dom.js", SCRIPT, include_str!("../page/dom.js")),
    ("panels.js", SCRIPT, include_str!("../page/panels.js")),
    ("bank.js", SCRIPT, include_str!("../page/bank.js")),
    ("chat.js", SCRIPT, include_str!("../page/chat.js")),
    ("tokens.js", SCRIPT, include_str!("../page/tokens.js")),
];

/// The page for whoever prefers HTML, JSON for all others. Some clients ask for the head of it before anything else.
pub(crate) async fn root(headers: HeaderMap) -> Response {
    let mut response = if prefers_html(&headers) {
        file(&headers, HTML, INDEX)
    } else {
        Json(json!({"name": "mach", "version": env!("CARGO_PKG_VERSION"), "routes": "/openapi.json"}))
            .into_response()
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

/// `GET /page/{file}`.
pub(crate) async fn page_file(
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    // A name that is no text is none of ours either.
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let found = FILES.iter().find(|(known, ..)| *known == name);
    let none = || ApiError::new(ErrorKind::NotFound, "the page has no such file");
    let (_, kind, text) = found.ok_or_else(none)?;
    Ok(file(&headers, kind, text))
}

fn file(asked: &HeaderMap, kind: &'static str, text: &'static str) -> Response {
    let tag = format!("\"{}\"", &blake3::hash(text.as_bytes()).to_hex()[..32]);
    let known = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
    let known = known.flat_map(|tags| tags.split(',')).any(|one| one.trim().trim_start_matches("W/") == tag);
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of mach may be here tomorrow.
        (header::CACHE_CONTROL, "no-cache"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let tag = [(header::ETAG, tag)];
    if known {
        (StatusCode::NOT_MODIFIED, headers, tag).into_response()
    } else {
        (headers, tag, text).into_response()
    }
}

/// Whether `Accept` names HTML, and nothing of JSON that it would rather have.
fn prefers_html(headers: &HeaderMap) -> bool {
    let (mut html, mut json) = (0.0_f32, 0.0_f32);
    for accept in headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()) {
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let weight = weight.map_or(1.0, |q| q.trim().parse().unwrap_or(0.0));
            match kind.as_str() {
                "text/html" => html = html.max(weight),
                "application/json" => json = json.max(weight),
                _ => {}
            }
        }
    }
    html > 0.0 && html >= json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_html_says_so() {
        let prefers = |accept: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for one in accept {
                headers.append(header::ACCEPT, HeaderValue::from_static(one));
            }
            prefers_html(&headers)
        };
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for html in
            [browser, "TEXT/HTML", "application/json;q=0.5, text/html;q=0.6", "text/html; level=1; q=0.1"]
        {
            assert!(prefers(&[html]), "{html}");
        }
        assert!(prefers(&["application/json;q=0.1", "text/html"]));
        for other in [
            "*/*",
            "text/*",
            "application/json",
            "application/json, text/plain, */*",
            "application/json, text/html;q=0.9",
            "text/html;q=0",
            "text/html;q=x",
            "",
        ] {
            assert!(!prefers(&[other]), "{other}");
        }
        assert!(!prefers(&[]));
    }
}
