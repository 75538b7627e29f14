//! Tests, with what Jinja2 counts as what.

use minijinja::value::ValueKind;
use minijinja::{Environment, Value};

use crate::template::python::containers::DictView;
use crate::template::python::methods::is_dict;
use crate::template::python::number::BigInt;
use crate::template::python::text;

pub(super) fn install(env: &mut Environment<'static>) {
    env.add_test("iterable", is_iterable);
    env.add_test("sequence", is_sequence);
    env.add_test("mapping", |value: &Value| is_dict(value));
    env.add_test("callable", is_callable);
    env.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool) || BigInt::of(value).is_some()
    });
    env.add_test("integer", |value: &Value| {
        (value.kind() == ValueKind::Number && value.is_integer()) || BigInt::of(value).is_some()
    });
    env.add_test("float", |value: &Value| value.kind() == ValueKind::Number && !value.is_integer());
    env.add_test("lower", |value: &Value| {
        let text = text::str(value);
        text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
    });
    env.add_test("upper", |value: &Value| {
        let text = text::str(value);
        text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
    });
}

/// What `iter()` takes. An undefined value is an empty sequence.
fn is_iterable(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined | ValueKind::String | ValueKind::Bytes | ValueKind::Seq | ValueKind::Iterable
    ) || is_dict(value)
}

/// What has a length and can be indexed: text and dicts too, but not the views of a dict.
fn is_sequence(value: &Value) -> bool {
    is_iterable(value) && value.downcast_object_ref::<DictView>().is_none()
}

/// Functions, macros and methods; in Jinja2, undefined values too.
fn is_callable(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined => true,
        ValueKind::Plain => BigInt::of(value).is_none(),
        ValueKind::Map | ValueKind::Iterable => value.as_object().is_some_and(|object| {
            let name = object.type_name();
            name.ends_with("Loop") || name.ends_with("Macro")
        }),
        _ => false,
    }
}
