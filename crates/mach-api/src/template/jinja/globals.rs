//! Functions: those of transformers, and those of Jinja2 that minijinja has elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::operators;
use crate::template::allowance::take;

pub(super) fn install(env: &mut Environment<'static>) {
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    env.add_function("cycler", cycler);
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_function("dict", dict);
    env.add_function("namespace", |args: Rest<ValueOrKwargs>| {
        minijinja::functions::namespace(Some(dict(args)?.into()))
    });
    env.remove_global("debug");
    operators::install(env);
}

/// `dict(pairs or mapping, **named)`.
fn dict(args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    for arg in &args {
        match arg.as_object().filter(|_| arg.kind() == ValueKind::Map) {
            Some(object) => {
                for pair in object.try_iter_pairs().into_iter().flatten() {
                    take(256)?;
                    pairs.push(pair);
                }
            }
            None => {
                for pair in arg.try_iter()? {
                    take(256)?;
                    pairs.push((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?));
                }
            }
        }
    }
    Ok(Value::from_pairs(pairs))
}

/// `cycler(...)`: `next()`, `reset()` and `current`.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Cycler {
    fn current(&self) -> Value {
        self.items.get(self.at.load(Ordering::Relaxed)).cloned().unwrap_or_default()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        _: &[Value],
    ) -> Result<Value, Error> {
        let current = self.current();
        let next = match method {
            "next" => (self.at.load(Ordering::Relaxed) + 1) % self.items.len().max(1),
            "reset" => 0,
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        };
        self.at.store(next, Ordering::Relaxed);
        Ok(if method == "next" { current } else { Value::from(()) })
    }
}

fn cycler(items: Rest<Value>) -> Result<Value, Error> {
    if items.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "cycler: at least one item has to be provided"));
    }
    Ok(Value::from_object(Cycler { items: items.to_vec(), at: AtomicUsize::new(0) }))
}

/// Marks an error made by `raise_exception`.
#[derive(Debug)]
pub(in crate::template) struct Raised(pub(in crate::template) String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = crate::template::python::text::str(message);
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
}

/// Local time, as `datetime.now().strftime(format)`.
fn strftime_now(format: String, kwargs: Kwargs) -> Result<String, Error> {
    kwargs.assert_all_used()?;
    let now = time::OffsetDateTime::now_local().unwrap_or_else(|_| time::OffsetDateTime::now_utc());
    strftime(&format, now)
}

pub(super) fn strftime(format: &str, at: time::OffsetDateTime) -> Result<String, Error> {
    let items = time::format_description::parse_strftime_borrowed(format)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))?;
    at.format(&items).map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
}

#[cfg(test)]
mod unit {
    #[test]
    fn strftime_formats_dates() {
        let at = time::OffsetDateTime::from_unix_timestamp(1_750_000_000).unwrap();
        let text = super::strftime("%d %b %Y %H:%M %A %B %y %j", at).unwrap();
        assert_eq!(text, "15 Jun 2025 15:06 Sunday June 25 166");
    }
}
