//! `str()` and `repr()`.

use minijinja::Value;
use minijinja::value::{Tuple, ValueKind};

use super::containers::{BoundMethod, DictView};
use super::number::{self, BigInt};
use crate::template::allowance::may_take;

const MAX_DEPTH: usize = 200;

/// `str(value)`. Like [`repr`], it stops where the render may make no more text; the render then fails.
pub(in crate::template) fn str(value: &Value) -> String {
    match value.as_str() {
        Some(text) if may_take(text.len()) => text.to_owned(),
        Some(_) => String::new(),
        None if value.is_undefined() => String::new(),
        None => repr(value),
    }
}

/// `repr(value)`.
pub(in crate::template) fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(&mut out, value, 0);
    out
}

fn write_repr(out: &mut String, value: &Value, depth: usize) {
    if depth > MAX_DEPTH {
        return out.push_str("...");
    }
    // The text doubles where it grows; a character may become ten.
    if !may_take(16 + value.as_str().map_or(0, |text| 10 * text.len())) {
        return;
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => out.push_str(&number::float(f64::try_from(value.clone()).unwrap_or(f64::NAN))),
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => write_items(out, value, depth),
        ValueKind::Map => {
            let Some(pairs) = value.as_object().and_then(|object| object.try_iter_pairs()) else {
                return out.push_str("{}");
            };
            out.push('{');
            for (i, (key, item)) in pairs.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                if !may_take(16) {
                    return;
                }
                write_repr(out, &key, depth + 1);
                out.push_str(": ");
                write_repr(out, &item, depth + 1);
            }
            out.push('}');
        }
        _ => match (BigInt::of(value), value.downcast_object_ref::<BoundMethod>()) {
            (Some(big), _) => out.push_str(big.digits()),
            (_, Some(method)) => out.push_str(&method.describe()),
            _ => out.push_str(&value.to_string()),
        },
    }
}

fn write_items(out: &mut String, value: &Value, depth: usize) {
    let tuple = value.downcast_object_ref::<Tuple>();
    let view = value.downcast_object_ref::<DictView>();
    if let Some(view) = view {
        out.push_str(view.name());
        out.push('(');
    }
    out.push(if tuple.is_some() { '(' } else { '[' });
    for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
        if !may_take(16) {
            return;
        }
        out.push_str(if i > 0 { ", " } else { "" });
        write_repr(out, &item, depth + 1);
    }
    match tuple {
        Some(items) if items.len() == 1 => out.push_str(",)"),
        Some(_) => out.push(')'),
        None => out.push(']'),
    }
    if view.is_some() {
        out.push(')');
    }
}

/// `repr(str)`: single quotes unless only single ones are inside; what does not print is escaped.
fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => match u32::from(c) {
                code @ 0..=0xff => out.push_str(&format!("\\x{code:02x}")),
                code @ 0x100..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    out.push(mark);
}

/// `str.isprintable` of one character. Rust's debug output knows the same categories; a character before this one keeps
/// combining marks as they are.
pub(super) fn is_printable(c: char) -> bool {
    matches!(c, ' ' | '"' | '\'' | '\\')
        || (!matches!(c, '\n' | '\r' | '\t' | '\0')
            && !['x', c]
                .iter()
                .collect::<String>()
                .escape_debug()
                .skip(1)
                .collect::<String>()
                .starts_with("\\u{"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_in_python() {
        for (text, want) in [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("it's \"so\"", "'it\\'s \"so\"'"),
            ("a\n\t\\", "'a\\n\\t\\\\'"),
            ("\0\u{7f}\u{85}", "'\\x00\\x7f\\x85'"),
            ("é日😀e\u{301}", "'é日😀e\u{301}'"),
            ("\u{200b}\u{2028}\u{e000}\u{10ffff}", "'\\u200b\\u2028\\ue000\\U0010ffff'"),
        ] {
            assert_eq!(repr(&Value::from(text)), want);
        }
    }

    #[test]
    fn values_print_inside_containers() {
        let value = Value::from_pairs([
            ("a", Value::from(vec![Value::from(1e16), Value::from(true), Value::from(())])),
            ("b", Value::from(Tuple::from(vec![Value::from("x")]))),
            ("c", number::integer("170141183460469231731687303715884105729")),
        ]);
        let want = "{'a': [1e+16, True, None], 'b': ('x',), 'c': 170141183460469231731687303715884105729}";
        assert_eq!(str(&value), want);
        assert_eq!(str(&Value::UNDEFINED), "");
    }
}
