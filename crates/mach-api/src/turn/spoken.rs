//! An answer as it stands so far.

use serde_json::{Map, Value};

use super::{Ending, Said};
use crate::chat::{Content, Message, Role, ToolCall, tool_call_id};
use crate::output::Part;

/// How far a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallState {
    /// It was begun.
    Open,
    /// Its arguments are a JSON object.
    Complete,
    /// It was none after all; its text is in the content.
    Broken,
}

/// A call of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Id of the call.
    pub id: String,
    /// Name of the function.
    pub name: String,
    /// A JSON object; unfinished while the call is open.
    pub arguments: String,
    /// How far it is.
    pub state: CallState,
}

/// What was said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spoken {
    /// To the user.
    pub content: String,
    /// To the model itself.
    pub reasoning: String,
    /// Calls in order, broken ones included.
    calls: Vec<Call>,
}

impl Spoken {
    /// Adds what a parser read; what is new of it goes to `tell`.
    pub fn take(&mut self, part: Part, tell: &mut dyn FnMut(Said)) {
        match part {
            Part::Reasoning(text) => {
                self.reasoning.push_str(&text);
                tell(Said::Reasoning(text));
            }
            Part::Content(text) => self.say(text, tell),
            Part::CallStart { name } => {
                let (index, id) = (self.calls.len(), tool_call_id());
                tell(Said::CallStart { index, id: id.clone(), name: name.clone() });
                self.calls.push(Call { id, name, arguments: String::new(), state: CallState::Open });
            }
            Part::Arguments(text) => {
                let index = self.calls.len().saturating_sub(1);
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&text);
                    tell(Said::Arguments { index, text });
                }
            }
            Part::CallEnd => {
                self.end(CallState::Complete);
                tell(Said::CallEnd { index: self.calls.len().saturating_sub(1) });
            }
            Part::CallBroken(raw) => {
                self.end(CallState::Broken);
                self.say(raw, tell);
            }
            Part::Malformed => {}
        }
    }

    fn say(&mut self, text: String, tell: &mut dyn FnMut(Said)) {
        self.content.push_str(&text);
        tell(Said::Content(text));
    }

    fn end(&mut self, state: CallState) {
        if let Some(last) = self.calls.last_mut() {
            last.state = state;
        }
    }

    /// The calls, those that were none left out.
    pub fn calls(&self) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(|call| call.state != CallState::Broken)
    }

    /// Why the answer ended: `cut` at its length, or by the model.
    pub fn ending(&self, cut: bool) -> Ending {
        match cut {
            true => Ending::Length,
            false if self.calls.iter().any(|call| call.state == CallState::Complete) => Ending::Calls,
            false => Ending::Stop,
        }
    }

    /// The message as it will come back in the next request; `None` if it holds a call that nobody can answer.
    pub fn as_history(&self) -> Option<Message> {
        let mut message = Message::text(Role::Assistant, "");
        message.content = Content::Text(self.content.clone());
        message.reasoning_content = Some(self.reasoning.clone()).filter(|text| !text.is_empty());
        for call in self.calls() {
            if call.state == CallState::Open {
                return None;
            }
            let arguments: Map<String, Value> = serde_json::from_str(&call.arguments).ok()?;
            message.tool_calls.push(ToolCall {
                id: Some(call.id.clone()),
                name: call.name.clone(),
                arguments,
                text: None,
                broken: false,
            });
        }
        Some(message)
    }
}
