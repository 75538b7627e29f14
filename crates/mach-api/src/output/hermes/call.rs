//! One call's object, read letter by letter.

use serde_json::{Map, Value};

use super::super::prose::Prose;
use super::super::relaxed::{self, Relaxed};
use super::super::{Part, ToolSchemas, arguments, is_name};
use super::CLOSE;

#[derive(Debug)]
enum Place {
    Start,
    KeyOrEnd,
    /// A key; what was read of it.
    Key(Relaxed, String),
    Colon,
    Value,
    /// A text value; what was read of it.
    Text(Relaxed, String),
    Arguments(Relaxed),
    /// A value that says nothing here, or arguments that are no object.
    Other(Relaxed, String),
    CommaOrEnd,
    /// The closing tag, where the end of the object is missing.
    Close(String),
}

/// The call at hand.
#[derive(Debug)]
pub(super) struct Call {
    place: Place,
    pub(super) raw: String,
    /// No tag stands before it: it has to be a call and nothing else.
    pub(super) bare: bool,
    /// Its brackets hold several.
    pub(super) list: bool,
    key: String,
    name: Option<String>,
    arguments: Option<String>,
    /// The beginning was told, and this many bytes of the arguments.
    pub(super) told: Option<usize>,
}

pub(super) enum Step {
    More,
    Done,
    Wrong,
}

impl Call {
    pub(super) fn new(raw: String, bare: bool) -> Self {
        let place = if bare { Place::KeyOrEnd } else { Place::Start };
        Self { place, raw, bare, list: false, key: String::new(), name: None, arguments: None, told: None }
    }

    pub(super) fn step(&mut self, c: char, schemas: &ToolSchemas) -> Step {
        self.raw.push(c);
        let white = matches!(c, ' ' | '\n' | '\t' | '\r');
        match &mut self.place {
            Place::Start | Place::KeyOrEnd | Place::Colon | Place::Value | Place::CommaOrEnd if white => {}
            Place::Start if c == '{' => self.place = Place::KeyOrEnd,
            Place::Start if c == '[' && !self.list => self.list = true,
            Place::KeyOrEnd if matches!(c, '"' | '\'') => {
                let (mut reader, mut text) = (Relaxed::default(), String::new());
                if reader.push(c, &mut text).is_err() {
                    return Step::Wrong;
                }
                self.place = Place::Key(reader, text);
            }
            Place::KeyOrEnd | Place::CommaOrEnd if c == '}' => return self.complete(),
            Place::Key(reader, text) => match reader.push(c, text) {
                Ok(false) => {}
                Ok(true) => {
                    let Ok(key) = serde_json::from_str::<String>(text) else { return Step::Wrong };
                    let expected = match self.name {
                        None => key == "name",
                        Some(_) => is_arguments(&key),
                    };
                    if self.bare && !expected {
                        return Step::Wrong;
                    }
                    (self.key, self.place) = (key, Place::Colon);
                }
                Err(_) => return Step::Wrong,
            },
            Place::Colon if c == ':' => self.place = Place::Value,
            Place::Value => return self.value(c),
            Place::Text(reader, text) => match reader.push(c, text) {
                Ok(false) => {}
                Ok(true) => {
                    let text = std::mem::take(text);
                    return self.text(&text, schemas);
                }
                Err(_) => return Step::Wrong,
            },
            Place::Arguments(reader) => match reader.push(c, self.arguments.get_or_insert_default()) {
                Ok(false) => {}
                Ok(true) => self.place = Place::CommaOrEnd,
                Err(_) => return Step::Wrong,
            },
            Place::Other(..) => return self.other(c),
            Place::CommaOrEnd if c == ',' => self.place = Place::KeyOrEnd,
            Place::CommaOrEnd if c == '<' && self.arguments.is_some() && !self.bare => {
                self.place = Place::Close(c.into());
            }
            Place::Close(tag) => {
                tag.push(c);
                if tag == CLOSE {
                    return self.complete();
                }
                if !CLOSE.starts_with(tag.as_str()) {
                    return Step::Wrong;
                }
            }
            _ => return Step::Wrong,
        }
        Step::More
    }

    /// Nothing was read of it, behind its tag.
    pub(super) fn at_start(&self) -> bool {
        matches!(self.place, Place::Start)
    }

    /// What was read of a closing tag that stands where the end of the object is missing.
    pub(super) fn closing(&self) -> Option<&str> {
        match &self.place {
            Place::Close(tag) => Some(tag),
            _ => None,
        }
    }

    fn value(&mut self, c: char) -> Step {
        let (mut reader, mut text) = (Relaxed::default(), String::new());
        if reader.push(c, &mut text).is_err() {
            return Step::Wrong;
        }
        let quoted = matches!(c, '"' | '\'');
        self.place = match self.key.as_str() {
            "name" if quoted && self.name.is_none() => Place::Text(reader, text),
            "name" => return Step::Wrong,
            key if is_arguments(key) && self.arguments.is_some() => return Step::Wrong,
            key if is_arguments(key) && quoted => Place::Text(reader, text),
            key if is_arguments(key) && c == '{' => {
                self.arguments = Some(text);
                Place::Arguments(reader)
            }
            _ => Place::Other(reader, text),
        };
        Step::More
    }

    /// More of a value that says nothing. A number or word ends with the letter behind it.
    fn other(&mut self, c: char) -> Step {
        let Place::Other(reader, text) = &mut self.place else { return Step::Wrong };
        let scalar = !text.starts_with(['{', '[', '"']);
        if scalar && matches!(c, ',' | '}' | ' ' | '\n' | '\t' | '\r') {
            if !reader.finish(text) {
                return Step::Wrong;
            }
        } else {
            match reader.push(c, text) {
                Ok(false) => return Step::More,
                Ok(true) => {}
                Err(_) => return Step::Wrong,
            }
        }
        if is_arguments(&self.key) {
            if text != "null" {
                return Step::Wrong;
            }
            self.arguments = Some("{}".to_owned());
        }
        self.place = Place::CommaOrEnd;
        match c {
            ',' if scalar => self.place = Place::KeyOrEnd,
            '}' if scalar => return self.complete(),
            _ => {}
        }
        Step::More
    }

    fn text(&mut self, quoted: &str, schemas: &ToolSchemas) -> Step {
        self.place = Place::CommaOrEnd;
        let Ok(text) = serde_json::from_str::<String>(quoted) else { return Step::Wrong };
        if self.key == "name" {
            if !is_name(&text) || !schemas.declares(&text) {
                return Step::Wrong;
            }
            self.name = Some(text);
            return Step::More;
        }
        // Arguments as a string that holds JSON.
        self.arguments = match text.trim() {
            "" | "null" => Some("{}".to_owned()),
            _ if is_object(&text) => Some(text),
            _ => relaxed::read(&text),
        };
        if self.arguments.is_some() { Step::More } else { Step::Wrong }
    }

    fn complete(&mut self) -> Step {
        let sound = match &self.arguments {
            Some(arguments) => is_object(arguments),
            None => !self.bare,
        };
        self.arguments.get_or_insert_with(|| "{}".to_owned());
        if sound && self.name.is_some() { Step::Done } else { Step::Wrong }
    }

    /// Tells what is new. Arguments that are a string are told when they are whole.
    pub(super) fn tell(&mut self, prose: &mut Prose, out: &mut Vec<Part>) {
        let Some(name) = &self.name else { return };
        let told = match self.told {
            Some(told) => told,
            None => {
                self.raw.insert_str(0, &prose.call());
                out.push(Part::CallStart { name: name.clone() });
                0
            }
        };
        let all = self.arguments.as_deref().unwrap_or_default();
        arguments(out, all.get(told..).unwrap_or_default());
        self.told = Some(all.len());
    }
}

fn is_arguments(key: &str) -> bool {
    matches!(key, "arguments" | "parameters")
}

fn is_object(text: &str) -> bool {
    serde_json::from_str::<Map<String, Value>>(text).is_ok()
}
