//! Whether a value meets a schema: what listed values are held against.

use serde_json::{Map, Value};

use super::decimal::Decimal;
use super::format::{Format, format};
use super::pattern::pattern;
use super::pointer;
use super::rewrite::{NONE, UNLIKE, count, type_of, types_named};

/// References and nesting are followed this far.
const DEPTH: usize = 64;

/// Whether two values are the same: numbers by what they are worth.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (Decimal::of(a), Decimal::of(b)) {
            (Some(a), Some(b)) => a == b,
            _ => a == b,
        },
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        (a, b) => a == b,
    }
}

/// A schema's judge, with a bound on what it does.
pub(super) struct Judge<'r> {
    pub(super) root: &'r Value,
    pub(super) steps: u32,
}

impl Judge<'_> {
    /// Whether a value meets a schema; `None` if that cannot be said.
    pub(super) fn accepts(&mut self, schema: &Value, value: &Value) -> Option<bool> {
        self.schema(schema, value, DEPTH)
    }

    fn all<'v>(&mut self, pairs: impl Iterator<Item = (&'v Value, &'v Value)>, depth: usize) -> Option<bool> {
        for (schema, value) in pairs {
            if !self.schema(schema, value, depth)? {
                return Some(false);
            }
        }
        Some(true)
    }

    fn schema(&mut self, schema: &Value, value: &Value, depth: usize) -> Option<bool> {
        let depth = depth.checked_sub(1)?;
        self.steps = self.steps.checked_sub(1)?;
        let map = match schema {
            Value::Bool(always) => return Some(*always),
            Value::Object(map) => map,
            _ => return None,
        };
        for (key, said) in map {
            if !self.word(key, said, map, value, depth)? {
                return Some(false);
            }
        }
        Some(true)
    }

    fn word(
        &mut self,
        key: &str,
        said: &Value,
        map: &Map<String, Value>,
        value: &Value,
        depth: usize,
    ) -> Option<bool> {
        let among = |list: &Value| list.as_array().is_some_and(|list| list.iter().any(|v| equal(v, value)));
        Some(match key {
            "type" => types_named(said) & type_of(value) != 0,
            "const" => equal(said, value),
            "enum" => among(said),
            NONE => !among(said),
            "$ref" => {
                let root = self.root;
                let target = pointer::find(root, said.as_str()?)?;
                self.schema(target, value, depth)?
            }
            "allOf" => self.all(said.as_array()?.iter().map(|schema| (schema, value)), depth)?,
            "anyOf" | "oneOf" => {
                let mut met = 0;
                for schema in said.as_array()? {
                    met += usize::from(self.schema(schema, value, depth)?);
                }
                if key == "anyOf" { met > 0 } else { met == 1 }
            }
            "not" => !self.schema(said, value, depth)?,
            "if" => {
                let key = if self.schema(said, value, depth)? { "then" } else { "else" };
                match map.get(key) {
                    Some(schema) => self.schema(schema, value, depth)?,
                    None => true,
                }
            }
            _ => match value {
                Value::Number(number) => numeric(key, said, map, &Decimal::of(number)?)?,
                Value::String(text) => textual(key, said, text)?,
                Value::Array(list) => self.array(key, said, map, list, depth)?,
                Value::Object(object) => self.object(key, said, map, object, depth)?,
                _ => true,
            },
        })
    }

    fn array(
        &mut self,
        key: &str,
        said: &Value,
        map: &Map<String, Value>,
        list: &[Value],
        depth: usize,
    ) -> Option<bool> {
        let (prefix, rest) = items(map);
        Some(match key {
            "minItems" => list.len() as u64 >= count(said)?,
            "maxItems" => list.len() as u64 <= count(said)?,
            "uniqueItems" => {
                said != &Value::Bool(true)
                    || (1..list.len()).all(|i| !list[..i].iter().any(|other| equal(other, &list[i])))
            }
            "prefixItems" | "items" | "additionalItems" => {
                let rest = list.iter().skip(prefix.len()).filter_map(|value| Some((rest?, value)));
                self.all(prefix.iter().zip(list).chain(rest), depth)?
            }
            "contains" => {
                let mut met = 0;
                for value in list {
                    met += u64::from(self.schema(said, value, depth)?);
                }
                let least = map.get("minContains").and_then(count).unwrap_or(1);
                met >= least && map.get("maxContains").and_then(count).is_none_or(|most| met <= most)
            }
            _ => true,
        })
    }

    fn object(
        &mut self,
        key: &str,
        said: &Value,
        map: &Map<String, Value>,
        object: &Map<String, Value>,
        depth: usize,
    ) -> Option<bool> {
        Some(match key {
            "minProperties" => object.len() as u64 >= count(said)?,
            "maxProperties" => object.len() as u64 <= count(said)?,
            "required" => {
                said.as_array()?.iter().all(|name| name.as_str().is_some_and(|n| object.contains_key(n)))
            }
            "properties" => {
                let named = said.as_object()?;
                self.all(named.iter().filter_map(|(name, schema)| Some((schema, object.get(name)?))), depth)?
            }
            "patternProperties" => {
                for (source, schema) in said.as_object()? {
                    let rx = pattern(source).ok()?;
                    for (name, value) in object {
                        if rx.matches(name)? && !self.schema(schema, value, depth)? {
                            return Some(false);
                        }
                    }
                }
                true
            }
            "additionalProperties" => {
                let patterns = map.get("patternProperties").and_then(Value::as_object);
                let patterns: Option<Vec<_>> =
                    patterns.into_iter().flatten().map(|(source, _)| pattern(source).ok()).collect();
                let patterns = patterns?;
                for (name, value) in object {
                    let named = map.get("properties").is_some_and(|all| all.get(name).is_some());
                    let mut known = named;
                    for rx in &patterns {
                        known |= rx.matches(name)?;
                    }
                    if !known && !self.schema(said, value, depth)? {
                        return Some(false);
                    }
                }
                true
            }
            "propertyNames" => {
                for name in object.keys() {
                    if !self.schema(said, &Value::from(name.as_str()), depth)? {
                        return Some(false);
                    }
                }
                true
            }
            "dependentRequired" | "dependentSchemas" | "dependencies" => {
                for (name, more) in said.as_object()? {
                    if !object.contains_key(name) {
                        continue;
                    }
                    let met = match more.as_array() {
                        Some(names) => {
                            names.iter().all(|n| n.as_str().is_some_and(|n| object.contains_key(n)))
                        }
                        None => self.schema(more, &Value::Object(object.clone()), depth)?,
                    };
                    if !met {
                        return Some(false);
                    }
                }
                true
            }
            _ => true,
        })
    }
}

/// The schemas of the first items, and that of the others.
pub(super) fn items(map: &Map<String, Value>) -> (&[Value], Option<&Value>) {
    match (map.get("items"), map.get("prefixItems")) {
        (Some(Value::Array(prefix)), _) => (prefix, map.get("additionalItems")),
        (rest, Some(Value::Array(prefix))) => (prefix, rest),
        (rest, _) => (&[], rest),
    }
}

fn numeric(key: &str, said: &Value, map: &Map<String, Value>, number: &Decimal) -> Option<bool> {
    let bound = || Decimal::of(said.as_number()?);
    let open = |key: &str| map.get(key) == Some(&Value::Bool(true));
    Some(match key {
        "minimum" if open("exclusiveMinimum") => *number > bound()?,
        "maximum" if open("exclusiveMaximum") => *number < bound()?,
        "minimum" => *number >= bound()?,
        "maximum" => *number <= bound()?,
        "exclusiveMinimum" if said.is_number() => *number > bound()?,
        "exclusiveMaximum" if said.is_number() => *number < bound()?,
        "multipleOf" => number.is_multiple_of(&bound()?)?,
        _ => true,
    })
}

fn textual(key: &str, said: &Value, text: &str) -> Option<bool> {
    let length = || text.chars().count() as u64;
    Some(match key {
        "minLength" => length() >= count(said)?,
        "maxLength" => length() <= count(said)?,
        "pattern" => pattern(said.as_str()?).ok()?.matches(text)?,
        UNLIKE => {
            let mut met = false;
            for source in said.as_array()? {
                met |= pattern(source.as_str()?).ok()?.matches(text)?;
            }
            !met
        }
        "format" => match format(said.as_str()?) {
            Format::Texts(rx) => rx.matches(text)?,
            Format::Note => true,
        },
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_held_against_schemas() {
        let root = json!({"$defs": {"n": {"type": "integer", "minimum": 1}}});
        for (schema, value, met) in [
            (json!({"$ref": "#/$defs/n"}), json!(1.0), true),
            (json!({"$ref": "#/$defs/n"}), json!(0), false),
            (json!({"enum": [9007199254740993u64]}), json!(9007199254740992u64), false),
            (json!({"multipleOf": 0.01}), json!(1.07), true),
            (json!({"not": {"type": "string"}, "maxLength": 2.0}), json!(3), true),
            (json!({"oneOf": [{"type": "integer"}, {"minimum": 2}]}), json!(3), false),
            (json!({"if": {"const": 1}, "then": false}), json!(2), true),
            (json!({"uniqueItems": true}), json!([1, 1.0]), false),
            (
                json!({"prefixItems": [{"type": "null"}], "items": {"type": "string"}}),
                json!([null, "a"]),
                true,
            ),
            (json!({"contains": {"const": 1}, "maxContains": 1}), json!([1, 1]), false),
            (
                json!({"properties": {"a": true}, "patternProperties": {"^b": {"type": "null"}}, "additionalProperties": false}),
                json!({"a": 1, "bc": null}),
                true,
            ),
            (json!({"dependentRequired": {"a": ["b"]}}), json!({"a": 1}), false),
            (json!({"format": "date"}), json!("2023-02-29"), false),
        ] {
            let mut judge = Judge { root: &root, steps: 1000 };
            assert_eq!(judge.accepts(&schema, &value), Some(met), "{schema} {value}");
        }
        let looped = json!({"$ref": "#"});
        assert_eq!(Judge { root: &looped, steps: 1000 }.accepts(&looped, &json!(1)), None);
    }
}
