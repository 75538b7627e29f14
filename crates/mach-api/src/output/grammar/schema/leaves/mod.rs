//! What a schema allows: a list of alternatives, in each of which everything that must hold was put together.

mod words;

use std::collections::HashMap;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::accepts::{Judge, equal};
use super::numbers::Numbers;
use super::pattern::pattern;
use super::rewrite::{self, ALL, APART, BOOLEAN, EVERY, LEFT, NONE, NULL, types_named};
use super::rx::Rx;
use super::{Unsupported, pointer};

/// Alternatives of one place.
const MOST: usize = 4_000;
/// Schemas that are looked at in all.
const WORK: u32 = 400_000;
/// References and nesting that are followed at one place.
const DEPTH: usize = 96;
/// Lengths beyond which a bound is none.
const LONGEST: u64 = 1_000_000;

/// Words that go by what stands beside them.
const SOURCES: &[&str] =
    &["properties", "patternProperties", "additionalProperties", "items", "prefixItems", "additionalItems"];

/// Schemas that must all be met.
pub(in crate::output::grammar) type Conj<'a> = Vec<&'a Value>;

/// Texts that one place may list.
const LISTED: usize = 10_000;
/// Other values.
const LISTED_OTHERS: usize = 1_000;

/// One alternative.
#[derive(Debug, Clone)]
pub(in crate::output::grammar) enum Leaf<'a> {
    /// This value.
    Value(&'a Value),
    /// Values of these kinds.
    Parts(Box<Parts<'a>>),
}

/// What must hold for values of each type.
#[derive(Debug, Clone)]
pub(in crate::output::grammar) struct Parts<'a> {
    /// The types, as [`rewrite::types_named`] has them.
    pub(super) types: u8,
    pub(super) numbers: Numbers,
    pub(super) strings: Strings,
    pub(super) arrays: Arrays<'a>,
    pub(super) objects: Objects<'a>,
    /// Values that are excluded.
    pub(super) none: Vec<&'a Value>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Strings {
    pub(super) texts: Vec<Rx>,
    pub(super) least: u64,
    pub(super) most: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Arrays<'a> {
    /// Schemas of the first items and of the others.
    pub(super) sources: Vec<(&'a [Value], Option<&'a Value>)>,
    pub(super) least: u64,
    pub(super) most: Option<u64>,
    /// Where it is said that no two items are equal.
    pub(super) unique: Option<&'a Value>,
    /// Where it is said that it contains something, what and how often at least.
    pub(super) contains: Vec<(&'a Value, &'a Value, u64)>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Objects<'a> {
    pub(super) sources: Vec<Source<'a>>,
    pub(super) required: Vec<&'a str>,
    pub(super) least: u64,
    pub(super) most: Option<u64>,
    pub(super) names: Vec<&'a Value>,
    /// For properties that nothing else speaks of.
    pub(super) others: Vec<&'a Value>,
}

/// What one schema says of properties.
#[derive(Debug, Clone)]
pub(super) struct Source<'a> {
    pub(super) named: Option<&'a Map<String, Value>>,
    pub(super) patterns: Vec<(&'a str, Rc<Rx>, &'a Value)>,
    pub(super) rest: Option<&'a Value>,
}

impl Parts<'_> {
    fn new() -> Self {
        Self {
            types: EVERY,
            numbers: Numbers::default(),
            strings: Strings::default(),
            arrays: Arrays::default(),
            objects: Objects::default(),
            none: Vec::new(),
        }
    }

    /// Holds any value at all.
    pub(super) fn is_any(&self) -> bool {
        self.types == EVERY
            && self.none.is_empty()
            && self.numbers == Numbers::default()
            && self.strings == Strings::default()
            && self.arrays.is_any()
            && self.objects.is_any()
    }
}

impl Arrays<'_> {
    pub(super) fn is_any(&self) -> bool {
        self.sources.is_empty()
            && (self.least, self.most) == (0, None)
            && self.unique.is_none()
            && self.contains.is_empty()
    }
}

impl Objects<'_> {
    pub(super) fn is_any(&self) -> bool {
        self.sources.is_empty()
            && self.required.is_empty()
            && (self.least, self.most) == (0, None)
            && self.names.is_empty()
            && self.others.is_empty()
    }
}

/// The way to one alternative.
#[derive(Clone)]
struct State<'a> {
    parts: Parts<'a>,
    seen: Vec<*const Value>,
    branches: Vec<&'a [Value]>,
    listed: Option<Vec<&'a Value>>,
}

/// A schema document and what was found out about it.
pub(in crate::output::grammar) struct Schemas<'a> {
    pub(super) root: &'a Value,
    pub(super) strict: bool,
    /// What was let go.
    pub(in crate::output::grammar) warnings: Vec<String>,
    known: HashMap<Vec<usize>, Rc<Vec<Leaf<'a>>>>,
    patterns: HashMap<String, Result<Rc<Rx>, String>>,
    work: u32,
}

/// The same schemas in the same order, whatever their number.
pub(super) fn key(conj: &[&Value]) -> Vec<usize> {
    let mut key: Vec<usize> =
        conj.iter().map(|schema| std::ptr::from_ref::<Value>(schema) as usize).collect();
    key.sort_unstable();
    key.dedup();
    key
}

impl<'a> Schemas<'a> {
    /// `root` was rewritten.
    pub(in crate::output::grammar) fn new(root: &'a Value, strict: bool) -> Self {
        let (known, patterns) = (HashMap::new(), HashMap::new());
        Self { root, strict, warnings: Vec::new(), known, patterns, work: WORK }
    }

    /// Where a schema stands.
    pub(super) fn path(&self, schema: &Value) -> String {
        fn find(at: &Value, schema: &Value, path: &mut String, depth: usize) -> bool {
            if std::ptr::eq(at, schema) {
                return true;
            }
            let length = path.len();
            let below = |step: String, value: &Value, path: &mut String| {
                path.push_str(&step);
                let found = depth > 0 && find(value, schema, path, depth - 1);
                if !found {
                    path.truncate(length);
                }
                found
            };
            match at {
                Value::Object(map) => map.iter().any(|(key, value)| {
                    let step = if key.starts_with('\u{1}') { String::new() } else { format!(".{key}") };
                    below(step, value, path)
                }),
                Value::Array(list) => {
                    list.iter().enumerate().any(|(i, value)| below(format!("[{i}]"), value, path))
                }
                _ => false,
            }
        }
        let mut path = String::new();
        find(self.root, schema, &mut path, 128);
        path
    }

    /// A schema that is wrong.
    pub(super) fn invalid(&self, schema: &Value, word: &str, reason: impl Into<String>) -> Unsupported {
        let word = if word.is_empty() { String::new() } else { format!(".{word}") };
        (format!("{}{word}", self.path(schema)), reason.into())
    }

    /// What cannot be enforced: an error if everything must be, else let go and told.
    pub(super) fn refuse(
        &mut self,
        schema: &Value,
        word: &str,
        reason: impl Into<String>,
    ) -> Result<(), Unsupported> {
        let (path, reason) = self.invalid(schema, word, reason);
        if self.strict {
            return Err((path, reason));
        }
        let warning = format!("{path}: {reason}");
        if self.warnings.len() < 32 && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
        Ok(())
    }

    pub(super) fn spend(&mut self, schema: &Value) -> Result<(), Unsupported> {
        match self.work.checked_sub(1) {
            Some(left) => {
                self.work = left;
                Ok(())
            }
            None => Err(self.invalid(schema, "", "is too complex")),
        }
    }

    /// A pattern, or why it cannot be enforced.
    pub(super) fn pattern(&mut self, source: &str) -> Result<Rc<Rx>, String> {
        let known = self.patterns.entry(source.to_owned());
        known.or_insert_with(|| pattern(source).map(Rc::new)).clone()
    }

    /// Whether a value meets all schemas.
    pub(super) fn accepts(&mut self, conj: &[&Value], value: &Value) -> bool {
        let mut judge = Judge { root: self.root, steps: 20_000 };
        let met = conj.iter().all(|schema| judge.accepts(schema, value).unwrap_or(!self.strict));
        self.work = self.work.saturating_sub((20_000 - judge.steps) / 16);
        met
    }

    /// The alternatives of a place at which all these schemas hold.
    pub(super) fn leaves(&mut self, conj: &[&'a Value]) -> Result<Rc<Vec<Leaf<'a>>>, Unsupported> {
        let key = key(conj);
        if let Some(known) = self.known.get(&key) {
            return Ok(Rc::clone(known));
        }
        let mut state = State { parts: Parts::new(), seen: Vec::new(), branches: Vec::new(), listed: None };
        let mut out = Vec::new();
        let mut possible = true;
        for schema in conj {
            possible = possible && self.gather(schema, &mut state, DEPTH)?;
        }
        if possible {
            self.branch(state, conj, &mut out)?;
        }
        let out = Rc::new(out);
        self.known.insert(key, Rc::clone(&out));
        Ok(out)
    }

    /// Goes every way from here.
    fn branch(
        &mut self,
        mut state: State<'a>,
        conj: &[&'a Value],
        out: &mut Vec<Leaf<'a>>,
    ) -> Result<(), Unsupported> {
        if state.parts.types == 0 {
            return Ok(());
        }
        if let Some(options) = state.branches.pop() {
            for option in options {
                let mut state = state.clone();
                if self.gather(option, &mut state, DEPTH)? {
                    self.branch(state, conj, out)?;
                }
            }
            return Ok(());
        }
        if out.len() >= MOST {
            let first = conj.first().copied().unwrap_or(self.root);
            return Err(self.invalid(first, "", format!("has more than {MOST} alternatives")));
        }
        match state.listed {
            Some(list) => {
                // Each is compared with all others, and numbers are slow to compare.
                let others = list.iter().filter(|value| !value.is_string()).count();
                if list.len() > LISTED || others > LISTED_OTHERS {
                    let first = conj.first().copied().unwrap_or(self.root);
                    let reason = format!(
                        "lists {} values; at most {LISTED} texts and {LISTED_OTHERS} others are supported",
                        list.len()
                    );
                    return Err(self.invalid(first, "", reason));
                }
                for value in list {
                    let there =
                        out.iter().any(|leaf| matches!(leaf, Leaf::Value(known) if equal(known, value)));
                    if !there && self.accepts(conj, value) {
                        out.push(Leaf::Value(value));
                    }
                }
            }
            None => out.push(Leaf::Parts(Box::new(state.parts))),
        }
        Ok(())
    }

    /// Puts a schema to what holds already. False if nothing can meet both.
    fn gather(
        &mut self,
        schema: &'a Value,
        state: &mut State<'a>,
        depth: usize,
    ) -> Result<bool, Unsupported> {
        self.spend(schema)?;
        let map = match schema {
            Value::Bool(always) => return Ok(*always),
            Value::Object(map) => map,
            _ => return Err(self.invalid(schema, "", "must be an object or a boolean")),
        };
        if state.seen.contains(&std::ptr::from_ref(schema)) {
            return Ok(true);
        }
        state.seen.push(schema);
        let Some(depth) = depth.checked_sub(1) else {
            return Err(self.invalid(schema, "", "refers too deep"));
        };
        let mut sourced = false;
        for (word, said) in map {
            if !sourced && SOURCES.contains(&word.as_str()) {
                self.source(schema, map, state)?;
                sourced = true;
            }
            let list = |wrong: &Self| {
                let list = said.as_array();
                list.ok_or_else(|| wrong.invalid(schema, word, "must be an array"))
            };
            match word.as_str() {
                "$ref" | "$dynamicRef" | "$recursiveRef" => {
                    let reference = said.as_str().unwrap_or_default();
                    let Some(target) = pointer::find(self.root, reference) else {
                        let reference: String = reference.chars().take(80).collect();
                        let reason = format!("`{reference}` is not found in the schema");
                        return Err(self.invalid(schema, word, reason));
                    };
                    if !self.gather(target, state, depth)? {
                        return Ok(false);
                    }
                }
                "allOf" | ALL => {
                    for item in list(self)? {
                        if !self.gather(item, state, depth)? {
                            return Ok(false);
                        }
                    }
                }
                "anyOf" => state.branches.push(list(self)?),
                "oneOf" => {
                    let left = map.get(LEFT).and_then(Value::as_array);
                    let left = left.is_some_and(|left| left.iter().any(|word| word == "oneOf"));
                    if left || map.contains_key(APART) {
                        state.branches.push(list(self)?);
                    }
                }
                LEFT => {
                    for word in list(self)?.iter().filter_map(Value::as_str) {
                        self.refuse(schema, word, "cannot be enforced")?;
                    }
                }
                "enum" => {
                    let values = list(self)?.iter().collect::<Vec<_>>();
                    if state.listed.as_ref().is_none_or(|known| known.len() > values.len()) {
                        state.listed = Some(values);
                    }
                }
                "const" => state.listed = Some(vec![said]),
                "type" => {
                    let types = types_named(said);
                    if types == 0 {
                        return Err(self.invalid(schema, word, "names no type of JSON"));
                    }
                    state.parts.types &= types;
                }
                NONE => {
                    for value in list(self)? {
                        match value {
                            Value::Null => state.parts.types &= !NULL,
                            value => state.parts.none.push(value),
                        }
                    }
                    let all = [true, false].iter().all(|b| state.parts.none.iter().any(|none| *none == b));
                    state.parts.types &= if all { !BOOLEAN } else { EVERY };
                }
                _ => {
                    self.number(schema, word, said, map, &mut state.parts.numbers)?;
                    self.string(schema, word, said, &mut state.parts.strings)?;
                    self.sizes(schema, word, said, map, &mut state.parts)?;
                }
            }
        }
        Ok(state.parts.types != 0)
    }
}

impl Strings {
    /// The texts but `none`.
    pub(super) fn rx(&self, none: &[&Value]) -> Rx {
        let (least, most) = (self.least, self.most.filter(|&most| most <= LONGEST));
        let bounds = self.texts.iter().map(Rx::lengths);
        let (low, high) = bounds
            .fold((least, self.most.unwrap_or(u64::MAX)), |all, one| (all.0.max(one.0), all.1.min(one.1)));
        if low > high || least > LONGEST {
            return Rx::never();
        }
        let mut all = self.texts.clone();
        if (least, most) != (0, None) {
            all.push(Rx::letter().repeat(least as u32, most.map(|most| most as u32)));
        }
        let none: Vec<Rx> = none.iter().filter_map(|v| v.as_str()).map(Rx::text).collect();
        if !none.is_empty() {
            all.push(Rx::alt(none).not());
        }
        let rx = Rx::and(all);
        // Few texts show whether there are any.
        match rx.listed(64) {
            Some(texts) if texts.is_empty() => Rx::never(),
            _ => rx,
        }
    }
}

/// The document that schemas are read from.
pub(in crate::output::grammar) fn document(root: &Value) -> Value {
    rewrite::rewritten(root)
}
