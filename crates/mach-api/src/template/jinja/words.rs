//! Filters that look at the words or the lines of a text.

use minijinja::{Error, Value};

use crate::template::allowance::take;
use crate::template::python::args::Args;
use crate::template::python::search::{is_break, is_space, lines};
use crate::template::python::text;

/// Deepest indentation.
const MAX_INDENT: i64 = 1_000;

/// `title`: words begin after white space, hyphens and opening brackets.
pub(super) fn title(s: &str) -> String {
    let (mut out, mut word) = (String::new(), String::new());
    let flush = |word: &mut String, out: &mut String| {
        let mut chars = word.chars();
        if let Some(first) = chars.next() {
            out.extend(first.to_uppercase());
            out.push_str(&chars.as_str().to_lowercase());
        }
        word.clear();
    };
    for c in s.chars() {
        if is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<') {
            flush(&mut word, &mut out);
            out.push(c);
        } else {
            word.push(c);
        }
    }
    flush(&mut word, &mut out);
    out
}

/// `wordcount`: runs of letters, digits and underscores.
pub(super) fn count(s: &str) -> usize {
    s.split(|c: char| !(c == '_' || c.is_alphanumeric())).filter(|word| !word.is_empty()).count()
}

/// `indent(width, first, blank)`.
pub(super) fn indent(s: &str, args: &mut Args<'_>) -> Result<String, Error> {
    let indention = match args.optional("width") {
        None => " ".repeat(4),
        Some(width) => match (width.as_str(), width.as_i64()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(n)) => " ".repeat(usize::try_from(n.min(MAX_INDENT)).unwrap_or(0)),
            (None, None) => return Err(args.error("width must be a number or a string")),
        },
    };
    let lines_in = s.matches(is_break).count() + 2;
    take(s.len().saturating_add(lines_in.saturating_mul(2 * indention.len() + 64)))?;
    let (first, blank) = (args.bool("first", false), args.bool("blank", false));
    let mut out = if first { indention.clone() } else { String::new() };
    for (i, line) in lines(&format!("{s}\n"), false).iter().enumerate() {
        if i > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out.push_str(&indention);
            }
        }
        out.push_str(line);
    }
    Ok(out)
}

/// `truncate(length, killwords, end, leeway)`.
pub(super) fn truncate(s: &str, args: &mut Args<'_>) -> Result<String, Error> {
    let length = usize::try_from(args.optional_integer("length")?.unwrap_or(255)).unwrap_or(0);
    let kill_words = args.bool("killwords", false);
    let end = args.optional("end").map_or_else(|| "...".to_owned(), |v| text::str(&v));
    let leeway = usize::try_from(args.optional_integer("leeway")?.unwrap_or(5)).unwrap_or(0);
    let ending = end.chars().count();
    if length < ending {
        return Err(args.error(format!("expected length >= {ending}, got {length}")));
    }
    if s.chars().count() <= length.saturating_add(leeway) {
        return Ok(s.to_owned());
    }
    let kept: String = s.chars().take(length - ending).collect();
    let kept = if kill_words {
        kept.as_str()
    } else {
        kept.rsplit_once(' ').map_or(kept.as_str(), |(kept, _)| kept)
    };
    Ok(format!("{kept}{end}"))
}

/// `filesizeformat(binary)`.
pub(super) fn file_size(s: &str, args: &mut Args<'_>) -> Result<String, Error> {
    let binary = args.optional("binary").is_some_and(|v: Value| v.is_true());
    let bytes: f64 = s.trim().parse().map_err(|_| args.error("the value is not a number"))?;
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok("1 Byte".into());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", bytes.trunc()));
    }
    let units = if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    };
    let mut unit = base * base;
    let mut name = "";
    for candidate in units {
        name = candidate;
        if bytes < unit {
            break;
        }
        if candidate != "YB" && candidate != "YiB" {
            unit *= base;
        }
    }
    Ok(format!("{:.1} {name}", base * bytes / unit))
}
