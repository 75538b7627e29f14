//! Answers to what hyper refuses before a route sees it: heads that are too large, or no HTTP.

use std::time::Duration;

use mach_api::{ApiError, ErrorKind};

/// Bytes of such an answer; hyper's are shorter.
const LONGEST: usize = 512;

/// hyper's refusal with a body in the shape of all errors; `None` if the bytes are none. Whatever this server answers itself carries
/// a request id, which hyper's answers do not.
pub(crate) fn with_body(written: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(written.get(..written.len().min(LONGEST + 1))?).ok()?;
    let line = text.strip_prefix("HTTP/1.1 4")?.split("\r\n").next()?;
    let lower = text.to_ascii_lowercase();
    let bare = text.len() <= LONGEST
        && text.ends_with("\r\n\r\n")
        && lower.contains("\r\ncontent-length: 0\r\n")
        && !lower.contains("\r\nx-request-id:");
    if !bare {
        return None;
    }
    Some(match line.get(..2)? {
        "31" => answer(&too_large("the head of the request is too large, or has more than 100 headers")),
        // A status without an error of its own.
        "14" => with_status("414 URI Too Long", &too_large("the address of the request is too long")),
        _ => answer(&ApiError::new(ErrorKind::InvalidRequest, "the request cannot be read as HTTP/1.1")),
    })
}

/// The answer to a request whose head did not arrive in time.
pub(crate) fn late(limit: Duration) -> Vec<u8> {
    let message = format!("the head of the request did not arrive within {} s", limit.as_secs_f64());
    answer(&ApiError::new(ErrorKind::ArrivalTimeout, message))
}

fn too_large(message: &str) -> ApiError {
    ApiError::new(ErrorKind::HeadTooLarge, message)
}

fn answer(error: &ApiError) -> Vec<u8> {
    let status = match error.kind.status() {
        408 => "408 Request Timeout",
        431 => "431 Request Header Fields Too Large",
        _ => "400 Bad Request",
    };
    with_status(status, error)
}

fn with_status(status: &str, error: &ApiError) -> Vec<u8> {
    let body = serde_json::to_string(&error.body()).unwrap_or_default();
    let id = uuid::Uuid::new_v4().simple();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\
         x-request-id: {id}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_empty_refusals_without_an_id_are_replaced() {
        let own =
            |status: &str, more: &str| format!("HTTP/1.1 {status}\r\n{more}date: x\r\n\r\n").into_bytes();
        let empty = "content-length: 0\r\nconnection: close\r\n";
        for (status, code) in
            [("400 Bad Request", ""), ("431 X", "request_too_large"), ("414 X", "request_too_large")]
        {
            let answer = String::from_utf8(with_body(&own(status, empty)).unwrap()).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {}", &status[..3])), "{head}");
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["error"]["code"].as_str().unwrap_or_default(), code);
            assert_eq!(body["error"]["type"], "invalid_request_error");
        }
        let with_id = format!("{empty}x-request-id: 1\r\n");
        for (status, more) in [
            ("200 OK", empty),
            ("503 Service Unavailable", empty),
            ("400 Bad Request", "content-length: 5\r\n"),
            ("400 Bad Request", &with_id),
        ] {
            assert_eq!(with_body(&own(status, more)), None, "{status} {more}");
        }
        assert_eq!(with_body(b""), None);
        assert_eq!(with_body("HTTP/1.1 4é".as_bytes()), None);
    }
}
