//! gpt-oss: messages on channels.
//!
//! ```text
//! <|channel|>analysis<|message|>The user asks for ...<|end|>
//! <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>
//! <|start|>assistant<|channel|>final<|message|>It rains.<|return|>
//! ```
//!
//! `analysis` is reasoning, `final` is content, and so is `commentary` to nobody. The prompt ends with `<|start|>assistant`, so
//! an answer begins inside a header. Markers and headers are never part of a text; what is said to a tool that is none of the
//! request's, or in another role, is said to nobody here.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::prose::{Beginning, beginning, blank, first, held_back};
use super::relaxed::Relaxed;
use super::{OutputParser, Part, ToolSchemas, arguments, content, is_name, reasoning};

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const CONSTRAIN: &str = "<|constrain|>";
const MESSAGE: &str = "<|message|>";
const ENDS: [&str; 3] = ["<|end|>", "<|call|>", "<|return|>"];
const MARKERS: [&str; 7] = [START, CHANNEL, CONSTRAIN, MESSAGE, ENDS[0], ENDS[1], ENDS[2]];
const CHANNELS: [&str; 3] = ["analysis", "commentary", "final"];
const ROLE: &str = "assistant";
/// A header is longer only if it is none.
const LONGEST_HEADER: usize = 1024;

#[derive(Debug)]
enum Body {
    Reasoning,
    Content,
    Call(Arguments),
    /// To nobody.
    Nowhere,
}

/// The arguments of a call so far.
#[derive(Debug, Default)]
struct Arguments {
    raw: String,
    json: String,
    reader: Relaxed,
    /// An object begins, is whole, or is none.
    begun: bool,
    whole: bool,
    wrong: bool,
}

impl Arguments {
    /// Takes more and returns what is new of the object.
    fn push(&mut self, text: &str) -> &str {
        self.raw.push_str(text);
        let told = self.json.len();
        for c in text.chars() {
            if self.wrong {
                break;
            }
            let white = c.is_ascii_whitespace();
            if self.whole || (!self.begun && c != '{') {
                self.wrong = !white;
                continue;
            }
            self.begun = true;
            match self.reader.push(c, &mut self.json) {
                Ok(whole) => self.whole = whole,
                Err(_) => self.wrong = true,
            }
        }
        &self.json[told..]
    }

    fn sound(&self) -> bool {
        self.whole && !self.wrong && serde_json::from_str::<Map<String, Value>>(&self.json).is_ok()
    }
}

/// What a header says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Header {
    role: Option<String>,
    channel: Option<String>,
    recipient: Option<String>,
}

/// How far a text is that begins with a header.
#[derive(Debug, PartialEq, Eq)]
enum Scan {
    More,
    /// A body follows behind these bytes.
    Body(usize, Header),
    /// Nothing is said in these bytes.
    Skip(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    Any,
    Role,
    Channel,
    /// What kind the content is.
    Kind,
}

#[derive(Debug)]
enum State {
    /// Before `<|message|>`.
    Header,
    Body(Body),
}

/// Reads messages on channels.
#[derive(Debug)]
pub(super) struct Harmony {
    schemas: Option<Arc<ToolSchemas>>,
    reasoning: bool,
    state: State,
    rest: String,
    ended: bool,
    /// Whether the text at hand is the first of its message, and texts were said before: reasoning, content.
    fresh: bool,
    said: [bool; 2],
}

impl Harmony {
    /// Without `schemas`, calls are not looked for; without `reasoning`, `analysis` is content.
    pub(super) fn new(schemas: Option<Arc<ToolSchemas>>, reasoning: bool) -> Self {
        let state = State::Header;
        Self { schemas, reasoning, state, rest: String::new(), ended: false, fresh: true, said: [false; 2] }
    }

    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        match &self.state {
            State::Header => self.header(out),
            State::Body(_) => self.body(out),
        }
    }

    fn body(&mut self, out: &mut Vec<Part>) -> bool {
        let found = first(&self.rest, &MARKERS);
        let held = if self.ended { 0 } else { held_back(&self.rest, &MARKERS) };
        let sure = found.map_or(self.rest.len() - held, |(at, _)| at);
        let text: String = self.rest.drain(..sure).collect();
        self.say(&text, out);
        let Some((_, marker)) = found else { return false };
        if ![START, CHANNEL].contains(&marker) {
            self.rest.drain(..marker.len());
        }
        if ![MESSAGE, CONSTRAIN].contains(&marker) {
            self.end(out);
            self.state = State::Header;
        }
        true
    }

    fn header(&mut self, out: &mut Vec<Part>) -> bool {
        match scan(&self.rest, self.ended) {
            Scan::More => return false,
            Scan::Skip(bytes) => drop(self.rest.drain(..bytes)),
            Scan::Body(bytes, header) => {
                self.rest.drain(..bytes);
                self.begin(header, out);
            }
        }
        true
    }

    /// The body that a header announces begins.
    fn begin(&mut self, header: Header, out: &mut Vec<Part>) {
        let mut body = match header.channel.as_deref() {
            Some("analysis") if self.reasoning => Body::Reasoning,
            _ => Body::Content,
        };
        if header.role.as_deref().is_some_and(|role| role != ROLE) {
            body = Body::Nowhere;
        } else if let Some(recipient) = header.recipient {
            let name = recipient.strip_prefix("functions.").unwrap_or(&recipient);
            body = match &self.schemas {
                Some(schemas) if is_name(name) && name != ROLE && schemas.declares(name) => {
                    out.push(Part::CallStart { name: name.to_owned() });
                    Body::Call(Arguments::default())
                }
                // A function that is none of the request's.
                _ if recipient.starts_with("functions.") => {
                    out.extend(self.schemas.as_ref().map(|_| Part::Malformed));
                    Body::Content
                }
                _ => Body::Nowhere,
            };
        }
        self.fresh = true;
        self.state = State::Body(body);
    }

    fn say(&mut self, text: &str, out: &mut Vec<Part>) {
        let State::Body(body) = &mut self.state else { return };
        if text.is_empty() {
            return;
        }
        // Texts of several messages are joined with a line break.
        let kind = usize::from(matches!(body, Body::Content));
        let joint = if self.fresh && self.said[kind] { "\n" } else { "" };
        match body {
            Body::Reasoning => reasoning(out, &format!("{joint}{text}")),
            Body::Content => content(out, &format!("{joint}{text}")),
            Body::Call(said) => return arguments(out, said.push(text)),
            Body::Nowhere => return,
        }
        self.fresh = false;
        self.said[kind] = true;
    }

    fn end(&mut self, out: &mut Vec<Part>) {
        let State::Body(Body::Call(said)) = &self.state else { return };
        if ["", "null", "None"].contains(&said.raw.trim()) {
            arguments(out, "{}");
            out.push(Part::CallEnd);
        } else if said.sound() {
            out.push(Part::CallEnd);
        } else {
            // The text of the message alone: its header is no text.
            let joint = if self.said[1] { "\n" } else { "" };
            out.push(Part::CallBroken(format!("{joint}{}", said.raw)));
            self.said[1] = true;
        }
    }
}

/// Reads the header that `text` begins with; all there is, if it has `ended`. Without a marker, words of a header are words.
fn scan(text: &str, ended: bool) -> Scan {
    let (mut header, mut at) = (Header::default(), 0);
    let (mut marked, mut words, mut expects) = (false, false, Expects::Any);
    loop {
        let here = at + blank(&text[at..]);
        let rest = &text[here..];
        // Where a text begins if this is one.
        let said = |header: Header| match marked {
            true => Scan::Body(here, header),
            false => Scan::Body(0, Header::default()),
        };
        if rest.is_empty() {
            let silent = marked || !words || text.trim() == ROLE;
            return match (ended && here > 0, silent) {
                (false, _) => Scan::More,
                (true, true) => Scan::Skip(here),
                (true, false) => said(header),
            };
        }
        if here > LONGEST_HEADER {
            return said(header);
        }
        match beginning(rest, &MARKERS) {
            Beginning::With(MESSAGE) => return Scan::Body(here + MESSAGE.len(), header),
            Beginning::With(marker) => {
                let restarts = marker == START || ENDS.contains(&marker);
                if restarts && words && !marked {
                    return said(header);
                }
                if restarts && here > 0 {
                    return Scan::Skip(here);
                }
                expects = match marker {
                    START => Expects::Role,
                    CHANNEL => Expects::Channel,
                    CONSTRAIN => Expects::Kind,
                    _ => return Scan::Skip(marker.len()),
                };
                marked = true;
                at = here + marker.len();
                continue;
            }
            Beginning::Unsure if !ended => return Scan::More,
            _ => {}
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let end = first(&rest[..end], &MARKERS).map_or(end, |(at, _)| at);
        let word = &rest[..end];
        // It may go on.
        let open = end == rest.len() && !ended;
        // The beginning of a marker may stand at its end.
        let tail = if open { held_back(word, &MARKERS) } else { 0 };
        let (base, partial) = (&word[..end - tail], open && tail == 0);
        let one_of = |words: &[&str]| {
            words.iter().any(|known| if partial { known.starts_with(base) } else { *known == base })
        };
        let addressed = word.starts_with("to=") || (open && "to=".starts_with(word));
        let fits = match expects {
            Expects::Role | Expects::Kind => true,
            _ if addressed => true,
            Expects::Channel => true,
            Expects::Any if marked => header.recipient.is_some() && one_of(&["json", "code"]),
            Expects::Any => one_of(&[ROLE, CHANNELS[0], CHANNELS[1], CHANNELS[2]]),
        };
        if !fits || end > LONGEST_HEADER {
            return said(header);
        }
        if open {
            return Scan::More;
        }
        let mut bytes = end;
        match expects {
            _ if addressed && expects != Expects::Kind => {
                header.recipient = Some(word["to=".len()..].to_owned());
            }
            Expects::Role => header.role = Some(word.to_owned()),
            Expects::Kind => {}
            Expects::Channel => {
                let known = CHANNELS.iter().find(|known| word.starts_with(**known));
                let letter = |c: char| c.is_alphanumeric() || c == '_';
                match known.filter(|known| !word[known.len()..].starts_with(letter)) {
                    Some(known) => {
                        header.channel = Some((*known).to_owned());
                        bytes = known.len();
                    }
                    None => match behind(&rest[end..], ended) {
                        None => return Scan::More,
                        Some(true) => header.channel = Some(word.to_owned()),
                        Some(false) => return said(header),
                    },
                }
            }
            Expects::Any if marked => {}
            Expects::Any if word == ROLE => header.role = Some(word.to_owned()),
            Expects::Any => header.channel = Some(word.to_owned()),
        }
        words = true;
        expects = Expects::Any;
        at = here + bytes;
    }
}

/// Whether a header goes on behind a word.
fn behind(text: &str, ended: bool) -> Option<bool> {
    let text = &text[blank(text)..];
    match beginning(text, &[START, CHANNEL, CONSTRAIN, MESSAGE, ENDS[0], ENDS[1], ENDS[2], "to="]) {
        Beginning::With(_) => Some(true),
        Beginning::Unsure if !ended => None,
        _ => Some(false),
    }
}

impl OutputParser for Harmony {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.rest.push_str(text);
        while self.step(out) {}
    }

    fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        self.ended = true;
        while self.step(out) {}
        let whole = match &self.state {
            State::Body(Body::Call(said)) => said.sound(),
            _ => true,
        };
        if whole || !cut {
            self.end(out);
        }
        self.state = State::Header;
    }

    fn in_call(&self) -> bool {
        matches!(self.state, State::Body(Body::Call(_)))
    }
}
