//! Methods of `str`.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::args::Args;
use super::search::{find, is_break, is_space, lines, part, rsplit_space, split_space};
use super::{braces, text};
use crate::template::allowance::take;

/// Longest text that padding may make.
const MAX_WIDTH: i64 = 1_000_000;
/// Most bytes that a method may make of short texts.
const MAX_BYTES: usize = 64 << 20;

/// Calls a method, or says that there is none of this name.
pub(super) fn call(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    if method == "format" {
        return braces::braces(s, args).map(Value::from);
    }
    let mut args = Args::new(method, args);
    // What most of them make is as long as the text, or close to it.
    let makes = match method {
        "startswith" | "endswith" | "find" | "rfind" | "index" | "rindex" | "count" => 0,
        "upper" | "lower" | "casefold" | "capitalize" | "title" | "swapcase" => 3,
        _ => 1,
    };
    take(makes * s.len())?;
    let value = match method {
        "strip" | "lstrip" | "rstrip" => strip(s, method, args.optional_string("chars")?.as_deref()),
        "split" | "rsplit" => split(s, &mut args, method == "rsplit")?,
        "splitlines" => {
            take(OF_PART * (s.matches(is_break).count() + 1))?;
            strings(lines(s, args.bool("keepends", false)))?
        }
        "partition" | "rpartition" => partition(s, &args.string("sep")?, method == "rpartition", &args)?,
        "removeprefix" => s.strip_prefix(args.string("prefix")?.as_str()).unwrap_or(s).into(),
        "removesuffix" => s.strip_suffix(args.string("suffix")?.as_str()).unwrap_or(s).into(),
        "startswith" | "endswith" => affix(s, &mut args, method == "endswith")?.into(),
        "find" | "rfind" | "index" | "rindex" => {
            let what = args.string("sub")?;
            let bounds = (args.optional_integer("start")?, args.optional_integer("end")?);
            match find(s, &what, bounds, method.starts_with('r')) {
                Some(at) => at.into(),
                None if method.ends_with("index") => return Err(args.error("substring not found")),
                None => (-1).into(),
            }
        }
        "count" => {
            let what = args.string("sub")?;
            let bounds = (args.optional_integer("start")?, args.optional_integer("end")?);
            part(s, bounds.0, bounds.1).map_or(0, |(_, s)| s.matches(what.as_str()).count()).into()
        }
        "replace" => {
            let (old, new) = (args.string("old")?, args.string("new")?);
            let count = args.optional_integer("count")?;
            replace(s, &old, &new, count)?.into()
        }
        "join" => {
            let items = args.required("iterable")?;
            let mut out = String::new();
            for (i, item) in items.try_iter()?.enumerate() {
                let Some(text) = item.as_str() else {
                    return Err(args.error(format!("expected strings, found {}", item.kind())));
                };
                bounded(out.len(), s.len() + text.len())?;
                take(1 + 2 * (s.len() + text.len()))?;
                if i > 0 {
                    out.push_str(s);
                }
                out.push_str(text);
            }
            out.into()
        }
        "ljust" | "rjust" | "center" | "zfill" => pad(s, method, &mut args)?.into(),
        "expandtabs" => {
            let size = args.optional_integer("tabsize")?.unwrap_or(8).clamp(0, 64);
            take(s.matches('\t').count() * 2 * usize::try_from(size).unwrap_or(0))?;
            expand_tabs(s, size).into()
        }
        "upper" => s.to_uppercase().into(),
        "lower" => s.to_lowercase().into(),
        "casefold" => s.to_lowercase().replace('ß', "ss").into(),
        "capitalize" => capitalize(s).into(),
        "title" => title(s).into(),
        "swapcase" => s
            .chars()
            .flat_map(|c| {
                if c.is_uppercase() {
                    c.to_lowercase().collect::<Vec<_>>()
                } else {
                    c.to_uppercase().collect()
                }
            })
            .collect::<String>()
            .into(),
        _ => match predicate(s, method) {
            Some(answer) => answer.into(),
            None => return Err(Error::from(ErrorKind::UnknownMethod)),
        },
    };
    args.finish()?;
    Ok(value)
}

/// `str.replace`; a negative count, or none, replaces all.
pub(in crate::template) fn replace(
    s: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
) -> Result<String, Error> {
    let most = count.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let found = s.matches(old).take(most).count();
    let more = found.saturating_mul(new.len());
    bounded(s.len(), more)?;
    take(s.len() + more)?;
    Ok(if most == usize::MAX { s.replace(old, new) } else { s.replacen(old, new, most) })
}

fn bounded(len: usize, more: usize) -> Result<(), Error> {
    if len.saturating_add(more) > MAX_BYTES {
        return Err(Error::new(ErrorKind::InvalidOperation, "the text would be too long"));
    }
    Ok(())
}

/// Bytes of a short text in a list.
const OF_TEXT: usize = 96;

fn strings(list: Vec<String>) -> Result<Value, Error> {
    take(list.len() * OF_TEXT)?;
    Ok(list.into_iter().map(Value::from).collect())
}

/// Bytes of a part of a text in a list that doubles.
const OF_PART: usize = 64;

fn predicate(s: &str, method: &str) -> Option<bool> {
    let all = |test: fn(char) -> bool| !s.is_empty() && s.chars().all(test);
    Some(match method {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => s.is_ascii(),
        "isnumeric" => all(char::is_numeric),
        "isdigit" => {
            all(|c| is_decimal(c) || matches!(c, '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{2070}'..='\u{2089}'))
        }
        "isdecimal" => all(is_decimal),
        "isidentifier" => {
            s.starts_with(|c: char| c == '_' || c.is_alphabetic())
                && s.chars().all(|c| c == '_' || c.is_alphanumeric())
        }
        "islower" => s.chars().any(char::is_lowercase) && !s.chars().any(char::is_uppercase),
        "isupper" => s.chars().any(char::is_uppercase) && !s.chars().any(char::is_lowercase),
        "isprintable" => s.chars().all(text::is_printable),
        "isspace" => all(is_space),
        "istitle" => s.chars().any(char::is_alphabetic) && title(s) == s,
        _ => return None,
    })
}

/// Digits of any script, told by what is numeric and no letter, fraction or number of its own.
fn is_decimal(c: char) -> bool {
    c.is_ascii_digit()
        || (c.is_numeric()
            && !matches!(c, '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{bc}'..='\u{be}' | '\u{2070}'..='\u{218f}'
                | '\u{2460}'..='\u{24ff}' | '\u{2776}'..='\u{2793}' | '\u{3007}' | '\u{3021}'..='\u{33ff}'
                | '\u{4e00}'..='\u{9fff}'))
}

fn strip(s: &str, method: &str, chars: Option<&str>) -> Value {
    let gone = |c: char| chars.map_or(is_space(c), |chars| chars.contains(c));
    let s = if method == "rstrip" { s } else { s.trim_start_matches(gone) };
    if method == "lstrip" { s } else { s.trim_end_matches(gone) }.into()
}

fn split(s: &str, args: &mut Args<'_>, right: bool) -> Result<Value, Error> {
    let separator = args.optional_string("sep")?;
    let most = args.optional_integer("maxsplit")?.and_then(|n| usize::try_from(n).ok());
    let Some(separator) = separator else {
        take(OF_PART * (s.matches(is_space).count() + 1))?;
        return strings(if right { rsplit_space(s, most) } else { split_space(s, most) });
    };
    if separator.is_empty() {
        return Err(args.error("empty separator"));
    }
    let pieces = most.map_or(usize::MAX, |most| most.saturating_add(1));
    let parts = s.matches(separator.as_str()).take(pieces).count() + 1;
    take(parts * (OF_TEXT + OF_PART))?;
    let mut list: Vec<&str> = if right {
        s.rsplitn(pieces, separator.as_str()).collect()
    } else {
        s.splitn(pieces, separator.as_str()).collect()
    };
    if right {
        list.reverse();
    }
    Ok(list.into_iter().map(Value::from).collect())
}

fn partition(s: &str, separator: &str, right: bool, args: &Args<'_>) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(args.error("empty separator"));
    }
    let found = if right { s.rsplit_once(separator) } else { s.split_once(separator) };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if right => ["", "", s],
        None => [s, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn affix(s: &str, args: &mut Args<'_>, end: bool) -> Result<bool, Error> {
    let what = args.required("affix")?;
    let bounds = (args.optional_integer("start")?, args.optional_integer("end")?);
    let Some((_, s)) = part(s, bounds.0, bounds.1) else { return Ok(false) };
    let test = |affix: &Value| match affix.as_str() {
        Some(affix) => Ok(if end { s.ends_with(affix) } else { s.starts_with(affix) }),
        None => Err(args.error(format!("expected a string, found {}", affix.kind()))),
    };
    if matches!(what.kind(), ValueKind::Seq | ValueKind::Iterable) {
        for affix in what.try_iter()? {
            if test(&affix)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    test(&what)
}

pub(in crate::template) fn pad(s: &str, method: &str, args: &mut Args<'_>) -> Result<String, Error> {
    let width = args.integer("width")?;
    if width > MAX_WIDTH {
        return Err(args.error("too wide"));
    }
    take(8 * usize::try_from(width).unwrap_or(0))?;
    let fill = match if method == "zfill" { None } else { args.optional_string("fillchar")? } {
        None => ' ',
        Some(fill) => {
            let mut chars = fill.chars();
            match (chars.next(), chars.next()) {
                (Some(c), None) => c,
                _ => return Err(args.error("fillchar must be one character")),
            }
        }
    };
    let len = s.chars().count();
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(len);
    let filled = |n: usize| std::iter::repeat_n(fill, n).collect::<String>();
    Ok(match method {
        "ljust" => s.to_owned() + &filled(missing),
        "rjust" => filled(missing) + s,
        "zfill" => {
            let (sign, digits) = match s.strip_prefix(['+', '-']) {
                Some(digits) => (s.get(..1).unwrap_or_default(), digits),
                None => ("", s),
            };
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
        _ => {
            // CPython gives the odd one to the left if the width is odd.
            let left = missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1);
            filled(left) + s + &filled(missing - left)
        }
    })
}

fn expand_tabs(s: &str, size: i64) -> String {
    let size = usize::try_from(size.clamp(0, 64)).unwrap_or(0);
    let (mut out, mut column) = (String::new(), 0);
    for c in s.chars() {
        match c {
            '\t' => {
                let n = if size == 0 { 0 } else { size - column % size };
                out.push_str(&" ".repeat(n));
                column += n;
            }
            c => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    out
}

/// `str.capitalize`.
pub(in crate::template) fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().collect::<String>() + &chars.as_str().to_lowercase()
    })
}

/// `str.title`: every run of letters begins with a capital.
fn title(s: &str) -> String {
    let (mut out, mut inside) = (String::new(), false);
    for c in s.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}
