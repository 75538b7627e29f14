//! Methods of Python's values by the type they belong to.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use super::{containers, strings};

/// Names that are methods of some value; templates that call others are refused at start.
pub(in crate::template) const KNOWN: &[&str] = &[
    // str
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
    // dict and list
    "copy",
    "get",
    "items",
    "keys",
    "values",
    // Those that change a value fail when they are reached, as in transformers.
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
    // numbers
    "bit_length",
    "is_integer",
    // Jinja's loop, cycler and joiner
    "changed",
    "cycle",
    "next",
    "reset",
];

/// The callback for methods that minijinja does not have.
pub(in crate::template) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let out = strings::call(text, method, args)?;
        state.consume_fuel(text.len() as u64 / 64)?;
        return Ok(out);
    }
    match value.kind() {
        ValueKind::Map if is_dict(value) => containers::dict(value, method, args),
        ValueKind::Seq => containers::list(value, method, args),
        // `a + b` of lists.
        ValueKind::Iterable if value.downcast_object_ref::<containers::DictView>().is_none() => {
            containers::list(value, method, args)
        }
        ValueKind::Number if method == "is_integer" => {
            Ok(f64::try_from(value.clone()).is_ok_and(|f| f.fract() == 0.0).into())
        }
        ValueKind::Number if method == "bit_length" => match i128::try_from(value.clone()) {
            Ok(n) if value.is_integer() => Ok((128 - n.unsigned_abs().leading_zeros()).into()),
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        },
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// Whether a value is what Python calls a dict. Namespaces look like one, and modules.
pub(in crate::template) fn is_dict(value: &Value) -> bool {
    value.kind() == ValueKind::Map
        && !value.as_object().is_some_and(|object| {
            let name = object.type_name();
            name.ends_with("Namespace")
                || name.ends_with("Module")
                || name.ends_with("Loop")
                || name.ends_with("Macro")
        })
}
