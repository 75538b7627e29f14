//! Filters of text, with Jinja2's names and arguments. They take any value, as text.

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::{escape, numbers, sequences, words};
use crate::template::allowance::take;
use crate::template::python::args::Args;
use crate::template::python::search::is_space;
use crate::template::python::{format, json, methods, strings, text};

pub(super) fn install(env: &mut Environment<'static>) {
    env.add_filter("tojson", json::tojson);
    env.add_filter("from_json", from_json);
    env.add_filter("fromjson", from_json);
    for (name, filter) in TEXT {
        env.add_filter(*name, move |state: &State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>| {
            let escapes = matches!(*name, "escape" | "e");
            if escapes && value.is_safe() {
                return Ok(value.clone());
            }
            let text = text::str(value);
            state.consume_fuel(text.len() as u64 / 64)?;
            let args = args.into_values();
            let mut args = Args::new(name, &args);
            // Escapes are the longest.
            take(text.len().saturating_mul(if ESCAPES.contains(name) { 6 } else { 2 }))?;
            let out = filter(&text, &mut args)?;
            args.finish()?;
            let safe = escapes || matches!(*name, "safe" | "forceescape") || value.is_safe();
            Ok::<_, Error>(if safe { Value::from_safe_string(out) } else { Value::from(out) })
        });
    }
    env.add_filter("format", |value: &Value, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        let named = args.last().filter(|last| last.is_kwargs());
        let values =
            named.cloned().unwrap_or_else(|| Value::from(minijinja::value::Tuple::from(args.clone())));
        format::percent(&text::str(value), &values)
    });
    env.add_filter("wordcount", |value: &Value| words::count(&text::str(value)));
    env.add_filter("urlencode", escape::urlencode);
    numbers::install(env);
    sequences::install(env);
    // It is to print as Python's `pprint`, which breaks lines.
    env.remove_filter("pprint");
}

const ESCAPES: &[&str] = &["escape", "e", "forceescape", "striptags"];

type TextFilter = fn(&str, &mut Args<'_>) -> Result<String, Error>;

const TEXT: &[(&str, TextFilter)] = &[
    ("string", |s, _| Ok(s.to_owned())),
    ("safe", |s, _| Ok(s.to_owned())),
    ("upper", |s, _| Ok(s.to_uppercase())),
    ("lower", |s, _| Ok(s.to_lowercase())),
    ("capitalize", |s, _| Ok(strings::capitalize(s))),
    ("title", |s, _| Ok(words::title(s))),
    ("trim", trim),
    ("replace", replace),
    ("center", center),
    ("indent", words::indent),
    ("truncate", words::truncate),
    ("striptags", |s, _| Ok(escape::strip_tags(s))),
    ("escape", |s, _| Ok(escape::html(s))),
    ("e", |s, _| Ok(escape::html(s))),
    ("forceescape", |s, _| Ok(escape::html(s))),
    ("filesizeformat", words::file_size),
];

fn trim(s: &str, args: &mut Args<'_>) -> Result<String, Error> {
    let chars = args.optional_string("chars")?;
    let gone = |c: char| chars.as_deref().map_or(is_space(c), |chars| chars.contains(c));
    Ok(s.trim_matches(gone).to_owned())
}

fn replace(s: &str, args: &mut Args<'_>) -> Result<String, Error> {
    let (old, new) = (text::str(&args.required("old")?), text::str(&args.required("new")?));
    let count = args.optional_integer("count")?;
    strings::replace(s, &old, &new, count)
}

fn center(s: &str, args: &mut Args<'_>) -> Result<String, Error> {
    let width = args.optional_integer("width")?.unwrap_or(80);
    strings::pad(s, "center", &mut Args::new("center", &[Value::from(width)]))
}

/// Not of Jinja2, but templates that take arguments apart bring it along.
fn from_json(value: &Value) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => {
            take(crate::memory::of_json(text.as_bytes()))?;
            crate::template::exact::value(text)
                .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("from_json: {e}")))
        }
        None if methods::is_dict(value) || matches!(value.kind(), ValueKind::Seq) => Ok(value.clone()),
        None => Err(Error::new(ErrorKind::InvalidOperation, "from_json: the value is not a string")),
    }
}
