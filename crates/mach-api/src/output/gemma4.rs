//! Gemma 4: a call is written in a notation of its own, with bare keys and strings between `<|"|>`.
//!
//! ```text
//! <|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3,units:[<|"|>C<|"|>]}<tool_call|>
//! ```

use std::sync::Arc;

use super::prose::{Beginning, Prose, beginning, blank, first, held_back};
use super::values::{ToolSchemas, Types};
use super::{OutputParser, Part, arguments, escaped, is_name};

const OPEN: &str = "<|tool_call>";
const CLOSE: &str = "<tool_call|>";
const CALL: &str = "call:";
const QUOTE: &str = "<|\"|>";
const LONGEST_NAME: usize = 300;
const DEEPEST: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bracket {
    Object,
    Array,
}

/// What comes next between the braces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A key, or the end of an empty object.
    Key,
    /// A value, or the end of an empty array.
    Value,
    /// Inside a string.
    Text,
    AfterValue,
}

#[derive(Debug)]
enum State {
    Text,
    /// Behind `<|tool_call>`.
    Opened,
    Body(Place),
    Closing,
}

/// Reads Gemma 4's calls.
#[derive(Debug)]
pub(super) struct Gemma4 {
    schemas: Arc<ToolSchemas>,
    state: State,
    prose: Prose,
    rest: String,
    raw: String,
    name: String,
    /// The key at hand of the outermost object.
    key: String,
    open: Vec<(Bracket, usize)>,
}

impl Gemma4 {
    pub(super) fn new(schemas: Arc<ToolSchemas>) -> Self {
        Self {
            schemas,
            state: State::Text,
            prose: Prose::default(),
            rest: String::new(),
            raw: String::new(),
            name: String::new(),
            key: String::new(),
            open: Vec::new(),
        }
    }

    fn take(&mut self, bytes: usize) -> String {
        let taken: String = self.rest.drain(..bytes).collect();
        self.raw.push_str(&taken);
        taken
    }

    fn malformed(&mut self, out: &mut Vec<Part>) {
        out.push(Part::Malformed);
        let raw = std::mem::take(&mut self.raw);
        self.prose.restore(&raw, out);
        self.state = State::Text;
    }

    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        match self.state {
            State::Text => match first(&self.rest, &[OPEN]) {
                Some((at, _)) => {
                    let before: String = self.rest.drain(..at).collect();
                    self.prose.push(&before, out);
                    self.raw.clear();
                    self.take(OPEN.len());
                    self.state = State::Opened;
                    true
                }
                None => {
                    let sure = self.rest.len() - held_back(&self.rest, &[OPEN]);
                    let said: String = self.rest.drain(..sure).collect();
                    self.prose.push(&said, out);
                    false
                }
            },
            State::Opened => self.opened(out),
            State::Body(place) => match self.body(place, out) {
                Some(more) => more,
                None => {
                    out.push(Part::CallBroken(std::mem::take(&mut self.raw)));
                    self.state = State::Text;
                    true
                }
            },
            State::Closing => {
                self.rest.drain(..blank(&self.rest));
                if self.rest.is_empty() {
                    return false;
                }
                match beginning(&self.rest, &[CLOSE]) {
                    Beginning::Unsure => return false,
                    Beginning::With(tag) => {
                        self.rest.drain(..tag.len());
                    }
                    Beginning::Else => {}
                }
                self.state = State::Text;
                true
            }
        }
    }

    fn opened(&mut self, out: &mut Vec<Part>) -> bool {
        match self.rest.find('{') {
            Some(at) if at <= LONGEST_NAME => {
                let head = self.take(at + 1);
                let name = head[..at].trim().strip_prefix(CALL).map(str::trim).unwrap_or_default();
                if !is_name(name) {
                    self.malformed(out);
                    return true;
                }
                self.name = name.to_owned();
                self.prose.call();
                out.push(Part::CallStart { name: self.name.clone() });
                arguments(out, "{");
                self.open = vec![(Bracket::Object, 0)];
                self.state = State::Body(Place::Key);
                true
            }
            None if self.rest.len() <= LONGEST_NAME => false,
            _ => {
                self.malformed(out);
                true
            }
        }
    }

    fn close(&mut self, bracket: Bracket, out: &mut Vec<Part>) -> Option<bool> {
        self.open.pop().filter(|(open, _)| *open == bracket)?;
        arguments(out, if bracket == Bracket::Object { "}" } else { "]" });
        if self.open.is_empty() {
            out.push(Part::CallEnd);
            self.raw.clear();
            self.state = State::Closing;
        } else {
            self.state = State::Body(Place::AfterValue);
        }
        Some(true)
    }

    /// One step between the braces; `None` if this is no call.
    fn body(&mut self, place: Place, out: &mut Vec<Part>) -> Option<bool> {
        if place == Place::Text {
            return Some(self.text(out));
        }
        self.take(blank(&self.rest));
        let Some(c) = self.rest.chars().next() else { return Some(false) };
        let &(bracket, count) = self.open.last()?;
        match (place, c) {
            (Place::Key, '}') if count == 0 => {
                self.take(1);
                self.close(Bracket::Object, out)
            }
            (Place::Value, ']') if bracket == Bracket::Array && count == 0 => {
                self.take(1);
                self.close(Bracket::Array, out)
            }
            (Place::AfterValue, '}' | ']') => {
                self.take(1);
                self.close(if c == '}' { Bracket::Object } else { Bracket::Array }, out)
            }
            (Place::AfterValue, ',') => {
                self.take(1);
                arguments(out, ", ");
                let next = if bracket == Bracket::Object { Place::Key } else { Place::Value };
                self.state = State::Body(next);
                Some(true)
            }
            (Place::Key, _) => self.key(out),
            (Place::Value, _) => self.value(c, out),
            _ => None,
        }
    }

    fn key(&mut self, out: &mut Vec<Part>) -> Option<bool> {
        let at = match self.rest.find(':') {
            Some(at) if at <= LONGEST_NAME => at,
            None if self.rest.len() <= LONGEST_NAME => return Some(false),
            _ => return None,
        };
        let text = self.take(at + 1);
        let key = text[..at].trim();
        let key = key.strip_prefix(QUOTE).and_then(|key| key.strip_suffix(QUOTE)).unwrap_or(key);
        let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
        if key.is_empty() || key.contains(['{', '}', '[', ']', ',', '\n']) {
            return None;
        }
        if self.open.len() == 1 {
            self.key = key.to_owned();
        }
        arguments(out, &format!("\"{}\": ", escaped(key)));
        self.state = State::Body(Place::Value);
        Some(true)
    }

    fn value(&mut self, c: char, out: &mut Vec<Part>) -> Option<bool> {
        match c {
            '{' | '[' => {
                if self.open.len() >= DEEPEST {
                    return None;
                }
                self.count()?;
                self.take(1);
                let bracket = if c == '{' { Bracket::Object } else { Bracket::Array };
                self.open.push((bracket, 0));
                arguments(out, if c == '{' { "{" } else { "[" });
                self.state = State::Body(if c == '{' { Place::Key } else { Place::Value });
                return Some(true);
            }
            '<' => match beginning(&self.rest, &[QUOTE]) {
                Beginning::With(quote) => {
                    self.count()?;
                    self.take(quote.len());
                    arguments(out, "\"");
                    self.state = State::Body(Place::Text);
                    return Some(true);
                }
                Beginning::Unsure => return Some(false),
                Beginning::Else => {}
            },
            '"' => {
                let end = self.rest.char_indices().skip(1);
                let mut span = super::hermes::Span::default();
                span.ends_with('"');
                let Some(at) = end.into_iter().find_map(|(at, c)| span.ends_with(c).then_some(at)) else {
                    return Some(false);
                };
                self.count()?;
                let text = self.take(at + 1);
                serde_json::from_str::<String>(&text).ok()?;
                arguments(out, &text);
                self.state = State::Body(Place::AfterValue);
                return Some(true);
            }
            _ => {}
        }
        let Some(at) = self.rest.find([',', '}', ']']) else { return Some(false) };
        self.count()?;
        let text = self.take(at);
        let types = match self.open.len() {
            1 => self.schemas.parameter(&self.name, &self.key),
            _ => Types::ALL,
        };
        // Undeclared words are still numbers and truth values here: strings have quotes.
        let types = if types == Types::STRING && self.open.len() > 1 { Types::ALL } else { types };
        arguments(out, &types.json(text.trim()));
        self.state = State::Body(Place::AfterValue);
        Some(true)
    }

    fn count(&mut self) -> Option<()> {
        self.open.last_mut().map(|(_, count)| *count += 1)
    }

    fn text(&mut self, out: &mut Vec<Part>) -> bool {
        let end = self.rest.find(QUOTE);
        let sure = end.unwrap_or_else(|| self.rest.len() - held_back(&self.rest, &[QUOTE]));
        let text = self.take(sure);
        arguments(out, &escaped(&text));
        if end.is_none() {
            return false;
        }
        self.take(QUOTE.len());
        arguments(out, "\"");
        self.state = State::Body(Place::AfterValue);
        true
    }
}

impl OutputParser for Gemma4 {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.rest.push_str(text);
        while self.step(out) {}
    }

    fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        let rest = self.rest.len();
        match self.state {
            State::Closing if CLOSE.starts_with(self.rest.as_str()) => {}
            State::Text | State::Closing => {
                let rest = std::mem::take(&mut self.rest);
                self.prose.push(&rest, out);
                self.prose.finish(out);
            }
            State::Opened if cut => {
                self.take(rest);
                let raw = std::mem::take(&mut self.raw);
                self.prose.restore(&raw, out);
            }
            State::Opened => {
                self.take(rest);
                self.malformed(out);
            }
            State::Body(_) if cut => {}
            State::Body(_) => {
                self.take(rest);
                out.push(Part::CallBroken(std::mem::take(&mut self.raw)));
            }
        }
        self.rest.clear();
        self.state = State::Text;
    }
}
