//! Arguments in Gemma 4's notation.

use serde_json::{Map, Value};

use super::super::values::Types;
use super::calls::{Exact, Unsupported, required, strings, unconstrained, value};
use super::lark::{Lark, quoted};

/// Schemas nest at most this deep; deeper values are not held to one.
const DEPTH: usize = 16;

/// The braces and what stands between them.
pub(super) fn arguments(schema: &Value, exact: Exact, lark: &mut Lark<'_>) -> Result<String, Unsupported> {
    if exact == Exact::Loose {
        let any = anything(lark);
        return Ok(any.object);
    }
    object(schema, schema, exact, lark, DEPTH)
}

/// Rules for values of any kind.
struct Anything {
    value: String,
    object: String,
}

fn anything(lark: &mut Lark<'_>) -> Anything {
    let string = string(lark);
    let word = lark.rule("/[^,\\[\\]{}<\"\\n]+/");
    let key = lark.rule("/[^:,\\[\\]{}<\"\\n]+/");
    // The value's own name is not known before its parts are.
    let value = lark.reserve();
    let object = lark.rule(&format!("\"{{\" ({key} \":\" {value} (\",\" {key} \":\" {value})*)? \"}}\""));
    let array = lark.rule(&format!("\"[\" ({value} (\",\" {value})*)? \"]\""));
    lark.define(&value, &format!("{string} | {word} | {object} | {array}"));
    Anything { value, object }
}

fn string(lark: &mut Lark<'_>) -> String {
    let open = lark.text("<|\"|>");
    let rest = lark.until("<|\"|>");
    lark.rule(&format!("{open} {rest}"))
}

/// Properties in the schema's order, commas between those that are there.
fn object(
    schema: &Value,
    root: &Value,
    exact: Exact,
    lark: &mut Lark<'_>,
    depth: usize,
) -> Result<String, Unsupported> {
    let empty = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    // What may follow when nothing was written so far, and when something was.
    let (mut first, mut later) = ("\"}\"".to_owned(), "\"}\"".to_owned());
    for (name, property) in properties.iter().rev() {
        let value = typed(name, property, root, exact, lark, depth)?;
        let pair = lark.rule(&format!("{} {value}", quoted(&format!("{name}:"))));
        let (here, next) = (format!("{pair} {later}"), format!("\",\" {pair} {later}"));
        let optional = !required(schema, name);
        let or = |with: String, without: &str| if optional { format!("{with} | {without}") } else { with };
        (first, later) = (lark.rule(&or(here, &first)), lark.rule(&or(next, &later)));
    }
    Ok(lark.rule(&format!("\"{{\" {first}")))
}

fn typed(
    name: &str,
    schema: &Value,
    root: &Value,
    exact: Exact,
    lark: &mut Lark<'_>,
    depth: usize,
) -> Result<String, Unsupported> {
    if depth == 0 || schema.get("$ref").is_some() {
        return Ok(anything(lark).value);
    }
    if let Some(choices) = strings(schema) {
        let quote = lark.text("<|\"|>");
        let choices: Vec<String> = choices.iter().map(|text| quoted(text)).collect();
        return Ok(lark.rule(&format!("{quote} ({}) {quote}", choices.join(" | "))));
    }
    let types = Types::of_schema(schema, root);
    if types == Types::STRING {
        unconstrained(name, schema, exact)?;
        return Ok(string(lark));
    }
    if types == Types::OBJECT && schema.get("properties").is_some() {
        return object(schema, root, exact, lark, depth - 1);
    }
    if let (true, Some(items)) = (types == Types::ARRAY, schema.get("items")) {
        let item = typed(name, items, root, exact, lark, depth - 1)?;
        return Ok(lark.rule(&format!("\"[\" ({item} (\",\" {item})*)? \"]\"")));
    }
    if types.includes(Types::STRING) || types.includes(Types::OBJECT) || types.includes(Types::ARRAY) {
        return Ok(anything(lark).value);
    }
    let json = value(schema, root, exact);
    Ok(lark.rule(&json))
}
