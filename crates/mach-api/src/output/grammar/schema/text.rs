//! Parameters between tags, where strings stand as they are.

use serde_json::Value;

use super::super::super::values::Types;
use super::super::lark::{Lark, quoted};
use super::fields::Fields;
use super::leaves::{Leaf, Objects, Parts};
use super::numbers::NumberRule;
use super::pattern::pattern;
use super::rewrite::{ARRAY, BOOLEAN, INTEGER, NULL, NUMBER, OBJECT, STRING};
use super::rx::{Quote, Rx};
use super::{GrammarWriter, Unsupported};

/// How a format writes parameters as tags.
pub(in crate::output::grammar) struct Tagged {
    /// Around the name of a parameter: for text, for JSON.
    open: [(&'static str, &'static str); 2],
    close: &'static str,
    /// What ends a call.
    pub(in crate::output::grammar) call_close: &'static str,
    /// The tag itself tells text from JSON.
    told: bool,
    /// A pattern of what no text holds, for it would end there.
    ends: &'static str,
}

impl Tagged {
    pub(in crate::output::grammar) const QWEN: Self = Self {
        open: [("<parameter=", ">\n"), ("<parameter=", ">\n")],
        close: "\n</parameter>\n",
        call_close: "</function>",
        told: false,
        ends: "(?:^|\\n)[ \\t]*</?(?:parameter|function|tool_call)[=>]",
    };
    pub(in crate::output::grammar) const DSML: Self = Self {
        open: [
            ("<｜DSML｜parameter name=\"", "\" string=\"true\">"),
            ("<｜DSML｜parameter name=\"", "\" string=\"false\">"),
        ],
        close: "</｜DSML｜parameter>\n",
        call_close: "</｜DSML｜invoke>",
        told: true,
        ends: "</?｜DSML｜",
    };
}

/// Names that tags can hold.
const NAME: &str = "^[^<>\"\\s=]{1,64}$";
/// Texts that are read as another type, where there is a choice.
const OTHER: &str =
    "^\\s*(?:null|[Nn]one|(?i:true|false)|[-+]?(?:[0-9._]+(?:[eE][-+]?[0-9]+)?|(?i:nan|inf|infinity)))\\s*$";
/// Texts that begin like arrays and objects.
const BRACKET: &str = "^\\s*[\\[{(]";

/// The texts in which a pattern of ours is not found.
fn without(source: &str) -> Rx {
    pattern(source).map_or_else(|_| Rx::any(), Rx::not)
}

impl Lark<'_> {
    /// A text out of a set, and the tag that ends it.
    fn closed(&mut self, texts: &Rx, close: &str) -> String {
        match self.control_at(close) {
            Some(at) => {
                let texts = Rx::concat([texts.clone(), Rx::text(&close[..at])]);
                let terminal = self.terminal(&texts.lark(Quote::Plain));
                format!("{terminal} {}", self.text(&close[at..]))
            }
            None => self.lazy(&format!("{} {}", texts.lark(Quote::Plain), self.text(close))),
        }
    }
}

/// What a parameter may be.
#[derive(Default)]
struct Choice<'a> {
    /// Strings it may be, if it can be nothing else.
    listed: Option<Vec<&'a str>>,
    strings: Vec<Rx>,
    /// Numbers, booleans and `null`.
    scalars: Vec<Rx>,
    /// Rules for everything else.
    rules: Vec<String>,
}

impl<'a> GrammarWriter<'_, '_, 'a> {
    /// Parameters in the schema's order, those that are not required may be left out; and the call's end. `declared` is the
    /// schema as its reader knows it.
    pub(in crate::output::grammar) fn parameters(
        &mut self,
        conj: &[&'a Value],
        declared: &Value,
        tags: &Tagged,
    ) -> Result<Option<String>, Unsupported> {
        let end = self.lark.text(tags.call_close);
        let mut options = Vec::new();
        for leaf in self.schemas.leaves(conj)?.iter() {
            let Leaf::Parts(parts) = leaf else { continue };
            if parts.types & OBJECT == 0 {
                continue;
            }
            if let Some(rule) = self.tagged(&parts.objects, declared, tags)? {
                options.push(format!("{rule} {end}"));
            }
        }
        self.finish()?;
        Ok((!options.is_empty()).then(|| self.lark.rule(&options.join(" | "))))
    }

    fn tagged(
        &mut self,
        objects: &Objects<'a>,
        declared: &Value,
        tags: &Tagged,
    ) -> Result<Option<String>, Unsupported> {
        let mut names: Vec<&'a str> = Vec::new();
        for source in &objects.sources {
            names.extend(source.named.into_iter().flat_map(|named| named.keys().map(String::as_str)));
        }
        names.extend(&objects.required);
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(*name));
        let mut items = Vec::new();
        for name in &names {
            if name.contains(['>', '<', '\n', '"']) {
                let reason = "this name cannot be written in the model's format".to_owned();
                return Err((format!(".properties.{name}"), reason));
            }
            let required = objects.required.contains(name);
            let types = declared
                .pointer("/properties")
                .and_then(|all| all.get(*name))
                .map_or(Types::STRING, |schema| Types::of_schema(schema, declared));
            let rule = match self.property(objects, name) {
                Some(conj) => self.parameter(&|lark| lark.text(name), &conj, types, tags)?,
                None => None,
            };
            match rule {
                Some(rule) => items.push((rule, required)),
                None if required => return Ok(None),
                None => {}
            }
        }
        let spoken = |source: &super::leaves::Source<'_>| {
            !source.patterns.is_empty() || source.rest.is_some_and(Value::is_object)
        };
        let mut extras = Vec::new();
        if objects.sources.iter().any(spoken) {
            for (rx, conj) in self.cells(objects, &names)? {
                let plain = pattern(NAME).unwrap_or_else(|_| Rx::any());
                let rx = Rx::and([rx, plain]).lark(Quote::Plain);
                let name = |lark: &mut Lark<'_>| lark.terminal(&rx);
                extras.extend(self.parameter(&name, &conj, Types::STRING, tags)?);
            }
        }
        let extra = (!extras.is_empty()).then(|| self.lark.rule(&extras.join(" | ")));
        let (extra, least, most) = (extra.as_deref(), objects.least, objects.most);
        Fields { items: &items, extra, least, most, comma: "" }.rule(self.lark)
    }

    /// One parameter, which its reader takes for one of `types`.
    fn parameter(
        &mut self,
        name: &dyn Fn(&mut Lark<'_>) -> String,
        conj: &[&'a Value],
        types: Types,
        tags: &Tagged,
    ) -> Result<Option<String>, Unsupported> {
        let [head, json_head] = tags.open.map(|(before, after)| {
            let (before, after) = (self.lark.text(before), self.lark.text(after));
            format!("{before} {} {after}", name(self.lark))
        });
        let close = self.lark.text(tags.close);
        if !tags.told && !types.includes(Types::STRING) {
            let value = self.value(conj)?;
            return Ok(value.map(|value| self.lark.rule(&format!("{head} {value} {close}"))));
        }
        let only_text = !tags.told && types == Types::STRING;
        let choice = self.choice(conj, only_text, tags.told)?;
        let mut options = Vec::new();
        if let Some(listed) = &choice.listed {
            let plain = |text: &&&str| self.lark.control_at(text).is_none();
            let texts: Vec<String> = listed.iter().filter(plain).map(|text| quoted(text)).collect();
            let mut texts =
                if texts.is_empty() { texts } else { vec![self.lark.terminal(&texts.join(" | "))] };
            let marked = listed.iter().filter(|text| self.lark.control_at(text).is_some());
            texts.extend(marked.map(|text| self.lark.text(text)));
            if !texts.is_empty() {
                options.push(format!("{head} ({}) {close}", texts.join(" | ")));
            }
        } else {
            let strings = Rx::alt(choice.strings.iter().cloned());
            let free = strings.is_any();
            let mut strings = Rx::and([strings, without(tags.ends)]);
            let mixed = !tags.told && !only_text;
            // What is read as another type, and is of it, is right as well.
            if mixed && !(free && choice.rules.is_empty() && choice.scalars.iter().all(Rx::is_any)) {
                strings = Rx::and([strings, without(OTHER)]);
                if types.includes(Types::ARRAY) || types.includes(Types::OBJECT) {
                    strings = Rx::and([strings, without(BRACKET)]);
                }
            }
            let scalars = Rx::alt(choice.scalars.iter().cloned());
            if mixed {
                strings = Rx::alt([strings, scalars]);
            } else if !scalars.is_never() {
                let terminal = self.lark.terminal(&scalars.lark(Quote::Plain));
                options.push(format!("{json_head} {terminal} {close}"));
            }
            if !strings.is_never() {
                let (low, high) = strings.lengths();
                if low <= high {
                    options.push(format!("{head} {}", self.lark.closed(&strings, tags.close)));
                }
            }
        }
        let head = if tags.told { json_head } else { head };
        options.extend(choice.rules.iter().map(|rule| format!("{head} {rule} {close}")));
        Ok((!options.is_empty()).then(|| self.lark.rule(&options.join(" | "))))
    }

    fn choice(&mut self, conj: &[&'a Value], only_text: bool, told: bool) -> Result<Choice<'a>, Unsupported> {
        let mut out = Choice::default();
        let leaves = self.schemas.leaves(conj)?;
        if leaves.iter().all(|leaf| matches!(leaf, Leaf::Value(Value::String(_)))) {
            let text = |leaf: &Leaf<'a>| match leaf {
                Leaf::Value(value) => value.as_str(),
                Leaf::Parts(_) => None,
            };
            out.listed = Some(leaves.iter().filter_map(text).collect());
            return Ok(out);
        }
        for leaf in leaves.iter() {
            match leaf {
                Leaf::Value(Value::String(text)) => out.strings.push(Rx::text(text.as_str())),
                Leaf::Value(_) if only_text => {}
                Leaf::Value(value) if value.is_array() || value.is_object() => {
                    let literal = self.literal(value);
                    out.rules.push(self.lark.rule(&literal));
                }
                Leaf::Value(value) => out.scalars.push(Rx::text(value.to_string())),
                Leaf::Parts(parts) => {
                    if parts.types & STRING != 0 {
                        let rx = parts.strings.rx(&parts.none);
                        out.strings.extend((!rx.is_never()).then_some(rx));
                    }
                    if !only_text {
                        self.others(parts, told, &mut out)?;
                    }
                }
            }
        }
        if out.strings.iter().any(Rx::is_any) {
            out.strings = vec![Rx::any()];
        }
        Ok(out)
    }

    /// Everything but strings.
    fn others(&mut self, parts: &Parts<'a>, told: bool, out: &mut Choice<'a>) -> Result<(), Unsupported> {
        let none = |value: Value| parts.none.iter().any(|none| **none == value);
        if parts.types & NULL != 0 {
            out.scalars.push(Rx::text("null"));
        }
        if parts.types & BOOLEAN != 0 {
            let each = [true, false].into_iter().filter(|&value| !none(value.into()));
            out.scalars.extend(each.map(|value| Rx::text(value.to_string())));
        }
        if parts.types & (INTEGER | NUMBER) != 0 {
            match self.number(parts)? {
                NumberRule::Texts(rx) => out.scalars.push(rx),
                NumberRule::Schema(schema) if told => out.rules.push(self.lark.json(&schema)),
                NumberRule::Schema(_) => {
                    let root = self.schemas.root;
                    self.schemas.refuse(root, "multipleOf", "cannot be enforced beside strings")?;
                    let steps = parts.numbers.without_steps();
                    if let Ok(NumberRule::Texts(rx)) = steps.rule(parts.types & NUMBER == 0, &[]) {
                        out.scalars.push(rx);
                    }
                }
            }
        }
        let (arrays, objects) = (parts.types & ARRAY, parts.types & OBJECT);
        if arrays | objects != 0 {
            // Of any kind at all, they are text that is read as such.
            if parts.is_any() {
                return Ok(());
            }
            let parts = Parts { types: arrays | objects, ..parts.clone() };
            let mut bodies = Vec::new();
            self.parts(&parts, &mut bodies)?;
            if !bodies.is_empty() {
                out.rules.push(self.lark.rule(&bodies.join(" | ")));
            }
        }
        Ok(())
    }
}
