//! Reasoning between two tags, at the beginning of the answer.

use super::prose::{Beginning, beginning, blank, held_back};
use super::{OutputParser, Part, ReasoningStart, reasoning};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Before,
    Inside,
    /// Behind the closing tag, white space only so far.
    Closed,
    Outside,
}

/// Splits reasoning off and hands the rest to another parser.
#[derive(Debug)]
pub(super) struct Think {
    open: &'static str,
    close: &'static str,
    state: State,
    /// Not looked at yet; inside, also white space that may be the reasoning's end.
    rest: String,
    /// Something was said inside.
    said: bool,
    inner: Box<dyn OutputParser>,
}

impl Think {
    pub(super) fn new(
        open: &'static str,
        close: &'static str,
        start: ReasoningStart,
        inner: Box<dyn OutputParser>,
    ) -> Self {
        let state = match start {
            ReasoningStart::Open => State::Inside,
            ReasoningStart::Unopened => State::Before,
            ReasoningStart::Closed => State::Outside,
        };
        Self { open, close, state, rest: String::new(), said: false, inner }
    }

    fn say(&mut self, bytes: usize, out: &mut Vec<Part>) {
        let text: String = self.rest.drain(..bytes).collect();
        let text = if self.said { text.as_str() } else { text.trim_start() };
        self.said |= !text.is_empty();
        reasoning(out, text);
    }

    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        match self.state {
            State::Before => {
                let white = blank(&self.rest);
                match beginning(&self.rest[white..], &[self.open]) {
                    Beginning::With(tag) => {
                        self.rest.drain(..white + tag.len());
                        self.state = State::Inside;
                        true
                    }
                    Beginning::Unsure => false,
                    Beginning::Else => {
                        self.state = State::Outside;
                        true
                    }
                }
            }
            State::Inside => match self.rest.find(self.close) {
                Some(at) => {
                    let end = self.rest[..at].trim_end().len();
                    self.say(end, out);
                    self.rest.drain(..at - end + self.close.len());
                    self.state = State::Closed;
                    true
                }
                None => {
                    let sure = self.rest.len() - held_back(&self.rest, &[self.close]);
                    let sure = self.rest[..sure].trim_end().len();
                    self.say(sure, out);
                    false
                }
            },
            State::Closed => {
                self.rest.drain(..blank(&self.rest));
                if self.rest.is_empty() {
                    return false;
                }
                self.state = State::Outside;
                true
            }
            State::Outside => {
                self.inner.push(&std::mem::take(&mut self.rest), out);
                false
            }
        }
    }
}

impl OutputParser for Think {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.rest.push_str(text);
        while self.step(out) {}
    }

    fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        match self.state {
            State::Inside => {
                let tag = if cut { held_back(&self.rest, &[self.close]) } else { 0 };
                let rest = self.rest.len() - tag;
                self.say(rest, out);
            }
            State::Before | State::Closed | State::Outside => {
                let rest = std::mem::take(&mut self.rest);
                self.inner.push(&rest, out);
                self.inner.finish(cut, out);
            }
        }
    }
}
