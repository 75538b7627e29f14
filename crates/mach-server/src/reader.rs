//! What an answer says, as it grows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mach_api::chat::{
    Content, Delta, FinishReason, FunctionDelta, Message, ResponseMessage, ResponseToolCall, Role, ToolCall,
    ToolCallDelta, tool_call_id,
};
use mach_api::output::{OutputFormat, OutputParser, Part, ReasoningStart, ToolSchemas};
use serde_json::{Map, Value};
use tracing::warn;

/// Counts of what parsers met since the start.
#[derive(Debug, Default)]
pub struct OutputStats {
    calls: AtomicU64,
    malformed: AtomicU64,
}

impl OutputStats {
    /// Complete tool calls.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Tool calls that could not be read and came back as text.
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }
}

/// How the answers to one request are read.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// The model's way of writing.
    pub(crate) format: OutputFormat,
    /// The functions that it may call; none if it may not.
    pub(crate) schemas: Option<Arc<ToolSchemas>>,
    /// Where its reasoning begins.
    pub(crate) start: ReasoningStart,
    /// A call goes back as `function_call`.
    pub(crate) legacy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallState {
    Open,
    Complete,
    Broken,
}

/// Reads one choice.
#[derive(Debug)]
pub(crate) struct Reader {
    parser: Box<dyn OutputParser>,
    legacy: bool,
    stats: Arc<OutputStats>,
    content: String,
    reasoning: String,
    calls: Vec<(ResponseToolCall, CallState)>,
}

impl Reader {
    pub(crate) fn new(reading: &Reading, stats: Arc<OutputStats>) -> Self {
        let parser = reading.format.parser(reading.schemas.clone(), reading.start);
        Self {
            parser,
            legacy: reading.legacy,
            stats,
            content: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
        }
    }

    /// Takes more text; what is new goes to `tell`.
    pub(crate) fn push(&mut self, text: &str, tell: &mut dyn FnMut(Delta)) {
        let mut parts = Vec::new();
        self.parser.push(text, &mut parts);
        self.take(parts, tell);
    }

    /// Ends the text. `cut`: at the length.
    pub(crate) fn finish(&mut self, cut: bool, tell: &mut dyn FnMut(Delta)) {
        let mut parts = Vec::new();
        self.parser.finish(cut, &mut parts);
        self.take(parts, tell);
    }

    fn take(&mut self, parts: Vec<Part>, tell: &mut dyn FnMut(Delta)) {
        let mut parts = parts.into_iter().peekable();
        while let Some(part) = parts.next() {
            match part {
                Part::Reasoning(text) => {
                    self.reasoning.push_str(&text);
                    tell(Delta { reasoning_content: Some(text), ..Delta::default() });
                }
                Part::Content(text) => self.say(text, tell),
                Part::CallStart { name } => {
                    let call = ResponseToolCall::new(tool_call_id(), name, String::new());
                    tell(self.delta(self.calls.len(), Some(&call), String::new()));
                    self.calls.push((call, CallState::Open));
                }
                Part::Arguments(text) => {
                    if let Some((call, _)) = self.calls.last_mut() {
                        call.function.arguments.push_str(&text);
                        tell(self.delta(self.calls.len() - 1, None, text));
                    }
                }
                Part::CallEnd => {
                    self.stats.calls.fetch_add(1, Ordering::Relaxed);
                    self.end(CallState::Complete);
                }
                Part::CallBroken(raw) => {
                    self.malformed(&raw);
                    self.end(CallState::Broken);
                    self.say(raw, tell);
                }
                Part::Malformed => match parts.peek() {
                    Some(Part::Content(text)) => self.malformed(text),
                    _ => self.malformed(""),
                },
            }
        }
    }

    fn say(&mut self, text: String, tell: &mut dyn FnMut(Delta)) {
        self.content.push_str(&text);
        tell(Delta { content: Some(text), ..Delta::default() });
    }

    fn end(&mut self, state: CallState) {
        if let Some((_, last)) = self.calls.last_mut() {
            *last = state;
        }
    }

    fn malformed(&self, raw: &str) {
        self.stats.malformed.fetch_add(1, Ordering::Relaxed);
        let begins: String = raw.chars().take(80).collect();
        warn!(begins, "a tool call could not be read; it is answered as text");
    }

    fn delta(&self, index: usize, first: Option<&ResponseToolCall>, arguments: String) -> Delta {
        let function = FunctionDelta { name: first.map(|call| call.function.name.clone()), arguments };
        if self.legacy {
            return Delta { function_call: Some(function), ..Delta::default() };
        }
        let call = ToolCallDelta {
            index,
            id: first.map(|call| call.id.clone()),
            r#type: first.map(|call| call.r#type),
            function,
        };
        Delta { tool_calls: vec![call], ..Delta::default() }
    }

    /// Why the answer ended, in the API's terms.
    pub(crate) fn finish_reason(&self, reason: mach_engine::FinishReason) -> FinishReason {
        let called = self.calls.iter().any(|(_, state)| *state == CallState::Complete);
        match reason {
            mach_engine::FinishReason::Length => FinishReason::Length,
            mach_engine::FinishReason::Stop if called && self.legacy => FinishReason::FunctionCall,
            mach_engine::FinishReason::Stop if called => FinishReason::ToolCalls,
            mach_engine::FinishReason::Stop => FinishReason::Stop,
        }
    }

    /// The whole message.
    pub(crate) fn message(self) -> ResponseMessage {
        let calls = self.calls.into_iter().filter(|(_, state)| *state != CallState::Broken);
        let mut tool_calls: Vec<_> = calls.map(|(call, _)| call).collect();
        let silent = !tool_calls.is_empty();
        let function_call =
            if self.legacy { tool_calls.drain(..).next().map(|call| call.function) } else { None };
        ResponseMessage {
            role: "assistant",
            content: Some(self.content).filter(|text| !text.is_empty() || !silent),
            reasoning_content: Some(self.reasoning).filter(|text| !text.is_empty()),
            tool_calls,
            function_call,
            refusal: None,
        }
    }

    /// The message as it will come back in the next request; `None` if it holds a call that nobody can answer.
    pub(crate) fn as_history(&self) -> Option<Message> {
        let mut message = Message::text(Role::Assistant, "");
        message.content = Content::Text(self.content.clone());
        message.reasoning_content = Some(self.reasoning.clone()).filter(|text| !text.is_empty());
        for (call, state) in &self.calls {
            match state {
                CallState::Open => return None,
                CallState::Broken => {}
                CallState::Complete => {
                    let arguments: Map<String, Value> =
                        serde_json::from_str(&call.function.arguments).ok()?;
                    let (id, name) = (Some(call.id.clone()), call.function.name.clone());
                    message.tool_calls.push(ToolCall { id, name, arguments, text: None, broken: false });
                }
            }
        }
        Some(message)
    }
}
