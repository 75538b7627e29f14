//! Paths as clients build them out of a base URL that has `/v1` at its end, or has not, or ends with a slash.

use axum::http::uri::PathAndQuery;
use axum::http::{Request, Uri};

/// Routes below `/v1`, by how they begin.
const BELOW_V1: [&str; 8] =
    ["chat/completions", "completions", "responses", "messages", "models", "capabilities", "stats", "cache"];

/// Rewrites the path of a request to that of a route: doubled slashes and a slash at the end go, `/v1` comes where it is
/// missing and stands once where it is doubled. Other paths stay.
pub(crate) fn canonical<B>(mut request: Request<B>) -> Request<B> {
    if let Some(path) = rewritten(request.uri().path())
        && let Some(uri) = with_path(request.uri(), &path)
    {
        *request.uri_mut() = uri;
    }
    request
}

fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(text).ok()?);
    Uri::from_parts(parts).ok()
}

/// The path of the route that is meant; `None` if the path is fine as it is.
fn rewritten(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return None;
    }
    let mut words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    while let ["v1", "v1", ..] = words.as_slice() {
        words.remove(0);
    }
    if is_below_v1(&words) {
        words.insert(0, "v1");
    }
    let canonical = format!("/{}", words.join("/"));
    (canonical != path).then_some(canonical)
}

fn is_below_v1(words: &[&str]) -> bool {
    BELOW_V1.iter().any(|route| {
        let route: Vec<&str> = route.split('/').collect();
        words.starts_with(&route)
    })
}

/// The route that a path without one may mean: what follows some other prefix.
pub(crate) fn meant(path: &str) -> Option<String> {
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    let at = (1..words.len()).find(|&at| is_below_v1(&words[at..]))?;
    Some(format!("/v1/{}", words[at..].join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(given: &str) -> String {
        let request = Request::builder().uri(given).body(()).unwrap();
        canonical(request).uri().to_string()
    }

    #[test]
    fn base_urls_of_all_kinds_lead_to_the_route() {
        for given in [
            "/v1/chat/completions",
            "/chat/completions",
            "//v1/chat/completions",
            "/v1//chat/completions",
            "/v1/v1/chat/completions",
            "/v1/chat/completions/",
            "//chat//completions//",
        ] {
            assert_eq!(path(given), "/v1/chat/completions", "{given}");
        }
        assert_eq!(path("/models/org/name?x=//1"), "/v1/models/org/name?x=//1");
        assert_eq!(path("http://h:1//health"), "http://h:1/health");
        for given in ["/", "/health", "/tokenize", "/v1/models/a%2Fb", "/chat", "*"] {
            assert_eq!(path(given), given);
        }
    }

    #[test]
    fn a_strange_prefix_gets_a_hint() {
        assert_eq!(meant("/api/v1/chat/completions").as_deref(), Some("/v1/chat/completions"));
        assert_eq!(meant("/openai/models/x").as_deref(), Some("/v1/models/x"));
        assert_eq!(meant("/v1/embeddings"), None);
    }
}
