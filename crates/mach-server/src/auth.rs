//! API keys, and whom requests come from.

use axum::http::{HeaderMap, header};
use mach_api::{ApiError, ErrorKind};

/// The key that a request brings: `Authorization: Bearer KEY`, or `x-api-key: KEY`. An empty one is none.
fn key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.as_bytes().split_at_checked(6))
        .filter(|(scheme, rest)| {
            scheme.eq_ignore_ascii_case(b"bearer") && rest.first().is_some_and(u8::is_ascii_whitespace)
        })
        .map(|(_, key)| key.trim_ascii())
        .filter(|key| !key.is_empty());
    let plain = || headers.get("x-api-key").map(|v| v.as_bytes().trim_ascii()).filter(|key| !key.is_empty());
    bearer.or_else(plain)
}

/// Whom a request comes from: the key that it brings, in whichever header; those without one are one caller. Kept as a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller([u8; 32]);

impl Caller {
    /// Whoever brings this key.
    pub fn with_key(key: Option<&[u8]>) -> Self {
        Self(blake3::derive_key("mach: caller by API key", key.unwrap_or_default()))
    }

    /// Whoever has this hash.
    pub(crate) fn from_hash(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The hash of the key.
    pub(crate) fn hash(self) -> [u8; 32] {
        self.0
    }

    /// The caller of a request.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self::with_key(key(headers))
    }

    /// A salt of the prefix cache that no other caller has, whatever salt it asks for.
    pub fn salt(&self, asked: Option<&str>) -> String {
        let own = blake3::Hash::from_bytes(blake3::derive_key("mach: cache salt of a caller", &self.0));
        match asked {
            // The first part is of one length, so that no two pairs are written alike.
            Some(asked) => format!("{}:{asked}", own.to_hex()),
            None => own.to_hex().to_string(),
        }
    }
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
    fn a_caller_is_a_key_however_it_is_written() {
        let caller = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            Caller::of(&headers)
        };
        let one = Caller::with_key(Some(b"k"));
        for (name, value) in [
            ("authorization", "Bearer k"),
            ("authorization", "bearer  k"),
            ("authorization", "BEARER\tk "),
            ("x-api-key", "k"),
            ("x-api-key", " k"),
        ] {
            assert_eq!(caller(name, value), one, "{name}: {value}");
        }
        let nobody = Caller::of(&HeaderMap::new());
        for (name, value) in [("authorization", "Bearer "), ("x-api-key", ""), ("authorization", "Basic k")] {
            assert_eq!(caller(name, value), nobody, "{name}: {value}");
        }
        let mut both = HeaderMap::new();
        both.insert(header::AUTHORIZATION, "Bearer ".parse().unwrap());
        both.insert("x-api-key", "k".parse().unwrap());
        assert_eq!(Caller::of(&both), one);
        assert_ne!(one, nobody);
        let salts = [
            one.salt(None),
            one.salt(Some("a")),
            one.salt(Some("b")),
            nobody.salt(None),
            nobody.salt(Some("a")),
        ];
        assert!((1..salts.len()).all(|i| !salts[..i].contains(&salts[i])), "{salts:?}");
        assert!(!salts.concat().contains('k'));
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
