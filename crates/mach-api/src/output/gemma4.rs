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
    /// A key, or the end of the object.
    Key,
    /// A value, or the end of the array.
    Value,
    /// Inside a string.
    Text,
    AfterValue,
}

#[derive(Debug)]
enum State {
    Text,
    Body(Place),
    Closing,
}

/// How far a call's head is.
enum Head {
    /// These bytes, this name, and whether a brace opens its arguments.
    Yes(usize, String, bool),
    No,
    More,
}

/// Reads Gemma 4's calls.
#[derive(Debug)]
pub(super) struct Gemma4 {
    schemas: Arc<ToolSchemas>,
    state: State,
    prose: Prose,
    rest: String,
    ended: bool,
    /// The call at hand so far, and the white space before it.
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
            ended: false,
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

    fn say(&mut self, bytes: usize, out: &mut Vec<Part>) {
        let said: String = self.rest.drain(..bytes).collect();
        self.prose.push(&said, out);
    }

    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        match self.state {
            State::Text => self.text(out),
            State::Body(place) => self.body(place, out).unwrap_or_else(|| {
                self.prose.broken(std::mem::take(&mut self.raw), out);
                self.state = State::Text;
                true
            }),
            State::Closing => self.closing(out),
        }
    }

    fn text(&mut self, out: &mut Vec<Part>) -> bool {
        // A call at the beginning of a line may lack its tag.
        let markers = [OPEN, CALL];
        let Some((at, marker)) = first(&self.rest, &markers) else {
            let held = if self.ended { 0 } else { held_back(&self.rest, &markers) };
            self.say(self.rest.len() - held, out);
            return false;
        };
        self.say(at, out);
        let here = !self.prose.lines().fenced() && (marker == OPEN || self.prose.lines().at_start());
        let head = if here { self.head(&self.rest, marker == CALL) } else { Head::No };
        match head {
            Head::Yes(bytes, name, braced) => self.begin(bytes, name, braced, out),
            Head::More => return false,
            Head::No if here && marker == OPEN => {
                let marker: String = self.rest.drain(..marker.len()).collect();
                self.prose.restore(&marker, out);
            }
            Head::No => self.say(marker.len(), out),
        }
        true
    }

    /// The head of the call that `text` begins with. `bare`: it has no tag before it.
    fn head(&self, text: &str, bare: bool) -> Head {
        let more = |yes: bool| if yes && !self.ended { Head::More } else { Head::No };
        let mut at = 0;
        loop {
            let white = blank(&text[at..]);
            match beginning(&text[at + white..], &[OPEN, CALL, ":"]) {
                Beginning::With(CALL) => {
                    at += white + CALL.len();
                    break;
                }
                Beginning::With(tag) if !bare => at += white + tag.len(),
                Beginning::Unsure => return more(at + white <= LONGEST_NAME),
                _ => return Head::No,
            }
        }
        let end = text[at..].find(['{', '<', '\n']).map(|end| at + end);
        let name = text[at..end.unwrap_or(text.len())].trim();
        let Some(end) = end else {
            return more(name.len() <= LONGEST_NAME && (name.is_empty() || is_name(name)));
        };
        if !is_name(name) || !self.schemas.declares(name) {
            return Head::No;
        }
        if text[end..].starts_with('{') {
            return Head::Yes(end + 1, name.to_owned(), true);
        }
        // A call without arguments that lacks its braces.
        match beginning(&text[end + blank(&text[end..])..], &[CLOSE]) {
            Beginning::With(_) if !bare => Head::Yes(end, name.to_owned(), false),
            Beginning::Unsure => more(!bare),
            _ => Head::No,
        }
    }

    fn begin(&mut self, bytes: usize, name: String, braced: bool, out: &mut Vec<Part>) {
        self.raw = self.prose.call();
        self.take(bytes);
        out.push(Part::CallStart { name: name.clone() });
        arguments(out, "{");
        self.name = name;
        self.open = vec![(Bracket::Object, 0)];
        self.state = State::Body(Place::Key);
        if !braced {
            self.close_all(out);
        }
    }

    fn close(&mut self, bracket: Bracket, out: &mut Vec<Part>) -> Option<bool> {
        self.open.pop().filter(|(open, _)| *open == bracket)?;
        arguments(out, if bracket == Bracket::Object { "}" } else { "]" });
        self.state = State::Body(Place::AfterValue);
        if self.open.is_empty() {
            out.push(Part::CallEnd);
            self.raw.clear();
            self.state = State::Closing;
        }
        Some(true)
    }

    /// The call ends, whatever is open.
    fn close_all(&mut self, out: &mut Vec<Part>) {
        while let Some(&(bracket, _)) = self.open.last() {
            self.close(bracket, out);
        }
    }

    /// One step between the braces; `None` if this is no call.
    fn body(&mut self, place: Place, out: &mut Vec<Part>) -> Option<bool> {
        if place == Place::Text {
            return self.string(out);
        }
        self.take(blank(&self.rest));
        let c = match self.rest.chars().next() {
            Some(c) => c,
            None => return Some(false),
        };
        let &(bracket, _) = self.open.last()?;
        if c == '<' && place != Place::Value {
            // The end of the call, where its braces are missing.
            match beginning(&self.rest, &[CLOSE]) {
                Beginning::With(_) if place == Place::AfterValue => {
                    self.close_all(out);
                    return Some(true);
                }
                Beginning::Unsure if !self.ended => return Some(false),
                _ => {}
            }
        }
        match (place, c) {
            (Place::Key, '}') | (Place::AfterValue, '}') => {
                self.take(1);
                self.close(Bracket::Object, out)
            }
            (Place::Value, ']') if bracket == Bracket::Array => {
                self.take(1);
                self.close(Bracket::Array, out)
            }
            (Place::AfterValue, ']') => {
                self.take(1);
                self.close(Bracket::Array, out)
            }
            (Place::AfterValue, ',') => {
                self.take(1);
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
        let key = self.rest[..at].trim();
        let key = key.strip_prefix(QUOTE).and_then(|key| key.strip_suffix(QUOTE)).unwrap_or(key);
        let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key).to_owned();
        if key.is_empty() || key.contains(['{', '}', '[', ']', ',', '\n', '<']) {
            return None;
        }
        self.take(at + 1);
        self.next(out)?;
        arguments(out, &format!("\"{}\": ", escaped(&key)));
        if self.open.len() == 1 {
            self.key = key;
        }
        self.state = State::Body(Place::Value);
        Some(true)
    }

    /// One more in the innermost bracket.
    fn next(&mut self, out: &mut Vec<Part>) -> Option<()> {
        let (_, count) = self.open.last_mut()?;
        if *count > 0 {
            arguments(out, ", ");
        }
        *count += 1;
        Some(())
    }

    /// The same for a value; in an object its key has counted.
    fn next_value(&mut self, out: &mut Vec<Part>) -> Option<()> {
        let &(bracket, _) = self.open.last()?;
        if bracket == Bracket::Array { self.next(out) } else { Some(()) }
    }

    fn value(&mut self, c: char, out: &mut Vec<Part>) -> Option<bool> {
        match c {
            '{' | '[' => {
                if self.open.len() >= DEEPEST {
                    return None;
                }
                self.next_value(out)?;
                self.take(1);
                let bracket = if c == '{' { Bracket::Object } else { Bracket::Array };
                self.open.push((bracket, 0));
                arguments(out, if c == '{' { "{" } else { "[" });
                self.state = State::Body(if c == '{' { Place::Key } else { Place::Value });
                return Some(true);
            }
            '<' => match beginning(&self.rest, &[QUOTE]) {
                Beginning::With(quote) => {
                    self.next_value(out)?;
                    self.take(quote.len());
                    arguments(out, "\"");
                    self.state = State::Body(Place::Text);
                    return Some(true);
                }
                Beginning::Unsure if !self.ended => return Some(false),
                _ => {}
            },
            '"' => return self.quoted(out),
            _ => {}
        }
        let markers = [",", "}", "]", CLOSE, OPEN];
        let Some((at, _)) = first(&self.rest, &markers) else { return Some(false) };
        self.next_value(out)?;
        let text = self.take(at);
        let declared = match self.open.len() {
            1 => self.schemas.parameter(&self.name, &self.key),
            _ => None,
        };
        // Undeclared words are numbers and truth values here: strings have quotes.
        arguments(out, &declared.unwrap_or(Types::ALL).json(text.trim()));
        self.state = State::Body(Place::AfterValue);
        Some(true)
    }

    /// A string in JSON's quotes.
    fn quoted(&mut self, out: &mut Vec<Part>) -> Option<bool> {
        let mut escape = false;
        let end = self.rest.char_indices().skip(1).find(|&(_, c)| {
            let ends = c == '"' && !escape;
            escape = c == '\\' && !escape;
            ends
        });
        let Some((at, _)) = end else { return Some(false) };
        self.next_value(out)?;
        let text = self.take(at + 1);
        serde_json::from_str::<String>(&text).ok()?;
        arguments(out, &text);
        self.state = State::Body(Place::AfterValue);
        Some(true)
    }

    /// More of a string; `None` if another call begins in it.
    fn string(&mut self, out: &mut Vec<Part>) -> Option<bool> {
        let markers = [QUOTE, OPEN];
        let found = first(&self.rest, &markers);
        let held = if self.ended { 0 } else { held_back(&self.rest, &markers) };
        let sure = found.map_or(self.rest.len() - held, |(at, _)| at);
        let text = self.take(sure);
        arguments(out, &escaped(&text));
        let Some((_, marker)) = found else { return Some(false) };
        if marker == OPEN {
            match self.head(&self.rest, false) {
                Head::Yes(..) => return None,
                Head::More => return Some(false),
                Head::No => {
                    let text = self.take(OPEN.len());
                    arguments(out, &escaped(&text));
                    return Some(true);
                }
            }
        }
        self.take(QUOTE.len());
        arguments(out, "\"");
        self.state = State::Body(Place::AfterValue);
        Some(true)
    }

    fn closing(&mut self, out: &mut Vec<Part>) -> bool {
        self.rest.drain(..blank(&self.rest));
        if self.rest.is_empty() {
            return false;
        }
        match beginning(&self.rest, &[CLOSE, CALL]) {
            Beginning::Unsure if !self.ended => return false,
            // A tag too many is none.
            Beginning::With(CLOSE) => {
                self.rest.drain(..CLOSE.len());
                return true;
            }
            // Another call between the same tags.
            Beginning::With(_) => match self.head(&self.rest, true) {
                Head::Yes(bytes, name, braced) => {
                    self.begin(bytes, name, braced, out);
                    return true;
                }
                Head::More => return false,
                Head::No => {}
            },
            Beginning::Unsure if CLOSE.starts_with(self.rest.as_str()) => self.rest.clear(),
            _ => {}
        }
        if let Some(behind) = self.rest.strip_prefix(['}', ',']) {
            // A brace too many, or what stands between two calls.
            match beginning(&behind[blank(behind)..], &[CLOSE, CALL]) {
                Beginning::With(_) => {
                    self.rest.remove(0);
                    return true;
                }
                Beginning::Unsure if !self.ended => return false,
                _ => {}
            }
        }
        self.state = State::Text;
        true
    }
}

impl OutputParser for Gemma4 {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.rest.push_str(text);
        while self.step(out) {}
    }

    fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        self.ended = true;
        loop {
            while self.step(out) {}
            match self.state {
                State::Text | State::Closing => break,
                State::Body(_) if cut => break,
                State::Body(_) => {
                    // What was held back may hold a call of its own.
                    let end = self.rest.find(OPEN).unwrap_or(self.rest.len());
                    self.take(end);
                    self.prose.broken(std::mem::take(&mut self.raw), out);
                    self.state = State::Text;
                }
            }
        }
        self.prose.finish(out);
        self.rest.clear();
    }

    fn in_call(&self) -> bool {
        matches!(self.state, State::Body(_))
    }
}
