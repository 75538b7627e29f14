//! Calls written as nested tags, one tag a parameter: the shape that Qwen's and DeepSeek's formats share.

use std::sync::Arc;

use super::lookahead::{End, Inside, Look, Lookahead, Opening, Tag};
use super::prose::{Prose, blank, first, held_back};
use super::values::{ToolSchemas, Types};
use super::{OutputParser, Part, arguments, escaped};

/// What a tag says before its `>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) name: String,
    /// The tag itself tells whether the value is a string.
    pub(super) string: Option<bool>,
}

/// The tags of a family.
#[derive(Debug)]
pub(super) struct Tags {
    pub(super) wrapper_open: &'static [&'static str],
    pub(super) wrapper_close: &'static [&'static str],
    /// Calls are understood without a wrapper too.
    pub(super) bare: bool,
    /// Up to the head, which ends at `>`.
    pub(super) call_open: &'static str,
    pub(super) call_close: &'static str,
    pub(super) parameter_open: &'static str,
    pub(super) parameter_close: &'static str,
    /// Values stand on lines of their own.
    pub(super) lines: bool,
    pub(super) head: fn(&str) -> Option<Head>,
}

#[derive(Debug)]
enum State {
    Text,
    Body,
    Value(Value),
    /// Behind a call.
    After,
}

#[derive(Debug)]
struct Value {
    types: Types,
    /// Whether the line break before it was looked for.
    begun: bool,
    line_start: bool,
    /// What is there of it, unless it is a string, which goes out as it comes.
    text: String,
}

#[derive(Debug)]
pub(super) struct TagParser {
    tags: &'static Tags,
    schemas: Arc<ToolSchemas>,
    state: State,
    prose: Prose,
    /// Not looked at yet.
    rest: String,
    /// No more comes.
    ended: bool,
    /// What was looked at of the call at hand, and the white space before it.
    raw: String,
    /// Between a wrapper's tags.
    wrapped: bool,
    name: String,
    /// Names of the parameters so far.
    given: Vec<String>,
}

impl TagParser {
    pub(super) fn new(tags: &'static Tags, schemas: Arc<ToolSchemas>) -> Self {
        Self {
            tags,
            schemas,
            state: State::Text,
            prose: Prose::default(),
            rest: String::new(),
            ended: false,
            raw: String::new(),
            wrapped: false,
            name: String::new(),
            given: Vec::new(),
        }
    }

    fn look(&self) -> Lookahead<'_> {
        Lookahead { tags: self.tags, schemas: &self.schemas, ended: self.ended }
    }

    /// Moves bytes from what is left to what was looked at.
    fn take(&mut self, bytes: usize) -> String {
        let taken: String = self.rest.drain(..bytes).collect();
        self.raw.push_str(&taken);
        taken
    }

    fn broken(&mut self, out: &mut Vec<Part>) {
        self.prose.broken(std::mem::take(&mut self.raw), out);
        self.wrapped = false;
        self.state = State::Text;
    }

    fn open(&mut self, opening: Opening, out: &mut Vec<Part>) {
        self.raw = self.prose.call();
        self.take(opening.bytes);
        self.wrapped |= opening.wrapped;
        self.given.clear();
        out.push(Part::CallStart { name: opening.name.clone() });
        arguments(out, "{");
        self.name = opening.name;
        self.state = State::Body;
    }

    fn close(&mut self, out: &mut Vec<Part>) {
        arguments(out, "}");
        out.push(Part::CallEnd);
        self.raw.clear();
        self.state = State::After;
    }

    /// One step; false if more text is needed.
    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        match &self.state {
            State::Text => self.text(out),
            State::Body => self.body(out),
            State::Value(_) => self.value(out),
            State::After => self.after(out),
        }
    }

    fn say(&mut self, bytes: usize, out: &mut Vec<Part>) {
        let said: String = self.rest.drain(..bytes).collect();
        self.prose.push(&said, out);
    }

    fn text(&mut self, out: &mut Vec<Part>) -> bool {
        let bare = self.tags.bare.then_some(self.tags.call_open);
        let openings: Vec<&str> = self.tags.wrapper_open.iter().copied().chain(bare).collect();
        let Some((at, marker)) = first(&self.rest, &openings) else {
            let held = if self.ended { 0 } else { held_back(&self.rest, &openings) };
            self.say(self.rest.len() - held, out);
            return false;
        };
        self.say(at, out);
        let (line_start, fenced) = (self.prose.lines().at_start(), self.prose.lines().fenced());
        let opening = match fenced {
            true => Look::No,
            false => self.look().opening(&self.rest, line_start, false),
        };
        match opening {
            Look::Yes(opening) => self.open(opening, out),
            Look::More => return false,
            Look::No => {
                // Inside a line, or in a block of code, a tag is mentioned.
                let behind = self.rest[marker.len()..].chars().next();
                let ends_line = marker != self.tags.call_open && behind.is_none_or(|c| c == '\n');
                if !fenced && (line_start || ends_line) {
                    let marker: String = self.rest.drain(..marker.len()).collect();
                    self.prose.restore(&marker, out);
                } else {
                    self.say(marker.len(), out);
                }
            }
        }
        true
    }

    fn body(&mut self, out: &mut Vec<Part>) -> bool {
        self.take(blank(&self.rest));
        if self.rest.is_empty() && !self.ended {
            return false;
        }
        match self.look().tag(&self.rest) {
            Look::Yes((Tag::ParameterOpen(head), bytes)) if !head.name.is_empty() => {
                self.take(bytes);
                self.parameter(head, out);
            }
            // A closing tag too many.
            Look::Yes((Tag::ParameterClose, bytes)) => {
                self.take(bytes);
            }
            Look::Yes((Tag::CallClose, bytes)) => {
                self.take(bytes);
                self.close(out);
            }
            Look::Yes((Tag::WrapperClose | Tag::WrapperOpen, _)) => self.close(out),
            Look::Yes((Tag::CallOpen(head), _)) if self.schemas.declares(&head.name) => self.close(out),
            Look::More => return false,
            _ if self.ended => return false,
            _ => self.broken(out),
        }
        true
    }

    fn parameter(&mut self, head: Head, out: &mut Vec<Part>) {
        let declared = self.schemas.parameter(&self.name, &head.name).unwrap_or(Types::STRING);
        let types = match head.string {
            Some(true) if declared.includes(Types::STRING) => Types::STRING,
            Some(false) if declared != Types::STRING => declared.without_string(),
            _ => declared,
        };
        if !self.given.is_empty() {
            arguments(out, ", ");
        }
        arguments(out, &format!("\"{}\": ", escaped(&head.name)));
        self.given.push(head.name);
        if types == Types::STRING {
            arguments(out, "\"");
        }
        self.state = State::Value(Value { types, begun: false, line_start: false, text: String::new() });
    }

    fn value(&mut self, out: &mut Vec<Part>) -> bool {
        let tags = self.tags;
        let look = Lookahead { tags, schemas: &self.schemas, ended: self.ended };
        let State::Value(value) = &mut self.state else { return false };
        if !value.begun {
            if self.rest.is_empty() {
                return false;
            }
            value.begun = true;
            if tags.lines && self.rest.starts_with('\n') {
                self.raw.push('\n');
                self.rest.remove(0);
                value.line_start = true;
            }
        }
        let inside = Inside {
            function: &self.name,
            given: &self.given,
            wrapped: self.wrapped,
            line_start: value.line_start,
            string: value.types.includes(Types::STRING),
        };
        let end = look.value_end(&self.rest, &inside);
        let (sure, closing) = match end {
            End::Open(sure) => (sure, None),
            End::Closed(at, bytes) if tags.lines => (line_break(&self.rest, at), Some(at + bytes)),
            End::Closed(at, bytes) => (at, Some(at + bytes)),
            End::Cut(at) => (line_break(&self.rest, at), Some(at)),
        };
        let text = &self.rest[..sure];
        if value.types == Types::STRING {
            arguments(out, &escaped(text));
        } else {
            value.text.push_str(text);
        }
        value.line_start &= sure == 0;
        let Some(closing) = closing else {
            self.take(sure);
            return false;
        };
        match value.types {
            Types::STRING => arguments(out, "\""),
            types => arguments(out, &types.json(&value.text)),
        }
        self.take(closing);
        self.state = State::Body;
        true
    }

    fn after(&mut self, out: &mut Vec<Part>) -> bool {
        self.rest.drain(..blank(&self.rest));
        if self.rest.is_empty() {
            return false;
        }
        match self.look().tag(&self.rest) {
            Look::Yes((tag @ (Tag::WrapperClose | Tag::CallClose | Tag::ParameterClose), bytes)) => {
                self.rest.drain(..bytes);
                self.wrapped &= tag != Tag::WrapperClose;
                return true;
            }
            Look::More => return false,
            Look::Yes((Tag::CallOpen(_), _)) if self.wrapped || self.tags.bare => {
                match self.look().opening(&self.rest, true, self.wrapped) {
                    Look::Yes(opening) => {
                        self.open(opening, out);
                        return true;
                    }
                    Look::More => return false,
                    Look::No => {}
                }
            }
            _ => {}
        }
        let closing = |tag: &&str| tag.starts_with(self.rest.as_str());
        if self.ended && self.wrapped && self.tags.wrapper_close.iter().any(closing) {
            self.rest.clear();
        }
        // Another wrapper is found there.
        self.wrapped = false;
        self.state = State::Text;
        true
    }
}

/// Where the line break before a tag is, if the tag has a line of its own; else where the tag is.
fn line_break(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').filter(|&line| text[line..at].trim().is_empty()).unwrap_or(at)
}

impl OutputParser for TagParser {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.rest.push_str(text);
        while self.step(out) {}
    }

    fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        self.ended = true;
        while self.step(out) {}
        let rest = self.rest.len();
        match &self.state {
            State::Text | State::After => {}
            State::Body | State::Value(_) if cut => {}
            State::Body => {
                let closing = |tag: &&str| tag.starts_with(self.rest.as_str());
                if closing(&self.tags.call_close) || self.tags.wrapper_close.iter().any(closing) {
                    self.close(out);
                } else {
                    self.take(rest);
                    self.broken(out);
                }
            }
            State::Value(_) => {
                self.take(rest);
                self.broken(out);
            }
        }
        self.prose.finish(out);
        self.rest.clear();
        self.state = State::Text;
    }

    fn in_call(&self) -> bool {
        matches!(self.state, State::Body | State::Value(_))
    }
}
