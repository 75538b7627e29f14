//! Hermes and Qwen3: a JSON object between tags.
//!
//! ```text
//! <tool_call>
//! {"name": "get_weather", "arguments": {"city": "Paris"}}
//! </tool_call>
//! ```

mod call;

use std::sync::Arc;

use self::call::{Call, Step};
use super::prose::{Beginning, Prose, beginning, blank, held_back};
use super::{OutputParser, Part, ToolSchemas};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

#[derive(Debug)]
enum State {
    Text,
    Call(Box<Call>),
    /// Behind a call without a tag before it: whether it is one depends on what follows.
    Bare(Box<Call>),
    /// Behind a call's object; whether in brackets with others, and whether the tag is closed.
    Closing {
        list: bool,
        closed: bool,
    },
}

/// Reads Hermes' calls.
#[derive(Debug)]
pub(super) struct Hermes {
    schemas: Arc<ToolSchemas>,
    state: State,
    prose: Prose,
    rest: String,
    ended: bool,
}

impl Hermes {
    pub(super) fn new(schemas: Arc<ToolSchemas>) -> Self {
        Self { schemas, state: State::Text, prose: Prose::default(), rest: String::new(), ended: false }
    }

    /// The call is none. `back`: bytes at its end that are looked at again.
    fn wrong(&mut self, mut call: Call, back: usize, out: &mut Vec<Part>) {
        let mut raw = std::mem::take(&mut call.raw);
        // Behind the first letter of an object, or where another tag stands, calls may begin.
        let end = raw.len() - back;
        let end = match call.bare {
            true => end.min(1),
            false => {
                let begun = raw.len() - raw.trim_start().len() + 1;
                raw.get(begun..end).and_then(|raw| raw.find(OPEN)).map_or(end, |at| begun + at)
            }
        };
        self.rest.insert_str(0, &raw[end..]);
        raw.truncate(end);
        if call.told.is_some() {
            self.prose.broken(raw, out);
        } else if call.bare {
            self.prose.push(&raw, out);
        } else {
            self.prose.restore(&raw, out);
        }
    }

    fn say(&mut self, bytes: usize, out: &mut Vec<Part>) {
        let said: String = self.rest.drain(..bytes).collect();
        self.prose.push(&said, out);
    }

    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text => self.text(out),
            State::Call(call) => self.call(call, out),
            State::Bare(call) => self.bare(call, out),
            State::Closing { list, closed } => self.closing(list, closed),
        }
    }

    fn text(&mut self, out: &mut Vec<Part>) -> bool {
        let tag = self.rest.find(OPEN);
        // An object at the beginning of a line may be a call that lacks its tag.
        let object = self.rest.find('{').filter(|&at| tag.is_none_or(|tag| at < tag));
        if let Some(at) = object {
            self.say(at, out);
            if self.prose.lines().at_start() && !self.prose.lines().fenced() {
                self.rest.remove(0);
                self.state = State::Call(Box::new(Call::new("{".to_owned(), true)));
            } else {
                self.say(1, out);
            }
            return true;
        }
        let Some(at) = tag else {
            let held = if self.ended { 0 } else { held_back(&self.rest, &[OPEN]) };
            self.say(self.rest.len() - held, out);
            return false;
        };
        self.say(at, out);
        if self.prose.lines().fenced() {
            self.say(OPEN.len(), out);
        } else {
            self.rest.drain(..OPEN.len());
            self.state = State::Call(Box::new(Call::new(OPEN.to_owned(), false)));
        }
        true
    }

    fn call(&mut self, mut call: Box<Call>, out: &mut Vec<Part>) -> bool {
        // A tag too many.
        if call.at_start() {
            let white = blank(&self.rest);
            match beginning(&self.rest[white..], &[OPEN]) {
                Beginning::With(tag) => {
                    let taken: String = self.rest.drain(..white + tag.len()).collect();
                    call.raw.push_str(&taken);
                    self.state = State::Call(call);
                    return true;
                }
                Beginning::Unsure if !self.ended => {
                    self.state = State::Call(call);
                    return false;
                }
                _ => {}
            }
        }
        let rest = std::mem::take(&mut self.rest);
        for (at, c) in rest.char_indices() {
            let step = call.step(c, &self.schemas);
            if let Step::More = step {
                continue;
            }
            let after = at + c.len_utf8();
            self.rest = rest[after..].to_owned();
            if let Step::Done = step {
                self.done(call, out);
            } else {
                if !call.bare {
                    call.tell(&mut self.prose, out);
                }
                let back = call.closing().map_or(c.len_utf8(), str::len);
                self.wrong(*call, back, out);
            }
            return true;
        }
        if !call.bare {
            call.tell(&mut self.prose, out);
        }
        self.state = State::Call(call);
        false
    }

    fn done(&mut self, mut call: Box<Call>, out: &mut Vec<Part>) {
        if call.bare {
            self.state = State::Bare(call);
            return;
        }
        call.tell(&mut self.prose, out);
        out.push(Part::CallEnd);
        self.state = State::Closing { list: call.list, closed: call.closing().is_some() };
    }

    fn bare(&mut self, mut call: Box<Call>, out: &mut Vec<Part>) -> bool {
        let white = blank(&self.rest);
        match beginning(&self.rest[white..], &[OPEN, CLOSE]) {
            Beginning::Unsure if !self.ended => {
                self.state = State::Bare(call);
                return false;
            }
            Beginning::Else => self.wrong(*call, 0, out),
            // The answer ends, or a tag follows.
            _ => {
                call.bare = false;
                self.done(call, out);
            }
        }
        true
    }

    fn closing(&mut self, list: bool, closed: bool) -> bool {
        self.rest.drain(..blank(&self.rest));
        let close: &[&str] = if list { &[CLOSE, ","] } else { &[CLOSE] };
        match beginning(&self.rest, close) {
            Beginning::With(",") => {
                self.rest.remove(0);
                self.state = State::Closing { list, closed };
                return true;
            }
            // A tag too many is none.
            Beginning::With(tag) => {
                self.rest.drain(..tag.len());
                self.state = State::Closing { list: false, closed: true };
                return true;
            }
            Beginning::Unsure if !self.ended || self.rest.is_empty() => {
                self.state = State::Closing { list, closed };
                return false;
            }
            Beginning::Unsure if !closed => self.rest.clear(),
            _ => {}
        }
        if closed {
            return true;
        }
        match self.rest.chars().next() {
            // Another call between the same tags.
            Some('{') => {
                let mut call = Call::new(String::new(), false);
                call.list = list;
                self.state = State::Call(Box::new(call));
            }
            // The end of the list, or of an object too many, if the tag's end follows.
            Some(c @ (']' | '}')) => {
                let behind = &self.rest[1..];
                match beginning(&behind[blank(behind)..], &[CLOSE]) {
                    Beginning::Unsure if !self.ended => {
                        self.state = State::Closing { list, closed };
                        return false;
                    }
                    Beginning::Else if c == '}' || !list => {}
                    _ => {
                        self.rest.remove(0);
                        self.state = State::Closing { list: false, closed };
                    }
                }
            }
            _ => {}
        }
        true
    }
}

impl OutputParser for Hermes {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.rest.push_str(text);
        while self.step(out) {}
    }

    fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        self.ended = true;
        loop {
            while self.step(out) {}
            match std::mem::replace(&mut self.state, State::Text) {
                State::Call(call) if cut && call.told.is_some() => break,
                State::Call(call) if cut => self.prose.unread(&call.raw, out),
                State::Call(call) => self.wrong(*call, 0, out),
                State::Text | State::Bare(_) | State::Closing { .. } => break,
            }
        }
        self.prose.finish(out);
    }

    fn in_call(&self) -> bool {
        matches!(&self.state, State::Call(call) if call.told.is_some())
    }
}
