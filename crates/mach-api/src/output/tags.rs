//! Calls written as nested tags, one tag a parameter: the shape that Qwen's and DeepSeek's formats share.

use std::sync::Arc;

use super::prose::{Beginning, Prose, beginning, blank, first, held_back};
use super::values::{ToolSchemas, Types};
use super::{OutputParser, Part, arguments, escaped, is_name};

/// Bytes of a tag's head, beyond which it is none.
const LONGEST_HEAD: usize = 512;

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
    /// `parameter_close` on a line of its own.
    pub(super) parameter_close_line: &'static str,
    /// Values stand on lines of their own.
    pub(super) lines: bool,
    pub(super) head: fn(&str) -> Option<Head>,
}

#[derive(Debug)]
enum State {
    Text,
    /// Behind the wrapper's beginning.
    Wrapper,
    CallHead,
    Body,
    ParameterHead,
    Value(Value),
    /// Behind a call.
    After,
}

#[derive(Debug)]
struct Value {
    types: Types,
    /// Whether the newline before it was looked for.
    begun: bool,
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
    /// What was looked at of the call at hand.
    raw: String,
    /// Between a wrapper's tags.
    wrapped: bool,
    name: String,
    parameters: usize,
}

impl TagParser {
    pub(super) fn new(tags: &'static Tags, schemas: Arc<ToolSchemas>) -> Self {
        Self {
            tags,
            schemas,
            state: State::Text,
            prose: Prose::default(),
            rest: String::new(),
            raw: String::new(),
            wrapped: false,
            name: String::new(),
            parameters: 0,
        }
    }

    fn openings(&self) -> Vec<&'static str> {
        let bare = self.tags.bare.then_some(self.tags.call_open);
        self.tags.wrapper_open.iter().copied().chain(bare).collect()
    }

    /// Moves bytes from what is left to what was looked at.
    fn take(&mut self, bytes: usize) -> String {
        let taken: String = self.rest.drain(..bytes).collect();
        self.raw.push_str(&taken);
        taken
    }

    fn open(&mut self, marker: &str) {
        self.raw.clear();
        self.take(marker.len());
        self.state = if marker == self.tags.call_open {
            State::CallHead
        } else {
            self.wrapped = true;
            State::Wrapper
        };
    }

    fn malformed(&mut self, out: &mut Vec<Part>) {
        out.push(Part::Malformed);
        let raw = std::mem::take(&mut self.raw);
        self.prose.restore(&raw, out);
        self.wrapped = false;
        self.state = State::Text;
    }

    fn broken(&mut self, out: &mut Vec<Part>) {
        out.push(Part::CallBroken(std::mem::take(&mut self.raw)));
        self.wrapped = false;
        self.state = State::Text;
    }

    fn close(&mut self, out: &mut Vec<Part>) {
        arguments(out, "}");
        out.push(Part::CallEnd);
        self.raw.clear();
        self.state = State::After;
    }

    /// One step; false if more text is needed.
    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        match &mut self.state {
            State::Text => {
                let openings = self.openings();
                match first(&self.rest, &openings) {
                    Some((at, marker)) => {
                        let before: String = self.rest.drain(..at).collect();
                        self.prose.push(&before, out);
                        self.open(marker);
                        true
                    }
                    None => {
                        let sure = self.rest.len() - held_back(&self.rest, &openings);
                        let said: String = self.rest.drain(..sure).collect();
                        self.prose.push(&said, out);
                        false
                    }
                }
            }
            State::Wrapper => {
                self.take(blank(&self.rest));
                match beginning(&self.rest, &[self.tags.call_open]) {
                    Beginning::With(marker) => {
                        self.take(marker.len());
                        self.state = State::CallHead;
                        true
                    }
                    Beginning::Unsure => false,
                    Beginning::Else => {
                        self.malformed(out);
                        true
                    }
                }
            }
            State::CallHead => match self.head() {
                None => false,
                Some(Some(head)) if is_name(&head.name) => {
                    self.prose.call();
                    self.name = head.name;
                    self.parameters = 0;
                    out.push(Part::CallStart { name: self.name.clone() });
                    arguments(out, "{");
                    self.state = State::Body;
                    true
                }
                Some(_) => {
                    self.malformed(out);
                    true
                }
            },
            State::Body => self.body(out),
            State::ParameterHead => match self.head() {
                None => false,
                Some(Some(head)) if !head.name.is_empty() => {
                    self.parameter(&head, out);
                    true
                }
                Some(_) => {
                    self.broken(out);
                    true
                }
            },
            State::Value(_) => self.value(out),
            State::After => self.after(),
        }
    }

    /// The head of the tag at hand: `None` if it goes on, `Some(None)` if it is none.
    fn head(&mut self) -> Option<Option<Head>> {
        let end = self.rest.find(['>', '<', '\n']);
        match end {
            Some(at) if at <= LONGEST_HEAD && self.rest[at..].starts_with('>') => {
                let text = self.take(at + 1);
                Some((self.tags.head)(&text[..at]))
            }
            Some(_) => Some(None),
            None => (self.rest.len() > LONGEST_HEAD).then_some(None),
        }
    }

    fn body(&mut self, out: &mut Vec<Part>) -> bool {
        self.take(blank(&self.rest));
        let tags = self.tags;
        let markers: Vec<&str> = [tags.parameter_open, tags.call_close]
            .into_iter()
            .chain(tags.wrapper_close.iter().copied())
            .collect();
        match beginning(&self.rest, &markers) {
            Beginning::With(marker) if marker == tags.parameter_open => {
                self.take(marker.len());
                self.state = State::ParameterHead;
                true
            }
            Beginning::With(marker) => {
                if marker == tags.call_close {
                    self.take(marker.len());
                }
                self.close(out);
                true
            }
            Beginning::Unsure => false,
            Beginning::Else => {
                self.broken(out);
                true
            }
        }
    }

    fn parameter(&mut self, head: &Head, out: &mut Vec<Part>) {
        let declared = self.schemas.parameter(&self.name, &head.name);
        let types = match head.string {
            Some(true) => Types::STRING,
            Some(false) => declared.without_string(),
            None => declared,
        };
        if self.parameters > 0 {
            arguments(out, ", ");
        }
        self.parameters += 1;
        arguments(out, &format!("\"{}\": ", escaped(&head.name)));
        if types == Types::STRING {
            arguments(out, "\"");
        }
        self.state = State::Value(Value { types, begun: false, text: String::new() });
    }

    fn value(&mut self, out: &mut Vec<Part>) -> bool {
        let tags = self.tags;
        let State::Value(value) = &mut self.state else { return false };
        if !value.begun {
            if self.rest.is_empty() {
                return false;
            }
            value.begun = true;
            if tags.lines && self.rest.starts_with('\n') {
                self.raw.push('\n');
                self.rest.remove(0);
            }
        }
        let end = self.rest.find(tags.parameter_close);
        let sure = match end {
            Some(at) if tags.lines && self.rest[..at].ends_with('\n') => at - 1,
            Some(at) => at,
            None if tags.lines => {
                self.rest.len() - held_back(&self.rest, &[tags.parameter_close_line, tags.parameter_close])
            }
            None => self.rest.len() - held_back(&self.rest, &[tags.parameter_close]),
        };
        let text = &self.rest[..sure];
        if value.types == Types::STRING {
            arguments(out, &escaped(text));
        } else {
            value.text.push_str(text);
        }
        let Some(end) = end else {
            self.take(sure);
            return false;
        };
        match value.types {
            Types::STRING => arguments(out, "\""),
            types => arguments(out, &types.json(&value.text)),
        }
        self.take(end + tags.parameter_close.len());
        self.state = State::Body;
        true
    }

    fn after(&mut self) -> bool {
        self.rest.drain(..blank(&self.rest));
        if self.rest.is_empty() {
            return false;
        }
        let tags = self.tags;
        let close: &[&str] = if self.wrapped { tags.wrapper_close } else { &[] };
        let call = (self.wrapped || tags.bare).then_some(tags.call_open);
        let markers: Vec<&str> = close.iter().copied().chain(call).collect();
        match beginning(&self.rest, &markers) {
            Beginning::With(marker) if marker == tags.call_open => self.open(marker),
            Beginning::With(marker) => {
                self.rest.drain(..marker.len());
                self.wrapped = false;
            }
            Beginning::Unsure => return false,
            // Another wrapper is found there.
            Beginning::Else => {
                self.wrapped = false;
                self.state = State::Text;
            }
        }
        true
    }
}

impl OutputParser for TagParser {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.rest.push_str(text);
        while self.step(out) {}
    }

    fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        let rest = self.rest.len();
        match &mut self.state {
            State::Text | State::After => {
                let mut rest = std::mem::take(&mut self.rest);
                let closing = |tag: &&str| tag.starts_with(rest.as_str());
                if self.wrapped && self.tags.wrapper_close.iter().any(closing) {
                    rest.clear();
                }
                self.prose.push(&rest, out);
                self.prose.finish(out);
            }
            State::Wrapper | State::CallHead => {
                self.take(rest);
                if cut {
                    let raw = std::mem::take(&mut self.raw);
                    self.prose.restore(&raw, out);
                } else {
                    self.malformed(out);
                }
            }
            State::Body | State::ParameterHead | State::Value(_) if cut => {}
            State::Body => {
                let tags = self.tags;
                let closing = |tag: &&str| tag.starts_with(self.rest.as_str());
                if closing(&tags.call_close) || tags.wrapper_close.iter().any(closing) {
                    self.close(out);
                } else {
                    self.take(rest);
                    self.broken(out);
                }
            }
            State::ParameterHead | State::Value(_) => {
                self.take(rest);
                self.broken(out);
            }
        }
        self.rest.clear();
        self.state = State::Text;
    }
}
