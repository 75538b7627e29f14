//! Filters that escape: HTML and URLs.

use std::fmt::Write as _;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use crate::template::allowance::take;
use crate::template::python::search::is_space;
use crate::template::python::{methods, text};

/// `escape`.
pub(super) fn html(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// `striptags`: no tags, no comments, white space in single spaces, entities as what they stand for.
pub(super) fn strip_tags(s: &str) -> String {
    let (mut out, mut rest) = (String::new(), s);
    while let Some(start) = rest.find('<') {
        let tag = rest.get(start..).unwrap_or_default();
        let end = match tag.strip_prefix("<!--") {
            Some(comment) => comment.find("-->").map(|at| at + 7),
            None => tag.find('>').map(|at| at + 1),
        };
        let Some(end) = end else { break };
        out.push_str(rest.get(..start).unwrap_or_default());
        rest = rest.get(start + end..).unwrap_or_default();
    }
    out.push_str(rest);
    // Of a word without a tag, this does no more than resolve entities; marks keep it from trimming what they are.
    let entities = |part: &str| {
        let text = minijinja_contrib::filters::striptags(format!("x{}x", part.replace('>', "&gt;")));
        text.get(1..text.len() - 1).unwrap_or_default().to_owned()
    };
    let resolve = |part: &str| part.split("&nbsp;").map(entities).collect::<Vec<_>>().join("\u{a0}");
    let words = out.split(is_space).filter(|word| !word.is_empty());
    words.map(|word| word.split('<').map(resolve).collect::<Vec<_>>().join("<")).collect::<Vec<_>>().join(" ")
}

fn quote(s: &str, query: bool) -> String {
    let mut out = String::with_capacity(s.len());
    for byte in s.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(byte.into()),
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            byte => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// `urlencode`: of a text, or of the pairs of a dict or a list as a query.
pub(super) fn urlencode(value: &Value) -> Result<String, Error> {
    let pair = |key: &Value, value: &Value| {
        format!("{}={}", quote(&text::str(key), true), quote(&text::str(value), true))
    };
    let mut parts = Vec::new();
    if methods::is_dict(value) {
        for (key, item) in value.as_object().and_then(|object| object.try_iter_pairs()).into_iter().flatten()
        {
            take(64 + 6 * key.as_str().map_or(0, str::len) + 6 * item.as_str().map_or(0, str::len))?;
            parts.push(pair(&key, &item));
        }
    } else if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        for item in value.try_iter()? {
            let (key, item) = (item.get_item_by_index(0)?, item.get_item_by_index(1)?);
            take(64 + 6 * key.as_str().map_or(0, str::len) + 6 * item.as_str().map_or(0, str::len))?;
            parts.push(pair(&key, &item));
        }
    } else {
        let text = text::str(value);
        take(6 * text.len())?;
        return Ok(quote(&text, false));
    }
    Ok(parts.join("&"))
}
