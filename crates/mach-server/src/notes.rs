//! Notes of a request, told to the operator and to the client.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use mach_api::Notes;
use tracing::warn;

use crate::server::Shared;

/// Names the fields that were ignored.
const IGNORED_FIELDS: HeaderName = HeaderName::from_static("x-ignored-fields");
/// Bytes of that header.
const LONGEST: usize = 2048;
/// Fields that the log names before it stops.
const MOST_LOGGED: usize = 256;

/// Fields that the log has named.
#[derive(Debug, Default)]
pub(crate) struct Named(Mutex<HashSet<String>>);

impl Named {
    /// Whether the field is to be named now.
    fn is_new(&self, field: &str) -> bool {
        let mut named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        named.len() < MOST_LOGGED && named.insert(field.to_owned())
    }
}

/// The header of a response, if there is anything to tell.
#[derive(Debug)]
pub(crate) struct Told(Option<HeaderValue>);

/// Logs what was noted: a field when it is first ignored, a warning whenever there is one.
pub(crate) fn noted(shared: &Shared, notes: &Notes) -> Told {
    for field in notes.ignored().iter().filter(|field| shared.named.is_new(field)) {
        warn!(field, "requests hold a field that is not known; it is ignored (--strict-fields refuses it)");
    }
    for warning in notes.warnings() {
        warn!("{warning}");
    }
    Told(header(notes))
}

/// The names, separated by commas; characters that a header cannot hold are escaped.
fn header(notes: &Notes) -> Option<HeaderValue> {
    let mut text = String::new();
    for field in notes.ignored() {
        let escaped: String = field
            .chars()
            .flat_map(|c| {
                let plain = c.is_ascii_graphic() && c != ',';
                if plain { Ok(c) } else { Err(c.escape_unicode()) }.map_or_else(|e| e.collect(), |c| vec![c])
            })
            .collect();
        if text.len() + escaped.len() + 2 > LONGEST {
            break;
        }
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&escaped);
    }
    if text.is_empty() { None } else { HeaderValue::from_str(&text).ok() }
}

impl Told {
    /// Puts the header into the response's head.
    pub(crate) fn tell(self, mut response: Response) -> Response {
        if let Some(value) = self.0 {
            response.headers_mut().insert(IGNORED_FIELDS, value);
        }
        response
    }
}
