//! Rules for values, as JSON or in Gemma 4's notation.

use std::collections::HashMap;

use serde_json::Value;

use super::super::lark::{Lark, quoted};
use super::Unsupported;
use super::decimal::Decimal;
use super::fields::{Fields, times};
use super::leaves::{Arrays, Conj, Leaf, Objects, Parts, Schemas, key};
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
const LONGEST: usize = 400_000;
/// Rules nest this deep before the rest waits for its turn.
const DEEP: usize = 40;
/// Items that are told apart, all orders of them and in the schema's order.
const ORDERS: usize = 6;
const DISTINCT: usize = 256;
/// Patterns of property names at one place.
const PATTERNS: usize = 6;

/// Writes the rules of one schema document.
pub(in crate::output::grammar) struct Writer<'w, 'l, 'a> {
    pub(in crate::output::grammar) lark: &'w mut Lark<'l>,
    pub(in crate::output::grammar) schemas: &'w mut Schemas<'a>,
    notation: Notation,
    known: HashMap<Vec<usize>, Option<String>>,
    waiting: Vec<(String, Conj<'a>)>,
    depth: usize,
}

impl<'w, 'l, 'a> Writer<'w, 'l, 'a> {
    pub(in crate::output::grammar) fn new(
        lark: &'w mut Lark<'l>,
        schemas: &'w mut Schemas<'a>,
        notation: Notation,
    ) -> Self {
        Self { lark, schemas, notation, known: HashMap::new(), waiting: Vec::new(), depth: 0 }
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
        Ok(())
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
        if self.lark.length() > LONGEST {
            return Err((String::new(), "is too large".to_owned()));
        }
        let mut bodies = Vec::new();
        for leaf in self.schemas.leaves(conj)?.iter() {
            match leaf {
                Leaf::Value(value) => bodies.push(self.literal(value)),
                Leaf::Parts(parts) if parts.is_any() => bodies.push(self.anything()),
                Leaf::Parts(parts) => self.parts(parts, &mut bodies)?,
            }
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
        let mut items = Vec::new();
        for name in &names {
            let bare = name.trim() == *name && !name.contains([':', ',', '[', ']', '{', '}', '<', '\n']);
            if self.notation == Notation::Gemma4 && !bare {
                let reason = "this name cannot be written in the model's format".to_owned();
                return Err((format!(".properties.{name}"), reason));
            }
            let required = objects.required.contains(name);
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
                        texts.push(parts.strings.rx(&parts.none))
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

    fn array(&mut self, arrays: &Arrays<'a>) -> Result<Option<String>, Unsupported> {
        let comma = self.comma();
        let longest = arrays.sources.iter().map(|(prefix, _)| prefix.len()).max().unwrap_or(0);
        let item = |i: usize| -> Conj<'a> {
            arrays.sources.iter().filter_map(|(prefix, rest)| prefix.get(i).or(*rest)).collect()
        };
        let rest: Conj<'a> = arrays.sources.iter().filter_map(|(_, rest)| *rest).collect();
        let most = arrays.most.unwrap_or(u64::MAX);
        if arrays.least > most {
            return Ok(None);
        }
        if let Some(at) = arrays.unique.filter(|_| most > 1) {
            if longest == 0
                && arrays.contains.is_empty()
                && let Some(values) = self.distinct(&rest)?
            {
                return self.different(&values, arrays);
            }
            self.schemas.refuse(
                at,
                "uniqueItems",
                "can be enforced for few values only, like those of an `enum`",
            )?;
        }
        if let [(at, inner, least)] = arrays.contains[..] {
            if longest == 0 && least == 1 && arrays.least.max(arrays.most.unwrap_or(0)) <= 32 {
                return self.containing(&rest, inner, arrays);
            }
            self.schemas.refuse(at, "contains", "cannot be enforced beside such lengths")?;
        } else if let Some((at, ..)) = arrays.contains.first() {
            self.schemas.refuse(at, "contains", "cannot be enforced more than once")?;
        }
        // From the end: what may follow behind so many items.
        let mut tail = self.more(longest as u64, arrays, &rest)?;
        for i in (0..longest).rev() {
            let end = i as u64 >= arrays.least;
            let item = if i as u64 >= most { None } else { self.value(&item(i))? };
            let body = item
                .zip(tail)
                .map(|(item, tail)| format!("{} {item} {tail}", if i > 0 { comma } else { "" }));
            tail = match (body, end) {
                (Some(body), true) => Some(self.lark.rule(&format!("\"\" | {body}"))),
                (Some(body), false) => Some(self.lark.rule(&body)),
                (None, true) => Some("\"\"".to_owned()),
                (None, false) => None,
            };
        }
        Ok(tail.map(|tail| format!("\"[\" {tail} \"]\"")))
    }

    /// Items behind the first `count`.
    fn more(
        &mut self,
        count: u64,
        arrays: &Arrays<'a>,
        rest: &[&'a Value],
    ) -> Result<Option<String>, Unsupported> {
        let least = arrays.least.saturating_sub(count);
        let most = arrays.most.map(|most| most.saturating_sub(count));
        let item = if most == Some(0) { None } else { self.value(rest)? };
        let Some(item) = item else { return Ok((least == 0).then(|| "\"\"".to_owned())) };
        let comma = self.comma();
        let more = format!("{comma} {item}");
        if count > 0 {
            return Ok(Some(self.lark.rule(&times(&more, least, most))));
        }
        let some = format!("{item} {}", times(&more, least.saturating_sub(1), most.map(|most| most - 1)));
        Ok(Some(self.lark.rule(&if least == 0 { format!("\"\" | {some}") } else { some })))
    }

    /// Arrays in which at least one item meets `inner` too.
    fn containing(
        &mut self,
        rest: &[&'a Value],
        inner: &'a Value,
        arrays: &Arrays<'a>,
    ) -> Result<Option<String>, Unsupported> {
        let comma = self.comma();
        let all: Conj<'a> = rest.iter().copied().chain([inner]).collect();
        let Some(inner) = self.value(&all)? else { return Ok(None) };
        let Some(item) = self.value(rest)? else { return Ok(None) };
        let (before, behind) = (format!("{item} {comma}"), format!("{comma} {item}"));
        let least = arrays.least.max(1);
        let mut options = Vec::new();
        for count in 0..arrays.most.unwrap_or(least) {
            let last = arrays.most.is_none() && count + 1 == least;
            let front = if last { times(&before, count, None) } else { times(&before, count, Some(count)) };
            let back =
                times(&behind, least.saturating_sub(1 + count), arrays.most.map(|most| most - 1 - count));
            options.push(format!("{front} {inner} {back}"));
        }
        let rule = self.lark.rule(&options.join(" | "));
        Ok(Some(format!("\"[\" {rule} \"]\"")))
    }

    /// The values that items may have, if they are few.
    fn distinct(&mut self, conj: &[&'a Value]) -> Result<Option<Vec<String>>, Unsupported> {
        let mut out: Vec<String> = Vec::new();
        for leaf in self.schemas.leaves(conj)?.iter() {
            match leaf {
                Leaf::Value(value) => out.push(self.literal(value)),
                Leaf::Parts(parts) if parts.types & (ARRAY | OBJECT) == 0 => {
                    let mut texts = Vec::new();
                    if parts.types & (INTEGER | NUMBER) != 0 {
                        let whole = parts.types & NUMBER == 0;
                        match self.number(parts)? {
                            NumberRule::Texts(rx) if whole => match rx.listed(DISTINCT) {
                                Some(list) => texts.extend(list.iter().map(|text| quoted(text))),
                                None => return Ok(None),
                            },
                            _ => return Ok(None),
                        }
                    }
                    if parts.types & STRING != 0 {
                        match parts.strings.rx(&parts.none).listed(DISTINCT) {
                            Some(list) => {
                                texts.extend(list.into_iter().map(|text| self.literal(&Value::from(text))));
                            }
                            None => return Ok(None),
                        }
                    }
                    let rest = Parts { types: parts.types & (NULL | BOOLEAN), ..parts.as_ref().clone() };
                    self.parts(&rest, &mut texts)?;
                    out.extend(texts);
                }
                Leaf::Parts(_) => return Ok(None),
            }
            if out.len() > DISTINCT {
                return Ok(None);
            }
        }
        let mut seen = std::collections::HashSet::new();
        out.retain(|text| seen.insert(text.clone()));
        Ok(Some(out))
    }

    /// Arrays of different values: in any order if they are very few, else in the schema's.
    fn different(&mut self, values: &[String], arrays: &Arrays<'a>) -> Result<Option<String>, Unsupported> {
        let comma = self.comma();
        let most = arrays.most.unwrap_or(u64::MAX).min(values.len() as u64);
        if arrays.least > most {
            return Ok(None);
        }
        if values.len() > ORDERS {
            let items: Vec<(String, bool)> = values.iter().map(|value| (value.clone(), false)).collect();
            let fields = Fields {
                items: &items,
                extra: None,
                least: arrays.least,
                most: arrays.most.map(|_| most),
                comma,
            };
            return Ok(fields.rule(self.lark)?.map(|rule| format!("\"[\" {rule} \"]\"")));
        }
        // Behind each set of values that were there: more of the others.
        let sets = 1usize << values.len();
        let mut rules: Vec<Option<String>> = vec![None; sets];
        for set in (0..sets).rev() {
            let count = u64::from(set.count_ones());
            let mut options = Vec::new();
            if count >= arrays.least && count <= most {
                options.push("\"\"".to_owned());
            }
            for (i, value) in values.iter().enumerate().filter(|(i, _)| set >> i & 1 == 0 && count < most) {
                if let Some(rest) = &rules[set | 1 << i] {
                    options.push(format!("{} {value} {rest}", if count > 0 { comma } else { "" }));
                }
            }
            rules[set] = (!options.is_empty()).then(|| self.lark.rule(&options.join(" | ")));
        }
        Ok(rules.swap_remove(0).map(|rule| format!("\"[\" {rule} \"]\"")))
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
