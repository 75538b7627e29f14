//! `str.format`.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::format::check_widths;
use super::text;
use crate::template::allowance::take;

struct Fields<'a> {
    positional: &'a [Value],
    named: Option<Kwargs>,
    /// The next field without a name.
    next: usize,
}

fn error(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("format: {reason}"))
}

/// `template.format(*args)`.
pub(super) fn braces(template: &str, args: &[Value]) -> Result<String, Error> {
    let named = args.last().filter(|last| last.is_kwargs()).and_then(|v| Kwargs::try_from(v.clone()).ok());
    let positional = args.get(..args.len() - usize::from(named.is_some())).unwrap_or_default();
    expand(template, &mut Fields { positional, named, next: 0 }, 2)
}

/// Expands the fields of a template, or of a format inside of one.
fn expand(template: &str, fields: &mut Fields<'_>, depth: u8) -> Result<String, Error> {
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(rest.get(..at).unwrap_or_default());
        rest = rest.get(at..).unwrap_or_default();
        let doubled = ["{{", "}}"].into_iter().find(|mark| rest.starts_with(mark));
        if let Some(mark) = doubled {
            out.push_str(mark.get(1..).unwrap_or_default());
            rest = rest.get(2..).unwrap_or_default();
            continue;
        }
        if rest.starts_with('}') {
            return Err(error("a `}` stands alone"));
        }
        if depth == 0 {
            return Err(error("fields are nested too deeply"));
        }
        let end = closing(rest).ok_or_else(|| error("a `{` is not closed"))?;
        let field = rest.get(1..end).unwrap_or_default();
        rest = rest.get(end + 1..).unwrap_or_default();
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = name.split_once('!').unwrap_or((name, ""));
        let value = fields.value(name)?;
        let spec = expand(spec, fields, depth - 1)?;
        out.push_str(&formatted(value, conversion, &spec)?);
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the brace closes that a text begins with.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0;
    text.char_indices().find_map(|(at, c)| {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        (open == 0).then_some(at)
    })
}

fn formatted(value: Value, conversion: &str, spec: &str) -> Result<String, Error> {
    take(16 + 4 * check_widths(spec)?)?;
    let value = match conversion {
        "" => value,
        "s" => Value::from(text::str(&value)),
        "r" | "a" => Value::from(text::repr(&value)),
        _ => return Err(error("the conversion must be r, s or a")),
    };
    if spec.is_empty() {
        return Ok(text::str(&value));
    }
    if let Some(spec) = spec.strip_suffix('%') {
        let percent = f64::try_from(value)? * 100.0;
        return Ok(format(FormatStyle::StrFormat, &format!("{{:{spec}f}}"), &[Value::from(percent)])? + "%");
    }
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::None) {
        return Err(error("this value takes no format"));
    }
    format(FormatStyle::StrFormat, &format!("{{:{spec}}}"), &[value])
}

impl Fields<'_> {
    /// The value of a name such as `0`, `key`, `key.attribute` or `0[item]`.
    fn value(&mut self, name: &str) -> Result<Value, Error> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut path) = name.split_at(end);
        let place = if first.is_empty() {
            self.next += 1;
            Some(self.next - 1)
        } else {
            first.parse::<usize>().ok()
        };
        let mut value = match place {
            Some(place) => self.positional.get(place).cloned(),
            None => {
                self.named.as_ref().filter(|named| named.has(first)).and_then(|named| named.get(first).ok())
            }
        }
        .ok_or_else(|| error("an argument is missing"))?;
        while !path.is_empty() {
            let (step, rest) = match path.strip_prefix('[').map(|inner| inner.split_once(']')) {
                Some(Some((step, rest))) => (step, rest),
                Some(None) => return Err(error("a `[` is not closed")),
                None => {
                    let name = path.get(1..).unwrap_or_default();
                    name.split_at(name.find(['.', '[']).unwrap_or(name.len()))
                }
            };
            value = match step.parse::<usize>() {
                Ok(index) if value.kind() != ValueKind::Map => value.get_item_by_index(index)?,
                _ => value.get_attr(step)?,
            };
            if value.is_undefined() {
                return Err(error("an argument has no such item"));
            }
            path = rest;
        }
        Ok(value)
    }
}
