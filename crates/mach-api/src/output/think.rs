//! Reasoning between two tags.

use super::format::Calls;
use super::prose::{Beginning, beginning, blank, first, held_back};
use super::{OutputParser, Part, ReasoningStart, reasoning};

/// How a family marks its reasoning.
#[derive(Debug)]
pub(super) struct Marks {
    pub(super) open: &'static str,
    /// A word that may follow the opening tag.
    pub(super) label: Option<&'static str>,
    pub(super) close: &'static str,
    /// Reasoning may begin anywhere, and the tags are never part of a text.
    pub(super) anywhere: bool,
}

pub(super) static THINK: Marks = Marks { open: "<think>", label: None, close: "</think>", anywhere: false };
pub(super) static CHANNEL: Marks =
    Marks { open: "<|channel>", label: Some("thought"), close: "<channel|>", anywhere: true };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Before,
    /// Behind the opening tag.
    Opened,
    Inside,
    /// Behind the closing tag, white space only so far.
    Closed,
    Outside,
}

/// Splits reasoning off and hands the rest to another parser.
#[derive(Debug)]
pub(super) struct Think {
    marks: &'static Marks,
    state: State,
    /// Not looked at yet.
    rest: String,
    ended: bool,
    thought: Thought,
    /// The opening tag stood in the answer.
    opened_here: bool,
    /// Something was said outside.
    said: bool,
    calls: Calls,
    inner: Box<dyn OutputParser>,
    draft: Draft,
}

/// Reasoning on its way out, without the white space around it.
#[derive(Debug, Default)]
struct Thought {
    held: String,
    /// Something was said since the last opening tag; ever.
    said: bool,
    ever: bool,
}

impl Thought {
    fn say(&mut self, text: &str, out: &mut Vec<Part>) {
        let text = if self.said { text } else { text.trim_start() };
        let body = text.trim_end();
        if !body.is_empty() {
            if !self.said && self.ever {
                reasoning(out, "\n");
            }
            reasoning(out, &std::mem::take(&mut self.held));
            reasoning(out, body);
            (self.said, self.ever) = (true, true);
        }
        self.held.push_str(&text[body.len()..]);
    }

    fn end(&mut self) {
        self.held.clear();
        self.said = false;
    }
}

/// Reasoning, read for calls: one that is followed by the end of reasoning was drafted only; one in reasoning that never ends
/// is one.
#[derive(Debug)]
struct Draft {
    parser: Box<dyn OutputParser>,
    /// What is not told yet.
    raw: String,
    /// What it says from the first call on.
    parts: Vec<Part>,
}

impl Draft {
    fn new(calls: &Calls) -> Self {
        Self { parser: calls.parser(), raw: String::new(), parts: Vec::new() }
    }

    fn take(&mut self, parts: Vec<Part>, thought: &mut Thought, out: &mut Vec<Part>) {
        for part in parts {
            match part {
                Part::Content(text) if self.parts.is_empty() && self.raw.starts_with(&text) => {
                    self.raw.drain(..text.len());
                    thought.say(&text, out);
                }
                Part::Malformed if self.parts.is_empty() => {}
                part => self.parts.push(part),
            }
        }
    }
}

impl Think {
    pub(super) fn new(marks: &'static Marks, start: ReasoningStart, calls: Calls) -> Self {
        let state = match start {
            ReasoningStart::Open => State::Opened,
            ReasoningStart::Unopened => State::Before,
            ReasoningStart::Closed => State::Outside,
        };
        Self {
            marks,
            state,
            rest: String::new(),
            ended: false,
            thought: Thought::default(),
            opened_here: false,
            said: false,
            inner: calls.parser(),
            draft: Draft::new(&calls),
            calls,
        }
    }

    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        match self.state {
            State::Before => {
                let white = blank(&self.rest);
                match beginning(&self.rest[white..], &[self.marks.open]) {
                    Beginning::With(tag) => self.open(white + tag.len()),
                    Beginning::Unsure if !self.ended => return false,
                    _ => self.state = State::Outside,
                }
                true
            }
            State::Opened => self.opened(),
            State::Inside => self.inside(out),
            State::Closed => {
                if !self.said {
                    self.rest.drain(..blank(&self.rest));
                }
                if self.rest.is_empty() {
                    return false;
                }
                // A closing tag too many.
                let white = blank(&self.rest);
                match beginning(&self.rest[white..], &[self.marks.close]) {
                    Beginning::With(tag) => {
                        self.rest.drain(..white + tag.len());
                    }
                    Beginning::Unsure if !self.ended => return false,
                    _ => self.state = State::Outside,
                }
                true
            }
            State::Outside => self.outside(out),
        }
    }

    fn open(&mut self, bytes: usize) {
        self.rest.drain(..bytes);
        self.opened_here = true;
        self.state = State::Opened;
    }

    fn opened(&mut self) -> bool {
        let white = blank(&self.rest);
        let text = &self.rest[white..];
        match beginning(text, &[self.marks.open]) {
            // An opening tag too many.
            Beginning::With(tag) => {
                self.open(white + tag.len());
                return true;
            }
            Beginning::Unsure if !self.ended => return false,
            _ => {}
        }
        if let Some(label) = self.marks.label.filter(|_| self.opened_here) {
            if label.starts_with(text) && !self.ended {
                return false;
            }
            if let Some(behind) = text.strip_prefix(label) {
                match behind.chars().next() {
                    None if !self.ended => return false,
                    Some(c) if c.is_alphanumeric() => {}
                    _ => {
                        self.rest.drain(..white + label.len());
                        self.opened_here = false;
                        return true;
                    }
                }
            }
        }
        self.state = State::Inside;
        true
    }

    fn inside(&mut self, out: &mut Vec<Part>) -> bool {
        let marks = self.marks;
        let all: &[&str] = if marks.anywhere { &[marks.close, marks.open] } else { &[marks.close] };
        let found = first(&self.rest, all);
        let held = if self.ended { 0 } else { held_back(&self.rest, all) };
        let sure = found.map_or(self.rest.len() - held, |(at, _)| at);
        let text: String = self.rest.drain(..sure).collect();
        self.draft.raw.push_str(&text);
        let mut parts = Vec::new();
        self.draft.parser.push(&text, &mut parts);
        self.draft.take(parts, &mut self.thought, out);
        let Some((_, marker)) = found else { return false };
        self.rest.drain(..marker.len());
        if marker == marks.close {
            let drafted = std::mem::replace(&mut self.draft, Draft::new(&self.calls));
            self.thought.say(&drafted.raw, out);
            self.thought.end();
            self.state = State::Closed;
        }
        true
    }

    fn outside(&mut self, out: &mut Vec<Part>) -> bool {
        let all: &[&str] = if self.marks.anywhere { &[self.marks.open, self.marks.close] } else { &[] };
        let found = first(&self.rest, all);
        let held = if self.ended { 0 } else { held_back(&self.rest, all) };
        let sure = found.map_or(self.rest.len() - held, |(at, _)| at);
        let text: String = self.rest.drain(..sure).collect();
        self.said |= !text.trim().is_empty();
        self.inner.push(&text, out);
        let Some((_, marker)) = found else { return false };
        if self.inner.in_call() {
            let text: String = self.rest.drain(..marker.len()).collect();
            self.inner.push(&text, out);
        } else if marker == self.marks.open {
            self.open(marker.len());
        } else {
            self.rest.drain(..marker.len());
        }
        true
    }
}

impl OutputParser for Think {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.rest.push_str(text);
        while self.step(out) {}
    }

    fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        let marks = self.marks;
        if cut && self.state == State::Inside {
            // The beginning of a tag.
            let tag = held_back(&self.rest, &[marks.close]);
            self.rest.truncate(self.rest.len() - tag);
        }
        self.ended = true;
        while self.step(out) {}
        if matches!(self.state, State::Opened | State::Inside) {
            let mut parts = Vec::new();
            self.draft.parser.finish(cut, &mut parts);
            self.draft.take(parts, &mut self.thought, out);
            if self.draft.parts.contains(&Part::CallEnd) {
                out.append(&mut self.draft.parts);
            } else {
                self.thought.say(&self.draft.raw, out);
            }
        } else {
            self.inner.finish(cut, out);
        }
    }
}
