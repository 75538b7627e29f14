//! Methods of `dict`, `list` and `tuple`, and what they return.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Tuple};
use minijinja::{Error, ErrorKind, State, Value};

use super::args::Args;
use super::{methods, text};
use crate::template::allowance::{collect, take};

/// Methods of `dict` that an attribute of the same name stands for.
pub(in crate::template) const DICT: &[&str] = &[
    "clear",
    "copy",
    "fromkeys",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];

pub(super) fn dict(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(object) = value.as_object() else { return Err(Error::from(ErrorKind::UnknownMethod)) };
    let mut args = Args::new(method, args);
    if matches!(method, "items" | "keys" | "values") {
        take(object.enumerator_len().unwrap_or(0) * 128)?;
    }
    let pairs = || object.try_iter_pairs().into_iter().flatten();
    let out = match method {
        "items" => view("dict_items", pairs().map(|(k, v)| Value::from(Tuple::from([k, v]))).collect()),
        "keys" => view("dict_keys", pairs().map(|(k, _)| k).collect()),
        "values" => view("dict_values", pairs().map(|(_, v)| v).collect()),
        "copy" => value.clone(),
        "get" => {
            let key = args.required("key")?;
            let default = args.optional("default");
            object.get_value(&key).or(default).unwrap_or_else(|| Value::from(()))
        }
        "clear" | "pop" | "popitem" | "setdefault" | "update" => return Err(changes(method)),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    };
    args.finish()?;
    Ok(out)
}

pub(super) fn list(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let mut args = Args::new(method, args);
    let out = match method {
        "count" => {
            let what = args.required("value")?;
            let mut found = 0;
            for item in value.try_iter()? {
                take(1)?;
                found += usize::from(item == what);
            }
            found.into()
        }
        "index" => {
            let what = args.required("value")?;
            let items: Vec<Value> = collect(value.try_iter()?)?;
            let place = |n: i64| {
                let n = if n < 0 { n + i64::try_from(items.len()).unwrap_or(i64::MAX) } else { n };
                usize::try_from(n).unwrap_or(0)
            };
            let start = args.optional_integer("start")?.map_or(0, place);
            let stop = args.optional_integer("stop")?.map_or(items.len(), place);
            let found = items.iter().enumerate().take(stop).skip(start).find(|(_, item)| **item == what);
            match found {
                Some((at, _)) => at.into(),
                None => return Err(args.error(format!("{} is not in list", text::repr(&what)))),
            }
        }
        "copy" => value.clone(),
        "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" => {
            return Err(changes(method));
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    };
    args.finish()?;
    Ok(out)
}

/// Templates run where values cannot be changed, in transformers as well.
fn changes(method: &str) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("{method}() would change a value, which templates may not"),
    )
}

fn view(name: &'static str, items: Vec<Value>) -> Value {
    Value::from_object(DictView { name, items })
}

/// What `items()`, `keys()` and `values()` return.
#[derive(Debug)]
pub(in crate::template) struct DictView {
    name: &'static str,
    items: Vec<Value>,
}

impl DictView {
    pub(in crate::template) fn name(&self) -> &'static str {
        self.name
    }
}

impl Object for DictView {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }
}

/// A method that is not called: in Jinja2, `x.items` of a dict is its method, whatever its keys.
#[derive(Debug)]
pub(in crate::template) struct BoundMethod {
    value: Value,
    name: String,
}

impl BoundMethod {
    pub(in crate::template) fn describe(&self) -> String {
        format!("<built-in method {} of dict object>", self.name)
    }
}

impl Object for BoundMethod {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        methods::call(state, &self.value, &self.name, args)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// An attribute whose name is that of a method of `dict`.
pub(in crate::template) fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    if methods::is_dict(value) && DICT.contains(&name) {
        return Ok(Value::from_object(BoundMethod { value: value.clone(), name: name.to_owned() }));
    }
    value.get_attr(name)
}
