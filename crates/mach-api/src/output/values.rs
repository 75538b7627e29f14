//! Values of parameters, typed by the tools' schemas.

use std::collections::HashMap;

use serde_json::{Map, Number, Value};

use super::grammar::schema::pointer;
use super::relaxed;

/// `$ref`, `anyOf` and the like are followed this deep.
const DEPTH: usize = 8;
/// As many schemas are looked at for one answer, however they refer to each other.
const MOST_LOOKED_AT: usize = 10_000;

/// The JSON types that a schema allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Types(u8);

impl Types {
    pub(super) const STRING: Self = Self(1);
    const NULL: Self = Self(2);
    const BOOLEAN: Self = Self(4);
    const INTEGER: Self = Self(8);
    const NUMBER: Self = Self(16);
    pub(super) const ARRAY: Self = Self(32);
    pub(super) const OBJECT: Self = Self(64);
    pub(super) const ALL: Self = Self(127);

    fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it allows one of these.
    pub(super) fn includes(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The value is known to be no string.
    pub(super) fn without_string(self) -> Self {
        let rest = Self(self.0 & !Self::STRING.0);
        if rest == Self::default() { Self(Self::ALL.0 & !Self::STRING.0) } else { rest }
    }

    fn named(name: &str) -> Self {
        match name {
            "string" | "str" | "text" => Self::STRING,
            "null" => Self::NULL,
            "boolean" => Self::BOOLEAN,
            "integer" => Self::INTEGER,
            "number" => Self::NUMBER,
            "array" => Self::ARRAY,
            "object" => Self::OBJECT,
            _ => Self::ALL,
        }
    }

    fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(n) if n.is_f64() => Self::NUMBER,
            Value::Number(_) => Self::INTEGER,
            Value::String(_) => Self::STRING,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
        }
    }

    /// What a schema allows; everything if it does not say.
    pub(super) fn of_schema(schema: &Value, root: &Value) -> Self {
        let types = Self::gather(schema, root, DEPTH, &mut MOST_LOOKED_AT.clone());
        if types == Self::default() { Self::ALL } else { types }
    }

    fn gather(schema: &Value, root: &Value, depth: usize, left: &mut usize) -> Self {
        let Some(schema) = schema.as_object().filter(|_| depth > 0 && *left > 0) else {
            return Self::default();
        };
        *left -= 1;
        let union = |list: &Value, of: &mut dyn FnMut(&Value) -> Self| {
            list.as_array().into_iter().flatten().fold(Self::default(), |all, item| all.with(of(item)))
        };
        match schema.get("type") {
            Some(Value::String(name)) => return Self::named(name),
            Some(list @ Value::Array(_)) => {
                return union(list, &mut |v| v.as_str().map_or(Self::ALL, Self::named));
            }
            _ => {}
        }
        if let Some(list) = schema.get("enum") {
            return union(list, &mut Self::of_value);
        }
        if let Some(value) = schema.get("const") {
            return Self::of_value(value);
        }
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            let found = pointer::find(root, target);
            return found.map_or(Self::ALL, |schema| Self::gather(schema, root, depth - 1, left));
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            if let Some(list) = schema.get(key) {
                return union(list, &mut |item| Self::gather(item, root, depth - 1, left));
            }
        }
        if schema.contains_key("properties") {
            Self::OBJECT
        } else if schema.contains_key("items") {
            Self::ARRAY
        } else {
            Self::default()
        }
    }

    /// A value that was written as text, as JSON: of the first type that it can be read as, in JSON's notation or else in
    /// Python's; else a string.
    pub(super) fn json(self, text: &str) -> String {
        let bare = text.trim();
        if let Some(json) = self.read(bare) {
            return json;
        }
        // A value in quotes where no string may stand: it was written down twice.
        if !self.includes(Self::STRING)
            && let Some(Value::String(inner)) =
                relaxed::read(bare).and_then(|v| serde_json::from_str(&v).ok())
            && let Some(json) = self.read(inner.trim())
        {
            return json;
        }
        Value::from(text).to_string()
    }

    fn read(self, bare: &str) -> Option<String> {
        if self.includes(Self::NULL) && matches!(bare, "null" | "None") {
            return Some("null".to_owned());
        }
        if self.includes(Self::BOOLEAN)
            && (bare.eq_ignore_ascii_case("true") || bare.eq_ignore_ascii_case("false"))
        {
            return Some(bare.to_ascii_lowercase());
        }
        if self.includes(Self::INTEGER.with(Self::NUMBER))
            && let Some(text) = relaxed::number(bare)
            && let Ok(number) = serde_json::from_str::<Number>(&text)
        {
            let whole = number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15);
            return Some(match whole {
                Some(whole) if number.is_f64() && !self.includes(Self::NUMBER) => (whole as i64).to_string(),
                _ => text,
            });
        }
        let wanted = match bare.as_bytes().first() {
            Some(b'{') => self.includes(Self::OBJECT),
            Some(b'[') => self.includes(Self::ARRAY),
            Some(b'(') => self.includes(Self::ARRAY) && !self.includes(Self::STRING),
            _ => false,
        };
        if !wanted {
            return None;
        }
        let json = match serde_json::from_str::<Value>(bare) {
            Ok(_) => bare.to_owned(),
            Err(_) => relaxed::read(bare)?,
        };
        // In brackets, for it will stand inside the object of all arguments, and readers bound how deep JSON nests.
        serde_json::from_str::<Value>(&format!("[{json}]")).is_ok().then_some(json)
    }
}

/// What the functions of a request take.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolSchemas {
    parameters: HashMap<String, Value>,
}

impl ToolSchemas {
    /// Of a request's `tools`, which have been checked.
    pub fn of(tools: &[Value]) -> Self {
        let function = |tool: &Value| {
            let function = tool.get("function")?;
            let schema = function.get("parameters").cloned().unwrap_or_else(|| Map::new().into());
            Some((function.get("name")?.as_str()?.to_owned(), schema))
        };
        Self { parameters: tools.iter().filter_map(function).collect() }
    }

    /// Whether a function may be called: one of the request's or, if it has none, any.
    pub(super) fn declares(&self, function: &str) -> bool {
        self.parameters.is_empty() || self.parameters.contains_key(function)
    }

    /// What a parameter may be, if the schema says.
    pub(super) fn parameter(&self, function: &str, name: &str) -> Option<Types> {
        let root = self.parameters.get(function)?;
        let found = properties(root).into_iter().find_map(|all| all.get(name));
        found.map(|schema| Types::of_schema(schema, root))
    }

    /// Whether a function has a parameter, as far as its schema says.
    pub(super) fn knows(&self, function: &str, name: &str) -> bool {
        let Some(root) = self.parameters.get(function) else { return true };
        let all = properties(root);
        all.iter().all(|some| some.is_empty()) || all.iter().any(|some| some.contains_key(name))
    }
}

/// The properties that the schema of arguments declares, in itself and in what it is made of.
fn properties(root: &Value) -> Vec<&Map<String, Value>> {
    let mut out = Vec::new();
    let mut open = vec![(root, DEPTH)];
    for _ in 0..MOST_LOOKED_AT {
        let Some((schema, depth)) = open.pop() else { break };
        let Some(object) = schema.as_object().filter(|_| depth > 0) else { continue };
        out.extend(object.get("properties").and_then(Value::as_object));
        let referred =
            object.get("$ref").and_then(Value::as_str).and_then(|target| pointer::find(root, target));
        let lists =
            ["allOf", "anyOf", "oneOf"].iter().filter_map(|key| object.get(*key)?.as_array()).flatten();
        let branches = ["then", "else"].iter().filter_map(|key| object.get(*key));
        open.extend(referred.into_iter().chain(lists).chain(branches).map(|part| (part, depth - 1)));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_are_found_in_all_that_a_schema_is_made_of() {
        let parameters = json!({"$ref": "#/$defs/both", "$defs": {
            "both": {"allOf": [{"$ref": "#/$defs/n"}, {"properties": {"s": {"type": "string"}}}]},
            "n": {"properties": {"n": {"type": "integer"}}},
        }});
        let tools = ToolSchemas::of(&[json!({"function": {"name": "f", "parameters": parameters}})]);
        assert_eq!(tools.parameter("f", "n"), Some(Types::INTEGER));
        assert_eq!(tools.parameter("f", "s"), Some(Types::STRING));
        assert!(tools.knows("f", "n") && tools.knows("f", "s") && !tools.knows("f", "x"));
        // However often it refers to itself, it is looked at so many times and no more.
        let many: Vec<Value> = (0..5000).map(|_| json!({"$ref": "#"})).collect();
        let tangled = json!({"anyOf": many, "properties": {"a": {"$ref": "#"}}});
        let tools = ToolSchemas::of(&[json!({"function": {"name": "f", "parameters": tangled}})]);
        assert!(tools.knows("f", "a") && tools.parameter("f", "a").is_some());
    }

    #[test]
    fn schemas_tell_types() {
        let root = json!({"$defs": {"n": {"type": "integer"}}});
        let of = |schema: Value| Types::of_schema(&schema, &root);
        assert_eq!(of(json!({"type": "string"})), Types::STRING);
        assert_eq!(of(json!({"$ref": "#/$defs/n"})), Types::INTEGER);
        assert_eq!(
            of(json!({"anyOf": [{"type": "string"}, {"type": "null"}]})),
            Types::STRING.with(Types::NULL)
        );
        assert_eq!(of(json!({"type": ["number", "null"]})), Types::NUMBER.with(Types::NULL));
        assert_eq!(of(json!({"enum": ["a", 1]})), Types::STRING.with(Types::INTEGER));
        assert_eq!(of(json!({})), Types::ALL);
        let escaped = json!({"$defs": {"a b/c": {"type": "integer"}}});
        assert_eq!(Types::of_schema(&json!({"$ref": "#/$defs/a%20b~1c"}), &escaped), Types::INTEGER);
        let looped = json!({"$defs": {"a": {"$ref": "#/$defs/a"}}});
        assert_eq!(Types::of_schema(&json!({"$ref": "#/$defs/a"}), &looped), Types::ALL);
    }

    #[test]
    fn text_becomes_json_of_its_type() {
        for (types, text, json) in [
            (Types::INTEGER, " 3 ", "3"),
            (Types::INTEGER, "3.0", "3"),
            (Types::NUMBER, "3.0", "3.0"),
            (Types::NUMBER, "12345678901234567890123", "12345678901234567890123"),
            (Types::NUMBER, "three", "\"three\""),
            (Types::BOOLEAN, "True", "true"),
            (Types::STRING.with(Types::NULL), "None", "null"),
            (Types::STRING.with(Types::NULL), "12", "\"12\""),
            (Types::ARRAY, "[1, {\"a\": 2}]", "[1, {\"a\": 2}]"),
            (Types::ARRAY, "[1,", "\"[1,\""),
            (Types::OBJECT, "[1]", "\"[1]\""),
            (Types::ALL, "{\"a\": 1}", "{\"a\": 1}"),
            (Types::ALL, " a\n", "\" a\\n\""),
        ] {
            assert_eq!(types.json(text), json, "{text:?}");
        }
    }
}
