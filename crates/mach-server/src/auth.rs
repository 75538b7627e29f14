//! API keys.

use axum::http::{HeaderMap, header};
use mach_api::{ApiError, ErrorKind};

/// The key that a request brings: `Authorization: Bearer KEY`, or `x-api-key: KEY`.
pub(crate) fn key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, key)| key.trim_ascii());
    bearer.or_else(|| headers.get("x-api-key").map(|v| v.as_bytes().trim_ascii()))
}

/// Lets a request pass if no key is set, or if it brings the key.
pub(crate) fn check(wanted: Option<&str>, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(wanted) = wanted else { return Ok(()) };
    match key(headers) {
        Some(given) if equal(given, wanted.as_bytes()) => Ok(()),
        Some(_) => Err(ApiError::new(ErrorKind::Unauthorized, "the API key is wrong")),
        None => Err(ApiError::new(
            ErrorKind::Unauthorized,
            "an API key is required: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
        )),
    }
}

/// Compares in a time that does not tell where the first difference is.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y));
    a.len() == b.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(value: &str) -> Result<(), ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        check(Some("secret"), &headers)
    }

    #[test]
    fn only_the_key_passes() {
        assert!(with("Bearer secret").is_ok());
        assert!(with("bearer  secret ").is_ok());
        for bad in ["Bearer secre", "Bearer secrets", "Bearer ", "Basic secret", "secret", ""] {
            assert_eq!(with(bad).unwrap_err().kind, ErrorKind::Unauthorized, "{bad}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", "secret".parse().unwrap());
        assert!(check(Some("secret"), &headers).is_ok());
        assert!(check(Some("other"), &headers).is_err());
        assert!(check(Some("secret"), &HeaderMap::new()).is_err());
        assert!(check(None, &HeaderMap::new()).is_ok());
    }
}
