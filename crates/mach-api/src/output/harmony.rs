//! gpt-oss: messages on channels.
//!
//! ```text
//! <|channel|>analysis<|message|>The user asks for ...<|end|>
//! <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>
//! <|start|>assistant<|channel|>final<|message|>It rains.<|return|>
//! ```
//!
//! `analysis` is reasoning, `final` is content, and so is `commentary` to nobody. The prompt ends with `<|start|>assistant`, so
//! an answer begins inside a header.

use serde_json::{Map, Value};

use super::prose::{first, held_back};
use super::{OutputParser, Part, arguments, content, is_name, reasoning};

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const CONSTRAIN: &str = "<|constrain|>";
const MESSAGE: &str = "<|message|>";
const ENDS: [&str; 3] = ["<|end|>", "<|call|>", "<|return|>"];
/// What ends a message, the beginning of the next one included.
const BREAKS: [&str; 5] = [ENDS[0], ENDS[1], ENDS[2], START, CHANNEL];
/// A header is longer only if it is none.
const LONGEST_HEADER: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Body {
    Reasoning,
    Content,
    /// A call: its arguments so far, and all of its text.
    Call {
        arguments: String,
        raw: String,
    },
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
    tools: bool,
    reasoning: bool,
    state: State,
    rest: String,
}

impl Harmony {
    /// Without `tools`, what is addressed to a function is content; without `reasoning`, `analysis` is.
    pub(super) fn new(tools: bool, reasoning: bool) -> Self {
        Self { tools, reasoning, state: State::Header, rest: String::new() }
    }

    /// What a header announces; and the function, if it announces a call.
    fn announced(&self, header: &str) -> (Body, Option<String>) {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let (role, channel) = header.split_once(CHANNEL).unwrap_or((header, "final"));
        let channel_words = words(channel.split(CONSTRAIN).next().unwrap_or_default());
        let recipient = words(role).into_iter().chain(words(channel)).find_map(|word| {
            let name = word.strip_prefix("to=")?;
            let name = name.split("<|").next().unwrap_or_default();
            Some(name.strip_prefix("functions.").unwrap_or(name).to_owned())
        });
        match (recipient, channel_words.first().map(String::as_str)) {
            (Some(name), _) if self.tools && is_name(&name) => {
                (Body::Call { arguments: String::new(), raw: header.to_owned() + MESSAGE }, Some(name))
            }
            (None, Some("analysis")) if self.reasoning => (Body::Reasoning, None),
            _ => (Body::Content, None),
        }
    }

    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        match &mut self.state {
            State::Header => self.header(out),
            State::Body(body) => {
                let found = first(&self.rest, &BREAKS);
                let sure =
                    found.map_or_else(|| self.rest.len() - held_back(&self.rest, &BREAKS), |(at, _)| at);
                let text: String = self.rest.drain(..sure).collect();
                say(body, &text, out);
                let Some((_, marker)) = found else { return false };
                end(body, out);
                if ENDS.contains(&marker) {
                    self.rest.drain(..marker.len());
                }
                self.state = State::Header;
                true
            }
        }
    }

    fn header(&mut self, out: &mut Vec<Part>) -> bool {
        if !self.begins_as_header() {
            // Words without a channel are said to the user.
            self.state = State::Body(Body::Content);
            return true;
        }
        if let Some(at) = self.rest.find(MESSAGE).filter(|&at| at <= LONGEST_HEADER) {
            let header: String = self.rest.drain(..at + MESSAGE.len()).collect();
            let (body, function) = self.announced(&header[..at]);
            out.extend(function.map(|name| Part::CallStart { name }));
            self.state = State::Body(body);
            return true;
        }
        let too_long = self.rest.len() > LONGEST_HEADER + MESSAGE.len();
        if too_long {
            self.state = State::Body(Body::Content);
        }
        too_long
    }

    fn begins_as_header(&self) -> bool {
        let text = self.rest.trim_start();
        let starts = [START, CHANNEL, ENDS[0], ENDS[1], ENDS[2], "to=", "assistant"];
        starts.iter().any(|start| text.starts_with(start) || start.starts_with(text))
    }
}

fn say(body: &mut Body, text: &str, out: &mut Vec<Part>) {
    match body {
        Body::Reasoning => reasoning(out, text),
        Body::Content => content(out, text),
        Body::Call { arguments: said, raw } => {
            raw.push_str(text);
            said.push_str(text);
            arguments(out, text);
        }
    }
}

fn end(body: &mut Body, out: &mut Vec<Part>) {
    let Body::Call { arguments: said, raw } = body else { return };
    if said.trim().is_empty() {
        arguments(out, "{}");
        out.push(Part::CallEnd);
    } else if serde_json::from_str::<Map<String, Value>>(said).is_ok() {
        out.push(Part::CallEnd);
    } else {
        out.push(Part::CallBroken(std::mem::take(raw)));
    }
}

impl OutputParser for Harmony {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.rest.push_str(text);
        while self.step(out) {}
    }

    fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        let rest = std::mem::take(&mut self.rest);
        match &mut self.state {
            State::Body(body) => {
                say(body, &rest, out);
                let whole = match body {
                    Body::Call { arguments, .. } => {
                        serde_json::from_str::<Map<String, Value>>(arguments).is_ok()
                    }
                    _ => true,
                };
                if whole || !cut {
                    end(body, out);
                }
            }
            State::Header => {
                let silent = ["", "assistant"].contains(&rest.trim().trim_start_matches(START));
                let closed = ENDS.contains(&rest.trim());
                if !silent && !closed {
                    if !cut {
                        out.push(Part::Malformed);
                    }
                    content(out, &rest);
                }
            }
        }
        self.state = State::Header;
    }
}
