//! Schemas in fewer words: `if`, `not`, `oneOf` and `dependent...` said by `anyOf` and by what the negated parts leave.
//!
//! What a schema said stays in place, for references point at places; what it means is added under words of our own.

use std::cell::Cell;

use serde_json::{Map, Value, json};

use super::pointer;

/// More schemas that must be met. No word of a request's begins like this: those are taken out.
pub(super) const ALL: &str = "\u{1}all";
/// `oneOf` can be read as `anyOf`: no two of its options hold at once.
pub(super) const APART: &str = "\u{1}apart";
/// Words that could not be said otherwise.
pub(super) const LEFT: &str = "\u{1}left";
/// Values that are none of these.
pub(super) const NONE: &str = "\u{1}none";
/// Strings in which a pattern is not found.
pub(super) const UNLIKE: &str = "\u{1}unlike";

/// Words whose value is a schema.
pub(super) const ONE: &[&str] = &[
    "items",
    "additionalItems",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "propertyNames",
    "contains",
    "not",
    "if",
    "then",
    "else",
];
/// Words whose value lists schemas.
pub(super) const LIST: &[&str] = &["allOf", "anyOf", "oneOf", "prefixItems", "items", ALL];
/// Words whose value names schemas.
pub(super) const NAMED: &[&str] =
    &["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];

/// Values that rewriting may add.
const MOST: usize = 100_000;
/// Negation follows references this far.
const DEPTH: usize = 24;
/// Schemas that are looked at to find out what excludes what.
const LOOKS: u32 = 20_000;

struct Rewriter<'r> {
    root: &'r Value,
    added: usize,
    looks: Cell<u32>,
}

/// The schema, rewritten.
pub(super) fn rewritten(root: &Value) -> Value {
    Rewriter { root, added: 0, looks: Cell::new(LOOKS) }.schema(root)
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(size).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

impl Rewriter<'_> {
    fn schema(&mut self, schema: &Value) -> Value {
        let Value::Object(map) = schema else { return schema.clone() };
        let mut out = Map::new();
        for (key, value) in map.iter().filter(|(key, _)| !key.starts_with('\u{1}')) {
            let value = match value {
                Value::Array(list) if LIST.contains(&key.as_str()) => {
                    list.iter().map(|item| self.schema(item)).collect()
                }
                Value::Object(named) if NAMED.contains(&key.as_str()) => {
                    let named = named.iter().map(|(name, item)| (name.clone(), self.schema(item)));
                    Value::Object(named.collect())
                }
                // Said by other words below.
                value if matches!(key.as_str(), "not" | "if" | "then" | "else") => value.clone(),
                value if ONE.contains(&key.as_str()) => self.schema(value),
                value => value.clone(),
            };
            out.insert(key.clone(), value);
        }
        let (mut all, mut left) = (Vec::new(), Vec::new());
        let apart = map.get("oneOf").is_some_and(|options| self.all_disjoint(options));
        if apart {
            out.insert(APART.to_owned(), true.into());
        }
        for (key, said) in [
            ("if", self.conditional(map)),
            ("not", map.get("not").map(|not| self.negation(not, DEPTH))),
            ("oneOf", map.get("oneOf").filter(|_| !apart).map(|options| self.exclusive(options))),
            ("dependentSchemas", dependent(map, "dependentSchemas")),
            ("dependentRequired", dependent(map, "dependentRequired")),
            ("dependencies", dependent(map, "dependencies")),
        ] {
            match said {
                None => {}
                Some(Some(schema)) if self.added + size(&schema) <= MOST => {
                    self.added += size(&schema);
                    // It may hold such words itself.
                    all.push(self.schema(&schema));
                }
                Some(_) => left.push(Value::from(key)),
            }
        }
        for (key, list) in [(ALL, all), (LEFT, left)] {
            if !list.is_empty() {
                out.insert(key.to_owned(), list.into());
            }
        }
        // Words of ours that rewriting has put there before.
        for key in [NONE, UNLIKE] {
            if let Some(value) = map.get(key) {
                out.insert(key.to_owned(), value.clone());
            }
        }
        out.into()
    }

    fn conditional(&self, map: &Map<String, Value>) -> Option<Option<Value>> {
        let condition = map.get("if")?;
        let (then, other) = (map.get("then"), map.get("else"));
        if then.is_none() && other.is_none() {
            return None;
        }
        let (always, yes) = (Value::Bool(true), then.unwrap_or(&Value::Bool(true)));
        let other = other.unwrap_or(&always);
        let not = self.negation(condition, DEPTH);
        Some(not.map(|not| json!({"anyOf": [{"allOf": [condition, yes]}, {"allOf": [not, other]}]})))
    }

    /// Options of which exactly one holds.
    fn exclusive(&self, options: &Value) -> Option<Value> {
        let options = options.as_array()?;
        let mut all = Vec::new();
        for (i, option) in options.iter().enumerate() {
            let mut one = vec![option.clone()];
            for (j, other) in options.iter().enumerate() {
                if i != j && !self.disjoint(option, other, DEPTH) {
                    one.push(self.negation(other, DEPTH)?);
                }
            }
            all.push(if one.len() == 1 { one.remove(0) } else { json!({ "allOf": one }) });
        }
        Some(json!({ "anyOf": all }))
    }

    fn all_disjoint(&self, options: &Value) -> bool {
        let Some(options) = options.as_array() else { return false };
        let later = |i: usize| options[i + 1..].iter();
        (0..options.len()).all(|i| later(i).all(|other| self.disjoint(&options[i], other, DEPTH)))
    }

    fn target(&self, map: &Map<String, Value>) -> Option<&Value> {
        pointer::find(self.root, map.get("$ref")?.as_str()?)
    }

    fn look(&self) -> bool {
        let left = self.looks.get().saturating_sub(1);
        self.looks.set(left);
        left > 0
    }

    /// A schema and those that it refers to; `None` if nothing meets them.
    fn layers<'v>(&'v self, schema: &'v Value) -> Option<Vec<&'v Map<String, Value>>> {
        let (mut out, mut next) = (Vec::new(), Some(schema));
        while let Some(schema) = next.filter(|_| out.len() < DEPTH) {
            next = match schema {
                Value::Bool(false) => return None,
                Value::Object(map) => {
                    out.push(map);
                    self.target(map)
                }
                _ => None,
            };
        }
        Some(out)
    }

    /// Whether no value can meet both, as far as a look tells.
    fn disjoint(&self, a: &Value, b: &Value, depth: usize) -> bool {
        if depth == 0 || !self.look() {
            return false;
        }
        match (self.layers(a), self.layers(b)) {
            (Some(a), Some(b)) => a.iter().any(|a| b.iter().any(|b| self.apart(a, b, depth))),
            _ => true,
        }
    }

    fn apart(&self, a: &Map<String, Value>, b: &Map<String, Value>, depth: usize) -> bool {
        if let (Some(a), Some(b)) = (values(a), values(b)) {
            return !a.iter().any(|a| b.iter().any(|b| super::accepts::equal(a, b)));
        }
        let common = types(a) & types(b);
        if common == 0 {
            return true;
        }
        if common != OBJECT {
            return false;
        }
        let required = |map: &'_ Map<String, Value>| -> Vec<String> {
            let list = map.get("required").and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let names = [required(a), required(b)].concat();
        names.iter().any(|name| match (property(a, name), property(b, name)) {
            (Some(a), Some(b)) => self.disjoint(a, b, depth - 1),
            (Some(Value::Bool(false)), _) | (_, Some(Value::Bool(false))) => true,
            _ => false,
        })
    }

    /// A schema that holds only values that do not meet this one: not always all of them.
    fn negation(&self, schema: &Value, depth: usize) -> Option<Value> {
        let map = match schema {
            Value::Bool(always) => return Some(Value::Bool(!always)),
            Value::Object(map) => map,
            _ => return None,
        };
        let depth = depth.checked_sub(1)?;
        if !self.look() {
            return None;
        }
        if let (Some(condition), Some(_), Some(_)) = (map.get("if"), map.get("then"), map.get("else"))
            && map.len() == 3
        {
            let (yes, no) = (self.negation(&map["then"], depth)?, self.negation(&map["else"], depth)?);
            let not = self.negation(condition, depth)?;
            return Some(json!({"anyOf": [{"allOf": [condition, yes]}, {"allOf": [not, no]}]}));
        }
        let (mut options, mut asserts) = (Vec::new(), false);
        for (key, value) in map {
            let said = self.negated(key, value, map, depth);
            asserts |= !NOTES.contains(&key.as_str());
            options.extend(said.into_iter().flatten());
        }
        match (options.len(), asserts) {
            (0, false) => Some(Value::Bool(false)),
            (0, true) => None,
            (1, _) => options.pop(),
            _ => Some(json!({ "anyOf": options })),
        }
    }

    /// What does not meet one word.
    fn negated(
        &self,
        key: &str,
        value: &Value,
        map: &Map<String, Value>,
        depth: usize,
    ) -> Option<Vec<Value>> {
        let not = |value: &Value| self.negation(value, depth);
        let of = |kind: &str, key: &str, value: Value| {
            let mut out = Map::from_iter([("type".to_owned(), Value::from(kind))]);
            out.insert(key.to_owned(), value);
            vec![Value::Object(out)]
        };
        let less = |value: &Value| Some(count(value)?.checked_sub(1)?.into());
        let more = |value: &Value| Some(Value::from(count(value)? + 1));
        let flag = |key: &str| map.get(key) == Some(&Value::Bool(true));
        Some(match key {
            "type" => {
                let mut names = types_named(value);
                if names & INTEGER != 0 {
                    // Numbers with a fraction are left aside.
                    names |= NUMBER;
                }
                let rest: Vec<Value> = TYPES
                    .iter()
                    .filter(|(_, bit)| names & bit == 0)
                    .map(|(name, _)| Value::from(*name))
                    .collect();
                if rest.is_empty() { return None } else { vec![json!({ "type": rest })] }
            }
            "const" => vec![json!({NONE: [value]})],
            "enum" => vec![json!({ NONE: value })],
            "required" => {
                let names = value.as_array()?.iter().filter_map(Value::as_str);
                names.map(|name| json!({"type": "object", "properties": {name: false}})).collect()
            }
            "properties" => {
                let each = value.as_object()?.iter().filter_map(|(name, schema)| {
                    let schema = not(schema).filter(|schema| schema != &Value::Bool(false))?;
                    Some(json!({"type": "object", "required": [name], "properties": {name: schema}}))
                });
                each.collect()
            }
            "minimum" if flag("exclusiveMinimum") => of("number", "maximum", value.clone()),
            "maximum" if flag("exclusiveMaximum") => of("number", "minimum", value.clone()),
            "minimum" => of("number", "exclusiveMaximum", value.clone()),
            "maximum" => of("number", "exclusiveMinimum", value.clone()),
            "exclusiveMinimum" if value.is_number() => of("number", "maximum", value.clone()),
            "exclusiveMaximum" if value.is_number() => of("number", "minimum", value.clone()),
            "minLength" => of("string", "maxLength", less(value)?),
            "maxLength" => of("string", "minLength", more(value)?),
            "pattern" => of("string", UNLIKE, json!([value])),
            "minItems" => of("array", "maxItems", less(value)?),
            "maxItems" => of("array", "minItems", more(value)?),
            "minProperties" => of("object", "maxProperties", less(value)?),
            "maxProperties" => of("object", "minProperties", more(value)?),
            "items" if !value.is_array() && !map.contains_key("prefixItems") => {
                of("array", "contains", not(value)?)
            }
            "contains" if !map.contains_key("minContains") && !map.contains_key("maxContains") => {
                of("array", "items", not(value)?)
            }
            "allOf" => value.as_array()?.iter().filter_map(not).collect(),
            "anyOf" => {
                let all: Option<Vec<Value>> = value.as_array()?.iter().map(not).collect();
                vec![json!({ "allOf": all? })]
            }
            "not" => vec![value.clone()],
            "$ref" => vec![not(self.target(map)?)?],
            _ => return None,
        })
    }
}

/// What is said of a property.
fn property<'v>(map: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    let found = map.get("properties").and_then(|all| all.get(name));
    found.or_else(|| map.get("additionalProperties").filter(|_| !map.contains_key("patternProperties")))
}

/// `dependent...`: a property is not there, or more holds.
fn dependent(map: &Map<String, Value>, key: &str) -> Option<Option<Value>> {
    let all = map.get(key)?;
    let Some(all) = all.as_object() else { return Some(None) };
    let each = all.iter().map(|(name, more)| {
        let more = if more.is_array() { json!({ "required": more }) } else { more.clone() };
        json!({"anyOf": [
            {"properties": {name: false}},
            {"allOf": [{"type": "object", "required": [name]}, more]},
        ]})
    });
    Some(Some(json!({ "allOf": each.collect::<Vec<_>>() })))
}

/// Words that ask for nothing.
pub(super) const NOTES: &[&str] = &[
    "title",
    "description",
    "default",
    "examples",
    "example",
    "$comment",
    "$schema",
    "$id",
    "id",
    "$anchor",
    "$vocabulary",
    "$defs",
    "definitions",
    "readOnly",
    "writeOnly",
    "deprecated",
    "contentMediaType",
    "contentEncoding",
    "contentSchema",
    "then",
    "else",
    "minContains",
    "maxContains",
];

/// The values that a schema lists.
fn values(map: &Map<String, Value>) -> Option<Vec<&Value>> {
    match (map.get("const"), map.get("enum").and_then(Value::as_array)) {
        (Some(value), _) => Some(vec![value]),
        (None, list) => list.map(|list| list.iter().collect()),
    }
}

/// A count, also one that is written as `2.0`.
pub(super) fn count(value: &Value) -> Option<u64> {
    let whole = |n: f64| (n >= 0.0 && n.fract() == 0.0 && n < 9e15).then_some(n as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(whole))
}

pub(super) const NULL: u8 = 1;
pub(super) const BOOLEAN: u8 = 2;
/// Whole numbers; numbers have both bits.
pub(super) const INTEGER: u8 = 4;
/// Numbers with a fraction.
pub(super) const NUMBER: u8 = 8;
pub(super) const STRING: u8 = 16;
pub(super) const ARRAY: u8 = 32;
pub(super) const OBJECT: u8 = 64;
pub(super) const EVERY: u8 = 127;

const TYPES: [(&str, u8); 6] = [
    ("null", NULL),
    ("boolean", BOOLEAN),
    ("number", INTEGER | NUMBER),
    ("string", STRING),
    ("array", ARRAY),
    ("object", OBJECT),
];

/// The types that a schema's `type` names; 0 for names that there are not.
pub(super) fn types_named(value: &Value) -> u8 {
    let one = |name: &str| match name {
        "integer" => INTEGER,
        name => TYPES.iter().find(|(known, _)| *known == name).map_or(0, |(_, bit)| *bit),
    };
    match value {
        Value::String(name) => one(name),
        Value::Array(list) => list.iter().filter_map(Value::as_str).fold(0, |all, name| all | one(name)),
        _ => 0,
    }
}

pub(super) fn type_of(value: &Value) -> u8 {
    match value {
        Value::Null => NULL,
        Value::Bool(_) => BOOLEAN,
        Value::Number(n) => match super::decimal::Decimal::of(n) {
            Some(n) if n.is_whole() => INTEGER,
            Some(_) => NUMBER,
            None => INTEGER | NUMBER,
        },
        Value::String(_) => STRING,
        Value::Array(_) => ARRAY,
        Value::Object(_) => OBJECT,
    }
}

fn types(map: &Map<String, Value>) -> u8 {
    let listed = values(map).map(|list| list.iter().fold(0, |all, value| all | type_of(value)));
    map.get("type").map_or(EVERY, types_named) & listed.unwrap_or(EVERY)
}
