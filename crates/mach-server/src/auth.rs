//! API keys.

use axum::http::{HeaderMap, header};
use mach_api::{ApiError, ErrorKind};

/// Lets a request pass if no key is set, or if it brings the key as `Authorization: Bearer KEY`.
pub(crate) fn check(key: Option<&str>, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(key) = key else { return Ok(()) };
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, key)| key.trim_ascii());
    match given {
        Some(given) if equal(given, key.as_bytes()) => Ok(()),
        Some(_) => Err(ApiError::new(ErrorKind::Unauthorized, "the API key is wrong")),
        None => Err(ApiError::new(
            ErrorKind::Unauthorized,
            "an API key is required: send it as `Authorization: Bearer KEY`",
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
        assert!(check(Some("secret"), &HeaderMap::new()).is_err());
        assert!(check(None, &HeaderMap::new()).is_ok());
    }
}
