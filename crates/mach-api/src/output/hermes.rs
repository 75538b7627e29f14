//! Hermes and Qwen3: a JSON object between tags.
//!
//! ```text
//! <tool_call>
//! {"name": "get_weather", "arguments": {"city": "Paris"}}
//! </tool_call>
//! ```

use serde_json::{Map, Value};

use super::prose::{Beginning, Prose, beginning, blank, first, held_back};
use super::{OutputParser, Part, arguments, is_name};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Follows a JSON value to its end, without looking at more than quotes and brackets.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span {
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Span {
    /// Takes a character; true if it is the last of an object, array or string.
    pub(super) fn ends_with(&mut self, c: char) -> bool {
        if self.quoted {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.quoted = false,
                _ => {}
            }
            return !self.quoted && self.depth == 0;
        }
        match c {
            '"' => self.quoted = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

#[derive(Debug)]
enum Place {
    Start,
    KeyOrEnd,
    /// Inside the quotes of a key; what was read of it, quotes included.
    Key(Span, String),
    Colon,
    Value,
    /// A text value; what was read of it, quotes included.
    Text(Span, String),
    Arguments(Span),
    /// A value that says nothing here.
    Other(Span),
    /// A number or word that says nothing here.
    Scalar,
    CommaOrEnd,
}

/// The call at hand.
#[derive(Debug)]
struct Call {
    place: Place,
    raw: String,
    key: String,
    name: Option<String>,
    arguments: Option<String>,
    /// The beginning was told, and this many bytes of the arguments.
    told: Option<usize>,
}

enum Step {
    More,
    Done,
    Wrong,
}

impl Call {
    fn new() -> Self {
        let raw = OPEN.to_owned();
        Self { place: Place::Start, raw, key: String::new(), name: None, arguments: None, told: None }
    }

    fn step(&mut self, c: char) -> Step {
        self.raw.push(c);
        let white = matches!(c, ' ' | '\n' | '\t' | '\r');
        match &mut self.place {
            Place::Start | Place::KeyOrEnd | Place::Colon | Place::Value | Place::CommaOrEnd if white => {}
            Place::Start if c == '{' => self.place = Place::KeyOrEnd,
            Place::KeyOrEnd if c == '"' => self.place = Place::Key(quoted(), c.into()),
            Place::KeyOrEnd | Place::CommaOrEnd if c == '}' => return self.complete(),
            Place::Key(span, text) => {
                text.push(c);
                if span.ends_with(c) {
                    let Ok(key) = serde_json::from_str(text) else { return Step::Wrong };
                    (self.key, self.place) = (key, Place::Colon);
                }
            }
            Place::Colon if c == ':' => self.place = Place::Value,
            Place::Value => return self.value(c),
            Place::Text(span, text) => {
                text.push(c);
                if span.ends_with(c) {
                    let text = std::mem::take(text);
                    return self.text(&text);
                }
            }
            Place::Arguments(span) => {
                let ended = span.ends_with(c);
                self.arguments.get_or_insert_default().push(c);
                if ended {
                    self.place = Place::CommaOrEnd;
                }
            }
            Place::Other(span) => {
                if span.ends_with(c) {
                    self.place = Place::CommaOrEnd;
                }
            }
            Place::CommaOrEnd | Place::Scalar if c == ',' => self.place = Place::KeyOrEnd,
            Place::Scalar if c == '}' => return self.complete(),
            Place::Scalar if c != '{' && c != '"' => {}
            _ => return Step::Wrong,
        }
        Step::More
    }

    fn value(&mut self, c: char) -> Step {
        let mut span = Span::default();
        span.ends_with(c);
        let holds_arguments = matches!(self.key.as_str(), "arguments" | "parameters");
        self.place = match c {
            '"' if holds_arguments || self.key == "name" => Place::Text(span, c.into()),
            '{' if holds_arguments && self.arguments.is_none() => {
                self.arguments = Some(c.into());
                Place::Arguments(span)
            }
            _ if holds_arguments || self.key == "name" => return Step::Wrong,
            '"' | '{' | '[' => Place::Other(span),
            _ => Place::Scalar,
        };
        Step::More
    }

    fn text(&mut self, quoted: &str) -> Step {
        self.place = Place::CommaOrEnd;
        let Ok(text) = serde_json::from_str::<String>(quoted) else { return Step::Wrong };
        if self.key == "name" {
            if self.name.is_some() || !is_name(&text) {
                return Step::Wrong;
            }
            self.name = Some(text);
        } else {
            // Arguments as a string that holds JSON.
            if self.arguments.is_some() {
                return Step::Wrong;
            }
            self.arguments = Some(text);
        }
        Step::More
    }

    fn complete(&mut self) -> Step {
        let arguments = self.arguments.get_or_insert_with(|| "{}".to_owned());
        let sound = serde_json::from_str::<Map<String, Value>>(arguments).is_ok();
        if sound && self.name.is_some() { Step::Done } else { Step::Wrong }
    }

    /// Tells what is new. Arguments that are a string are told when they are whole.
    fn tell(&mut self, prose: &mut Prose, out: &mut Vec<Part>) {
        let Some(name) = &self.name else { return };
        let told = self.told.get_or_insert_with(|| {
            prose.call();
            out.push(Part::CallStart { name: name.clone() });
            0
        });
        if let Some(all) = &self.arguments {
            arguments(out, all.get(*told..).unwrap_or_default());
            *told = all.len();
        }
    }
}

fn quoted() -> Span {
    Span { quoted: true, ..Span::default() }
}

#[derive(Debug)]
enum State {
    Text,
    Call(Box<Call>),
    /// Behind a call's object.
    Closing,
}

/// Reads Hermes' calls.
#[derive(Debug)]
pub(super) struct Hermes {
    state: State,
    prose: Prose,
    rest: String,
}

impl Hermes {
    pub(super) fn new() -> Self {
        Self { state: State::Text, prose: Prose::default(), rest: String::new() }
    }

    fn wrong(prose: &mut Prose, call: &mut Call, out: &mut Vec<Part>) {
        let raw = std::mem::take(&mut call.raw);
        if call.told.is_some() {
            out.push(Part::CallBroken(raw));
        } else {
            out.push(Part::Malformed);
            prose.restore(&raw, out);
        }
    }

    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        match &mut self.state {
            State::Text => match first(&self.rest, &[OPEN]) {
                Some((at, _)) => {
                    self.prose.push(&self.rest[..at], out);
                    self.rest.drain(..at + OPEN.len());
                    self.state = State::Call(Box::new(Call::new()));
                    true
                }
                None => {
                    let sure = self.rest.len() - held_back(&self.rest, &[OPEN]);
                    self.prose.push(&self.rest[..sure], out);
                    self.rest.drain(..sure);
                    false
                }
            },
            State::Call(call) => {
                let rest = std::mem::take(&mut self.rest);
                for (at, c) in rest.char_indices() {
                    let step = call.step(c);
                    if let Step::More = step {
                        continue;
                    }
                    let after = at + c.len_utf8();
                    self.rest = rest[after..].to_owned();
                    call.tell(&mut self.prose, out);
                    if let Step::Done = step {
                        out.push(Part::CallEnd);
                        self.state = State::Closing;
                    } else {
                        Self::wrong(&mut self.prose, call, out);
                        self.state = State::Text;
                    }
                    return true;
                }
                call.tell(&mut self.prose, out);
                false
            }
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
}

impl OutputParser for Hermes {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.rest.push_str(text);
        while self.step(out) {}
    }

    fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        let rest = std::mem::take(&mut self.rest);
        match std::mem::replace(&mut self.state, State::Text) {
            State::Call(call) if cut && call.told.is_some() => {}
            State::Call(call) if cut => self.prose.restore(&call.raw, out),
            State::Call(mut call) => Self::wrong(&mut self.prose, &mut call, out),
            State::Closing if CLOSE.starts_with(rest.as_str()) => {}
            State::Text | State::Closing => {
                self.prose.push(&rest, out);
                self.prose.finish(out);
            }
        }
    }
}
