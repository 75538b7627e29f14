//! What single words of a schema say.

use serde_json::{Map, Value};

use super::super::Unsupported;
use super::super::accepts::items;
use super::super::decimal::Decimal;
use super::super::format::{Format, format};
use super::super::numbers::Numbers;
use super::super::rewrite::{UNLIKE, count};
use super::{Parts, Schemas, Source, State, Strings};

impl<'a> Schemas<'a> {
    pub(super) fn number(
        &mut self,
        schema: &'a Value,
        word: &str,
        said: &Value,
        map: &Map<String, Value>,
        out: &mut Numbers,
    ) -> Result<(), Unsupported> {
        let bounds = match (word, said.as_str()) {
            ("format", Some("int8")) => Some(("-128", "127")),
            ("format", Some("int16")) => Some(("-32768", "32767")),
            ("format", Some("int32")) => Some(("-2147483648", "2147483647")),
            ("format", Some("int64")) => Some(("-9223372036854775808", "9223372036854775807")),
            ("format", Some("uint8")) => Some(("0", "255")),
            ("format", Some("uint16")) => Some(("0", "65535")),
            ("format", Some("uint32")) => Some(("0", "4294967295")),
            ("format", Some("uint64")) => Some(("0", "18446744073709551615")),
            _ => None,
        };
        if let Some((low, high)) = bounds {
            for (bound, low) in [(low, true), (high, false)] {
                let Some(bound) = Decimal::parse(bound) else { continue };
                if low { out.at_least(bound, true) } else { out.at_most(bound, true) }
            }
            return Ok(());
        }
        const WORDS: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
        // Older drafts say by a flag whether the bound itself is within.
        if !WORDS.contains(&word) || (said.is_boolean() && word.starts_with("exclusive")) {
            return Ok(());
        }
        let Some(number) = said.as_number() else {
            return Err(self.invalid(schema, word, "must be a number"));
        };
        let Some(number) = Decimal::of(number) else {
            return self.refuse(schema, word, "has too many digits to be enforced");
        };
        let closed = |flag: &str| map.get(flag) != Some(&Value::Bool(true));
        match word {
            "minimum" => out.at_least(number, closed("exclusiveMinimum")),
            "maximum" => out.at_most(number, closed("exclusiveMaximum")),
            "exclusiveMinimum" => out.at_least(number, false),
            "exclusiveMaximum" => out.at_most(number, false),
            _ if number.is_zero() => return Err(self.invalid(schema, word, "must not be 0")),
            _ => out.multiple_of(number),
        }
        Ok(())
    }

    pub(super) fn string(
        &mut self,
        schema: &'a Value,
        word: &str,
        said: &'a Value,
        out: &mut Strings,
    ) -> Result<(), Unsupported> {
        match word {
            "minLength" => out.least = out.least.max(self.count(schema, word, said)?),
            "maxLength" => {
                let most = self.count(schema, word, said)?;
                out.most = Some(out.most.map_or(most, |known| known.min(most)));
            }
            "pattern" | UNLIKE => {
                let sources: Vec<&Value> =
                    if word == UNLIKE { said.as_array().into_iter().flatten().collect() } else { vec![said] };
                for source in sources {
                    let Some(source) = source.as_str() else {
                        return Err(self.invalid(schema, "pattern", "must be a string"));
                    };
                    match self.pattern(source) {
                        Ok(rx) => {
                            let rx = (*rx).clone();
                            out.texts.push(if word == UNLIKE { rx.not() } else { rx });
                        }
                        Err(reason) => self.refuse(schema, "pattern", reason)?,
                    }
                }
            }
            "format" => {
                let Some(name) = said.as_str() else {
                    return Err(self.invalid(schema, word, "must be a string"));
                };
                if let Format::Texts(rx) = format(name) {
                    out.texts.push(rx);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn count(&self, schema: &Value, word: &str, said: &Value) -> Result<u64, Unsupported> {
        count(said).ok_or_else(|| self.invalid(schema, word, "must be a whole number that is not negative"))
    }

    /// Arrays and objects: what is said once in a schema.
    pub(super) fn sizes(
        &mut self,
        schema: &'a Value,
        word: &str,
        said: &'a Value,
        map: &'a Map<String, Value>,
        parts: &mut Parts<'a>,
    ) -> Result<(), Unsupported> {
        let (arrays, objects) = (&mut parts.arrays, &mut parts.objects);
        let least = |known: &mut u64, count: u64| *known = (*known).max(count);
        let most = |known: &mut Option<u64>, count: u64| *known = Some(known.map_or(count, |k| k.min(count)));
        match word {
            "minItems" => least(&mut arrays.least, self.count(schema, word, said)?),
            "maxItems" => most(&mut arrays.most, self.count(schema, word, said)?),
            "minProperties" => least(&mut objects.least, self.count(schema, word, said)?),
            "maxProperties" => most(&mut objects.most, self.count(schema, word, said)?),
            "uniqueItems" if said == &Value::Bool(true) => arrays.unique = Some(schema),
            "contains" => {
                let least = match map.get("minContains") {
                    Some(said) => self.count(schema, "minContains", said)?,
                    None => 1,
                };
                if map.contains_key("maxContains") {
                    self.refuse(schema, "maxContains", "cannot be enforced")?;
                }
                if least > 0 {
                    arrays.contains.push((schema, said, least));
                }
            }
            "unevaluatedItems" => {
                let (prefix, rest) = items(map);
                match (prefix.is_empty(), rest) {
                    (_, Some(_)) => {}
                    (false, None) if !arrays.sources.iter().any(|(known, _)| known.len() > prefix.len()) => {
                        arrays.sources.push((prefix, Some(said)));
                    }
                    _ => self.refuse(schema, word, "cannot be enforced")?,
                }
            }
            "required" => {
                let Some(names) = said.as_array() else {
                    return Err(self.invalid(schema, word, "must be an array"));
                };
                for name in names {
                    let Some(name) = name.as_str() else {
                        return Err(self.invalid(schema, word, "must list strings"));
                    };
                    if !objects.required.contains(&name) {
                        objects.required.push(name);
                    }
                }
            }
            "propertyNames" => objects.names.push(said),
            "unevaluatedProperties" => objects.others.push(said),
            _ => {}
        }
        Ok(())
    }

    /// What a schema says of items and properties, which go by what stands beside them.
    pub(super) fn source(
        &mut self,
        schema: &'a Value,
        map: &'a Map<String, Value>,
        state: &mut State<'a>,
    ) -> Result<(), Unsupported> {
        let (prefix, rest) = items(map);
        if !prefix.is_empty() || rest.is_some() {
            state.parts.arrays.sources.push((prefix, rest));
        }
        let named = match map.get("properties") {
            None => None,
            Some(Value::Object(named)) => Some(named),
            Some(_) => return Err(self.invalid(schema, "properties", "must be an object")),
        };
        let mut patterns = Vec::new();
        match map.get("patternProperties") {
            None => {}
            Some(Value::Object(all)) => {
                for (source, value) in all {
                    match self.pattern(source) {
                        Ok(rx) => patterns.push((source.as_str(), rx, value)),
                        Err(reason) => self.refuse(schema, "patternProperties", reason)?,
                    }
                }
            }
            Some(_) => return Err(self.invalid(schema, "patternProperties", "must be an object")),
        }
        let rest = map.get("additionalProperties");
        if named.is_some() || !patterns.is_empty() || rest.is_some() {
            state.parts.objects.sources.push(Source { named, patterns, rest });
        }
        Ok(())
    }
}
