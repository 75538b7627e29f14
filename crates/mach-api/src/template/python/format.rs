//! `'…' % values`.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::number::BigInt;
use super::text;
use crate::template::allowance::take;

/// Widest field.
const MAX_WIDTH: usize = 1_000_000;

fn error(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("formatting: {reason}"))
}

/// `template % values`: a tuple holds several values, a dict named ones.
pub(in crate::template) fn percent(template: &str, values: &Value) -> Result<String, Error> {
    let list: Vec<Value> = match values.downcast_object_ref::<Tuple>() {
        Some(tuple) => tuple.to_vec(),
        None => vec![values.clone()],
    };
    let mut list = list.into_iter();
    let mut named = values.kind() == ValueKind::Map;
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        out.push_str(rest.get(..at).unwrap_or_default());
        let (name, spec, kind, after) = specification(rest.get(at + 1..).unwrap_or_default())?;
        rest = after;
        take(4 * check_widths(spec)?)?;
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match name {
            Some(name) => {
                named = true;
                values
                    .get_attr(name)
                    .ok()
                    .filter(|v| !v.is_undefined())
                    .ok_or_else(|| error("a key is missing"))?
            }
            None => list.next().ok_or_else(|| error("not enough arguments for format string"))?,
        };
        match kind {
            's' => out.push_str(&padded(&text::str(&value), spec)),
            'r' | 'a' => out.push_str(&padded(&text::repr(&value), spec)),
            'd' | 'i' | 'u' => match whole(&value) {
                Some(digits) => out.push_str(&padded(&digits, spec)),
                None => out.push_str(&format(FormatStyle::Printf, &format!("%{spec}d"), &[value])?),
            },
            kind => out.push_str(&format(FormatStyle::Printf, &format!("%{spec}{kind}"), &[value])?),
        }
    }
    out.push_str(rest);
    if !named && list.next().is_some() {
        return Err(error("not all arguments converted during string formatting"));
    }
    Ok(out)
}

/// Refuses numbers in a format that would make very long text; their sum else.
pub(super) fn check_widths(spec: &str) -> Result<usize, Error> {
    let mut sum: usize = 0;
    for digits in spec.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()) {
        let width = digits.parse().ok().filter(|n| *n <= MAX_WIDTH).ok_or_else(|| error("too wide"))?;
        sum = sum.saturating_add(width);
    }
    Ok(sum)
}

/// Text in a width, cut to a precision.
fn padded(text: &str, spec: &str) -> String {
    let (width, precision) = spec.split_once('.').unwrap_or((spec, ""));
    let left = width.contains('-');
    let width = width.trim_start_matches(['-', '+', ' ', '#', '0']);
    let (width, precision) = (width.parse().unwrap_or(0), precision.parse().ok());
    let text: String = text.chars().take(precision.unwrap_or(usize::MAX)).collect();
    if left { format!("{text:<width$}") } else { format!("{text:>width$}") }
}

/// The digits of what `%d` cuts to an integer that no format of numbers takes.
fn whole(value: &Value) -> Option<String> {
    if let Some(big) = BigInt::of(value) {
        return Some(big.digits().to_owned());
    }
    if value.kind() != ValueKind::Number || value.is_integer() {
        return None;
    }
    let f = f64::try_from(value.clone()).ok()?.trunc();
    f.is_finite().then(|| format!("{}", if f == 0.0 { 0.0 } else { f }))
}

/// What follows a `%`: a name in brackets, flags with width and precision, the kind, and the rest.
fn specification(text: &str) -> Result<(Option<&str>, &str, char, &str), Error> {
    let (name, text) = match text.strip_prefix('(').map(|inner| inner.split_once(')')) {
        Some(Some((name, text))) => (Some(name), text),
        Some(None) => return Err(error("incomplete format key")),
        None => (None, text),
    };
    let end = text
        .find(|c: char| !matches!(c, '#' | '0'..='9' | '-' | ' ' | '+' | '.'))
        .ok_or_else(|| error("incomplete format"))?;
    let (spec, rest) = text.split_at(end);
    let rest = rest.trim_start_matches(['h', 'l', 'L']);
    let kind = rest.chars().next().ok_or_else(|| error("incomplete format"))?;
    Ok((name, spec, kind, rest.get(kind.len_utf8()..).unwrap_or_default()))
}
