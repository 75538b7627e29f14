//! Rules for values, as JSON or in Gemma 4's notation.

mod arrays;

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::super::lark::{Lark, quoted};
use super::Unsupported;
use super::decimal::Decimal;
use super::fields::Fields;
use super::leaves::{Conj, Leaf, Objects, Parts, Schemas, key};
use super::numbers::NumberRule;
use super::rewrite::{ARRAY, BOOLEAN, INTEGER, NULL, NUMBER, OBJECT, STRING};
use super::rx::{Quote, Rx, class};

/// How values stand in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::output::grammar) enum Notation {
    /// JSON as templates write it: a space behind commas and colons.
    Tight,
    /// JSON with white space where the grammar ignores it.
    Loose,
    /// Gemma 4's: strings between control tokens, keys bare.
    Gemma4,
}

/// Characters of one grammar.
pub const LONGEST: usize = 500_000;
/// Properties that may be left out one after another, in all objects that may stand at one place: whoever follows the grammar looks
/// at all of them at once.
const OPTIONAL: usize = 500;
/// Rules nest this deep before the rest waits for its turn.
const DEEP: usize = 40;
/// Patterns of property names at one place.
const PATTERNS: usize = 6;

/// Writes the rules of one schema document.
pub(in crate::output::grammar) struct GrammarWriter<'w, 'l, 'a> {
    pub(in crate::output::grammar) lark: &'w mut Lark<'l>,
    pub(in crate::output::grammar) schemas: &'w mut Schemas<'a>,
    notation: Notation,
    known: HashMap<Vec<usize>, Option<String>>,
    waiting: Vec<(String, Conj<'a>)>,
    depth: usize,
    /// Properties of the value being defined that may be left out, see [`OPTIONAL`].
    optional: usize,
}

impl<'w, 'l, 'a> GrammarWriter<'w, 'l, 'a> {
    pub(in crate::output::grammar) fn new(
        lark: &'w mut Lark<'l>,
        schemas: &'w mut Schemas<'a>,
        notation: Notation,
    ) -> Self {
        Self { lark, schemas, notation, known: HashMap::new(), waiting: Vec::new(), depth: 0, optional: 0 }
    }

    /// The rule for values that meet all these schemas, with everything that it needs; `None` if there are none.
    pub(in crate::output::grammar) fn rule(
        &mut self,
        conj: &[&'a Value],
    ) -> Result<Option<String>, Unsupported> {
        let rule = self.value(conj)?;
        self.finish()?;
        Ok(rule)
    }

    /// Defines what waits.
    pub(super) fn finish(&mut self) -> Result<(), Unsupported> {
        while let Some((name, conj)) = self.waiting.pop() {
            self.define(&name, &conj)?;
        }
        self.check_length()
    }

    pub(super) fn value(&mut self, conj: &[&'a Value]) -> Result<Option<String>, Unsupported> {
        let key = key(conj);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let name = self.lark.reserve();
        self.known.insert(key.clone(), Some(name.clone()));
        if self.depth >= DEEP {
            self.waiting.push((name.clone(), conj.to_vec()));
            return Ok(Some(name));
        }
        self.depth += 1;
        let there = self.define(&name, conj);
        self.depth -= 1;
        if !there? {
            self.known.insert(key, None);
            return Ok(None);
        }
        Ok(Some(name))
    }

    fn define(&mut self, name: &str, conj: &[&'a Value]) -> Result<bool, Unsupported> {
        self.check_length()?;
        let outer = std::mem::take(&mut self.optional);
        let there = self.alternatives(name, conj);
        self.optional = outer;
        there
    }

    fn check_length(&self) -> Result<(), Unsupported> {
        let length = self.lark.length();
        if length > LONGEST {
            let reason =
                format!("needs a grammar of {length} characters so far; at most {LONGEST} are supported");
            return Err((String::new(), reason));
        }
        Ok(())
    }

    fn alternatives(&mut self, name: &str, conj: &[&'a Value]) -> Result<bool, Unsupported> {
        let (mut bodies, mut scalars, mut strings) = (Vec::new(), Vec::new(), Vec::new());
        for leaf in self.schemas.leaves(conj)?.iter() {
            match leaf {
                Leaf::Value(value) if value.is_array() || value.is_object() => {
                    bodies.push(self.literal(value));
                }
                Leaf::Value(Value::String(text)) if self.notation == Notation::Gemma4 && !text.is_empty() => {
                    strings.push(quoted(text));
                }
                Leaf::Value(Value::String(text)) if text.is_empty() => bodies.push(self.literal(&"".into())),
                Leaf::Value(value) => scalars.push(self.literal(value)),
                Leaf::Parts(parts) if parts.is_any() => bodies.push(self.anything()),
                Leaf::Parts(parts) => self.parts(parts, &mut bodies)?,
            }
        }
        // One terminal for all of them: an `enum` may be long.
        if !scalars.is_empty() {
            bodies.push(self.lark.terminal(&scalars.join(" | ")));
        }
        if !strings.is_empty() {
            let quote = self.lark.text(GEMMA_QUOTE);
            bodies.push(format!("{quote} {} {quote}", self.lark.terminal(&strings.join(" | "))));
        }
        let there = !bodies.is_empty();
        // What refers to itself alone is there by name, and nothing meets it.
        self.lark.define(name, if there { bodies.join(" | ") } else { "/[a&&b]/".to_owned() }.as_str());
        Ok(there)
    }

    pub(super) fn parts(&mut self, parts: &Parts<'a>, bodies: &mut Vec<String>) -> Result<(), Unsupported> {
        let none = |value: bool| parts.none.iter().any(|none| **none == Value::Bool(value));
        if parts.types & NULL != 0 {
            bodies.push("\"null\"".to_owned());
        }
        if parts.types & BOOLEAN != 0 {
            let each = [true, false].into_iter().filter(|&value| !none(value));
            bodies.extend(each.map(|value| format!("\"{value}\"")));
        }
        if parts.types & (INTEGER | NUMBER) != 0 {
            match self.number(parts)? {
                NumberRule::Texts(rx) if rx.is_never() => {}
                NumberRule::Texts(rx) => bodies.push(self.lark.terminal(&rx.lark(Quote::Plain))),
                NumberRule::Schema(schema) => bodies.push(self.lark.json(&schema)),
            }
        }
        if parts.types & STRING != 0 {
            let rx = parts.strings.rx(&parts.none);
            if !rx.is_never() {
                bodies.push(self.string(&rx));
            }
        }
        for (bit, kind) in [(ARRAY, "arrays"), (OBJECT, "objects")] {
            let excluded = |none: &&Value| if bit == ARRAY { none.is_array() } else { none.is_object() };
            if parts.types & bit != 0
                && let Some(none) = parts.none.iter().find(|none| excluded(none))
            {
                self.schemas.refuse(none, "", format!("excluded {kind} cannot be enforced"))?;
            }
        }
        if parts.types & ARRAY != 0
            && let Some(body) = self.array(&parts.arrays)?
        {
            bodies.push(body);
        }
        if parts.types & OBJECT != 0
            && let Some(body) = self.object(&parts.objects)?
        {
            bodies.push(body);
        }
        Ok(())
    }

    /// The numbers that are allowed; steps that cannot be enforced may be let go.
    pub(super) fn number(&mut self, parts: &Parts<'a>) -> Result<NumberRule, Unsupported> {
        let whole = parts.types & NUMBER == 0;
        let none: Vec<Decimal> =
            parts.none.iter().filter_map(|value| Decimal::of(value.as_number()?)).collect();
        match parts.numbers.rule(whole, &none) {
            Ok(rule) => Ok(rule),
            Err(reason) => {
                let root = self.schemas.root;
                self.schemas.refuse(root, "multipleOf", reason)?;
                let rest = parts.numbers.without_steps().rule(whole, &none);
                Ok(rest.unwrap_or_else(|_| NumberRule::Texts(Rx::never())))
            }
        }
    }

    /// A string between its quotes.
    fn string(&mut self, rx: &Rx) -> String {
        match self.notation {
            Notation::Gemma4 => {
                let quote = self.lark.text(GEMMA_QUOTE);
                // A control token is no text; spelled out, it would end the string as well.
                let inner = if quote.starts_with("<[") {
                    rx.clone()
                } else {
                    Rx::and([rx.clone(), Rx::holding(Rx::text(GEMMA_QUOTE)).not()])
                };
                if inner.is_empty() {
                    return format!("{quote} {quote}");
                }
                if quote.starts_with("<[") {
                    let inner = self.lark.terminal(&inner.lark(Quote::Plain));
                    return self.lark.rule(&format!("{quote} {inner} {quote}"));
                }
                let rest = self.lark.lazy(&format!("{} {quote}", inner.lark(Quote::Plain)));
                self.lark.rule(&format!("{quote} {rest}"))
            }
            _ => {
                let quoted = rx.pure().then(|| format!("/\"{}\"/", inside(&rx.lark(Quote::Json))));
                let quoted = quoted.filter(|_| !rx.is_empty());
                let body = quoted.unwrap_or_else(|| format!("\"\\\"\" {} \"\\\"\"", rx.lark(Quote::Json)));
                self.lark.terminal(&body)
            }
        }
    }

    fn comma(&self) -> &'static str {
        match self.notation {
            Notation::Tight => "\", \"",
            _ => "\",\"",
        }
    }

    fn colon(&self) -> &'static str {
        match self.notation {
            Notation::Tight => "\": \"",
            _ => "\":\"",
        }
    }

    fn name(&self, name: &str) -> String {
        match self.notation {
            Notation::Gemma4 => quoted(name),
            _ => quoted(&Value::from(name).to_string()),
        }
    }

    /// Any value.
    fn anything(&mut self) -> String {
        let key = vec![0];
        if let Some(Some(known)) = self.known.get(&key) {
            return known.clone();
        }
        let name = self.lark.reserve();
        self.known.insert(key, Some(name.clone()));
        let number = self.lark.terminal(&super::range::unbounded().lark(Quote::Plain));
        let string = self.string(&Rx::any());
        let (comma, colon) = (self.comma(), self.colon());
        let field = self.any_name(&Rx::any());
        let object = format!("\"{{\" ({field} {colon} {name} ({comma} {field} {colon} {name})*)? \"}}\"");
        let array = format!("\"[\" ({name} ({comma} {name})*)? \"]\"");
        let body = format!("\"null\" | \"true\" | \"false\" | {number} | {string} | {array} | {object}");
        self.lark.define(&name, &body);
        name
    }

    /// A name out of a set.
    fn any_name(&mut self, rx: &Rx) -> String {
        match self.notation {
            Notation::Gemma4 => {
                let mut bare = class(&BARE.map(|c| (c, c)));
                bare.negate();
                let rx = Rx::and([rx.clone(), Rx::Class(bare).repeat(1, None)]);
                self.lark.terminal(&rx.lark(Quote::Plain))
            }
            _ => self.string(rx),
        }
    }

    fn object(&mut self, objects: &Objects<'a>) -> Result<Option<String>, Unsupported> {
        let mut names: Vec<&'a str> = Vec::new();
        for source in &objects.sources {
            names.extend(source.named.into_iter().flat_map(|named| named.keys().map(String::as_str)));
        }
        names.extend(&objects.required);
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(*name));
        let required: HashSet<&str> = objects.required.iter().copied().collect();
        let runs = names.split(|name| required.contains(name));
        self.optional += runs.map(<[_]>::len).max().unwrap_or(0);
        if self.optional > OPTIONAL {
            let reason = format!(
                "allows more than {OPTIONAL} properties one after another to be left out, {} here; require \
                 some of them",
                self.optional
            );
            return Err((String::new(), reason));
        }
        let mut items = Vec::new();
        for name in &names {
            let bare = name.trim() == *name && !name.contains([':', ',', '[', ']', '{', '}', '<', '\n']);
            if self.notation == Notation::Gemma4 && !bare {
                let reason = "this name cannot be written in the model's format".to_owned();
                return Err((format!(".properties.{name}"), reason));
            }
            let required = required.contains(name);
            let rule = match self.property(objects, name) {
                Some(conj) => self.value(&conj)?,
                None => None,
            };
            match rule {
                Some(rule) => {
                    let pair = format!("{} {} {rule}", self.name(name), self.colon());
                    items.push((self.lark.rule(&pair), required));
                }
                None if required => return Ok(None),
                None => {}
            }
        }
        let extra = self.extras(objects, &names)?;
        let fields = Fields {
            items: &items,
            extra: extra.as_deref(),
            least: objects.least,
            most: objects.most,
            comma: self.comma(),
        };
        Ok(fields.rule(self.lark)?.map(|rule| format!("\"{{\" {rule} \"}}\"")))
    }

    /// What must hold for a property; `None` if it must not be there.
    pub(super) fn property(&mut self, objects: &Objects<'a>, name: &str) -> Option<Conj<'a>> {
        let mut conj = Conj::new();
        let mut known = false;
        for source in &objects.sources {
            let own = source.named.and_then(|named| named.get(name));
            let matching = source.patterns.iter().filter(|(_, rx, _)| rx.matches(name) == Some(true));
            let before = conj.len();
            conj.extend(own.into_iter().chain(matching.map(|(.., schema)| *schema)));
            if conj.len() == before {
                conj.extend(source.rest);
            }
            known |= conj.len() > before;
        }
        if !known {
            conj.extend(&objects.others);
        }
        let value = Value::from(name);
        let named = objects.names.is_empty() || self.schemas.accepts(&objects.names, &value);
        (named && !conj.iter().any(|schema| **schema == Value::Bool(false))).then_some(conj)
    }

    /// A name and a value that the schema does not name.
    pub(super) fn extras(
        &mut self,
        objects: &Objects<'a>,
        names: &[&str],
    ) -> Result<Option<String>, Unsupported> {
        let cells = self.cells(objects, names)?;
        let mut pairs = Vec::new();
        for (rx, conj) in cells {
            if let Some(rule) = self.value(&conj)? {
                pairs.push(format!("{} {} {rule}", self.any_name(&rx), self.colon()));
            }
        }
        Ok((!pairs.is_empty()).then(|| self.lark.rule(&pairs.join(" | "))))
    }

    /// Sets of other names, and what holds for their values.
    pub(super) fn cells(
        &mut self,
        objects: &Objects<'a>,
        names: &[&str],
    ) -> Result<Vec<(Rx, Conj<'a>)>, Unsupported> {
        let mut patterns: Vec<&'a str> = Vec::new();
        for (source, ..) in objects.sources.iter().flat_map(|source| &source.patterns) {
            if !patterns.contains(source) {
                patterns.push(source);
            }
        }
        if patterns.len() > PATTERNS {
            let first = objects.sources.iter().find_map(|source| source.patterns.first());
            let at = first.map_or(self.schemas.root, |(.., schema)| schema);
            let reason = format!("more than {PATTERNS} patterns at one place cannot be enforced");
            return Err(self.schemas.invalid(at, "", reason));
        }
        let mut allowed = Vec::new();
        if !objects.names.is_empty() {
            let mut texts = Vec::new();
            for leaf in self.schemas.leaves(&objects.names)?.iter() {
                match leaf {
                    Leaf::Value(Value::String(text)) => texts.push(Rx::text(text.as_str())),
                    Leaf::Parts(parts) if parts.types & STRING != 0 => {
                        texts.push(parts.strings.rx(&parts.none));
                    }
                    _ => {}
                }
            }
            allowed.push(Rx::alt(texts));
        }
        let mut cells = Vec::new();
        for cell in 0..1usize << patterns.len() {
            let within = |source: &str| {
                patterns.iter().position(|known| *known == source).is_some_and(|at| cell >> at & 1 == 1)
            };
            let mut conj = Conj::new();
            let mut known = false;
            for source in &objects.sources {
                let before = conj.len();
                conj.extend(source.patterns.iter().filter(|(p, ..)| within(p)).map(|(.., schema)| *schema));
                if conj.len() == before {
                    conj.extend(source.rest);
                }
                known |= conj.len() > before;
            }
            if !known {
                conj.extend(&objects.others);
            }
            if conj.iter().any(|schema| **schema == Value::Bool(false)) {
                continue;
            }
            let mut all = allowed.clone();
            for pattern in &patterns {
                let Ok(rx) = self.schemas.pattern(pattern) else { continue };
                all.push(if within(pattern) { (*rx).clone() } else { (*rx).clone().not() });
            }
            if !names.is_empty() {
                all.push(Rx::alt(names.iter().map(|name| Rx::text(*name))).not());
            }
            let rx = Rx::and(all);
            let (low, high) = rx.lengths();
            let few = rx.listed(64);
            if low > high || rx.is_never() || few.is_some_and(|few| few.is_empty()) {
                continue;
            }
            cells.push((rx, conj));
        }
        Ok(cells)
    }

    /// A value as it stands.
    pub(super) fn literal(&self, value: &Value) -> String {
        let (comma, colon) = (self.comma(), self.colon());
        match value {
            Value::String(text) if self.notation == Notation::Gemma4 => {
                let quote = self.lark.text(GEMMA_QUOTE);
                format!("{quote} {} {quote}", if text.is_empty() { String::new() } else { quoted(text) })
            }
            Value::Array(list) => {
                let items: Vec<String> = list.iter().map(|item| self.literal(item)).collect();
                format!("\"[\" {} \"]\"", items.join(&format!(" {comma} ")))
            }
            Value::Object(map) => {
                let pair = |(name, value): (&String, &Value)| {
                    format!("{} {colon} {}", self.name(name), self.literal(value))
                };
                let pairs: Vec<String> = map.iter().map(pair).collect();
                format!("\"{{\" {} \"}}\"", pairs.join(&format!(" {comma} ")))
            }
            scalar => quoted(&scalar.to_string().replace('\u{7f}', "\\u007f")),
        }
    }
}

/// Letters that bare names do not have.
const BARE: [char; 10] = [':', ',', '[', ']', '{', '}', '<', '"', ' ', '\n'];

/// The mark around strings.
const GEMMA_QUOTE: &str = "<|\"|>";

/// A terminal without its slashes.
fn inside(regex: &str) -> String {
    let inner = regex.strip_prefix('/').and_then(|r| r.strip_suffix('/')).unwrap_or(regex);
    format!("(?:{inner})")
}
