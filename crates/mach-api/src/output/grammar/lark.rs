//! Writing Lark.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::{Value, json};

/// A grammar in the making.
pub(super) struct Lark<'a> {
    markers: Vec<&'static str>,
    control: &'a dyn Fn(&str) -> Option<u32>,
    rules: String,
    count: usize,
    /// Terminals and rules by what they say.
    known: HashMap<String, String>,
}

impl<'a> Lark<'a> {
    pub(super) fn new(markers: Vec<&'static str>, control: &'a dyn Fn(&str) -> Option<u32>) -> Self {
        Self { markers, control, rules: String::new(), count: 0, known: HashMap::new() }
    }

    fn name(&mut self) -> String {
        self.count += 1;
        format!("r{}", self.count)
    }

    /// Adds a rule and gives its name.
    pub(super) fn rule(&mut self, body: &str) -> String {
        let name = self.name();
        // A `String` takes every write.
        let _ = writeln!(self.rules, "{name}: {body}");
        name
    }

    /// The terminal of an expression; its name.
    pub(super) fn terminal(&mut self, body: &str) -> String {
        if let Some(known) = self.known.get(body) {
            return known.clone();
        }
        self.count += 1;
        let name = format!("T{}", self.count);
        let _ = writeln!(self.rules, "{name}: {body}");
        self.known.insert(body.to_owned(), name.clone());
        name
    }

    /// A terminal that ends as soon as it can; its rule's name.
    pub(super) fn lazy(&mut self, body: &str) -> String {
        let terminal = self.terminal(body);
        let key = format!("lazy {terminal}");
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let name = self.name();
        let _ = writeln!(self.rules, "{name}[lazy]: {terminal}");
        self.known.insert(key, name.clone());
        name
    }

    /// A schema that llguidance reads itself, without white space; its rule's name.
    pub(super) fn json(&mut self, schema: &Value) -> String {
        let mut schema = schema.clone();
        schema["x-guidance"] = json!({"whitespace_flexible": false});
        let body = format!("%json {schema}");
        if let Some(known) = self.known.get(&body) {
            return known.clone();
        }
        let name = self.rule(&body);
        self.known.insert(body, name.clone());
        name
    }

    /// Characters so far.
    pub(super) fn length(&self) -> usize {
        self.rules.len()
    }

    /// A name for a rule that is defined later.
    pub(super) fn reserve(&mut self) -> String {
        self.name()
    }

    /// Defines it.
    pub(super) fn define(&mut self, name: &str, body: &str) {
        let _ = writeln!(self.rules, "{name}: {body}");
    }

    /// The first control token in a text: where, how long, its id.
    fn first_control(&self, text: &str) -> Option<(usize, usize, u32)> {
        let found = self.markers.iter().filter_map(|marker| {
            let id = (self.control)(marker)?;
            Some((text.find(marker)?, marker.len(), id))
        });
        found.min()
    }

    /// Where the first control token in a text stands.
    pub(super) fn control_at(&self, text: &str) -> Option<usize> {
        self.first_control(text).map(|(at, ..)| at)
    }

    /// A text as it stands; control tokens in it by their ids.
    pub(super) fn text(&self, text: &str) -> String {
        let (mut out, mut rest) = (Vec::new(), text);
        while let Some((at, len, id)) = self.first_control(rest) {
            if at > 0 {
                out.push(quoted(&rest[..at]));
            }
            out.push(format!("<[{id}]>"));
            rest = &rest[at + len..];
        }
        if !rest.is_empty() {
            out.push(quoted(rest));
        }
        out.join(" ")
    }

    /// Anything up to and with the first occurrence of a text.
    pub(super) fn until(&mut self, end: &str) -> String {
        match self.first_control(end) {
            Some((at, ..)) => {
                let end = self.text(&end[at..]);
                self.rule(&format!("ANY {end}"))
            }
            None => {
                let name = self.name();
                let _ = writeln!(self.rules, "{name}[lazy]: /(.|\\n)*{}/", escaped(end));
                name
            }
        }
    }

    /// The whole grammar as a part of another one, in which `space` may stand between any two terminals.
    pub(super) fn nested(self, start: &str, space: &str) -> String {
        let options = json!({"ignore_once": true});
        format!("%lark {{\n%llguidance {options}\n%ignore /{space}/\nstart: {start}\n{}}}", self.rules)
    }

    /// The whole grammar.
    pub(super) fn finish(self, start: &str) -> String {
        format!("start: {start}\n{}ANY: /(.|\\n)*/\n", self.rules)
    }
}

/// A text in quotes.
pub(super) fn quoted(text: &str) -> String {
    // The only control character that JSON leaves as it is.
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A text as a regular expression between slashes.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            // With a backslash these two are word boundaries.
            '<' | '>' => out.push(c),
            c if c.is_ascii_punctuation() => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}
