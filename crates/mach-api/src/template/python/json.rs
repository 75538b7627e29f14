//! `tojson` as transformers defines it: Python's `json.dumps(x, ensure_ascii=False, ...)`.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::number::{self, BigInt};
use crate::template::allowance::{collect, take};

const MAX_DEPTH: usize = 200;

struct Style {
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

/// The filter. Keyword arguments as in transformers: `ensure_ascii`, `indent`, `separators`, `sort_keys`.
pub(in crate::template) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    ensure_ascii: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => match (v.as_str(), v.as_i64()) {
            (Some(s), _) => Some(s.to_owned()),
            (None, Some(n)) => Some(" ".repeat(n.clamp(0, 64) as usize)),
            (None, None) => return Err(invalid("tojson: indent must be a number or a string")),
        },
    };
    let separators = match kwargs.get::<Option<Value>>("separators")? {
        Some(v) if !v.is_none() => {
            // One more than there may be.
            let items = v.try_iter()?.take(3).collect::<Vec<_>>();
            match items.as_slice() {
                [a, b] => Some((a.to_string(), b.to_string())),
                _ => return Err(invalid("tojson: separators must be a pair")),
            }
        }
        _ => None,
    };
    let (item_separator, key_separator) =
        separators.unwrap_or_else(|| (if indent.is_some() { "," } else { ", " }.into(), ": ".into()));
    let style = Style {
        indent,
        item_separator,
        key_separator,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: match ensure_ascii {
            Some(b) => b,
            None => kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        },
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    write_value(&mut out, value, &style, 0)?;
    state.consume_fuel(out.len() as u64 / 64)?;
    Ok(Value::from(out))
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn write_value(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("tojson: nested too deeply"));
    }
    take(16 + value.as_str().map_or(0, |text| 3 * text.len()))?;
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => {
            let _ = write!(out, "{value}");
        }
        ValueKind::Number => out.push_str(&float(f64::try_from(value.clone())?)),
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), style.ensure_ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = collect(value.try_iter()?)?;
            write_items(out, style, depth, ('[', ']'), &items, |out, item| {
                write_value(out, item, style, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let mut pairs = Vec::new();
            for key in value.try_iter()? {
                take(128 + key.as_str().map_or(0, |text| 4 * text.len()))?;
                let item = value.get_item(&key)?;
                let name = match key.kind() {
                    ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
                    ValueKind::None => "null".to_owned(),
                    ValueKind::Number if !key.is_integer() => float(f64::try_from(key.clone())?),
                    _ => key.to_string(),
                };
                pairs.push((name, item));
            }
            if style.sort_keys {
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
            }
            write_items(out, style, depth, ('{', '}'), &pairs, |out, (name, item)| {
                write_string(out, name, style.ensure_ascii);
                out.push_str(&style.key_separator);
                write_value(out, item, style, depth + 1)
            })?;
        }
        kind => {
            if let Some(big) = BigInt::of(value) {
                out.push_str(big.digits());
                return Ok(());
            }
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: {kind} is not JSON serializable"),
            ));
        }
    }
    Ok(())
}

fn write_items<T>(
    out: &mut String,
    style: &Style,
    depth: usize,
    (open, close): (char, char),
    items: &[T],
    mut write: impl FnMut(&mut String, &T) -> Result<(), Error>,
) -> Result<(), Error> {
    out.push(open);
    for (i, item) in items.iter().enumerate() {
        let between = style.indent.as_ref().map_or(0, |indent| 1 + indent.len() * (depth + 1));
        take(2 * (style.item_separator.len() + style.key_separator.len() + between))?;
        if i > 0 {
            out.push_str(&style.item_separator);
        }
        new_line(out, style, depth + 1);
        write(out, item)?;
    }
    if !items.is_empty() {
        new_line(out, style, depth);
    }
    out.push(close);
    Ok(())
}

fn new_line(out: &mut String, style: &Style, depth: usize) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        for _ in 0..depth {
            out.push_str(indent);
        }
    }
}

fn write_string(out: &mut String, s: &str, ensure_ascii: bool) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// `json.dumps(float)`: as `repr` prints it, but for what JSON has no number for.
fn float(f: f64) -> String {
    match f {
        f if f.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        f => number::float(f),
    }
}
