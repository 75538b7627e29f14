//! Answers of `/v1/responses`, in events and whole.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::output::{self, Status};
use super::past::{Backing, Record};
use super::request::{Asked, ResponsesRequest};
use super::seal::Seal;
use crate::ApiError;
use crate::chat::{Limits, TokenLogprob};
use crate::memory::Weight;
use crate::turn::{Counts, Dialect, Ending, Head, Parsed, Said, Spoken, event};

/// Writes the response to a request.
#[derive(Debug)]
pub struct ResponsesDialect {
    id: String,
    head: Head,
    asked: Asked,
    seal: Arc<Seal>,
    /// Events so far.
    events: u64,
    /// Items that are complete.
    items: Vec<Value>,
    open: Option<Open>,
    ending: Ending,
}

/// The item that grows.
#[derive(Debug)]
enum Open {
    Thoughts { id: String, text: String },
    Message { id: String, text: String, logprobs: Vec<TokenLogprob> },
    Call { id: String, call_id: String, name: String, arguments: String },
}

impl Dialect for ResponsesDialect {
    const PROMPT_FIELD: &'static str = "input";
    const LENGTH_IN_STREAM: bool = true;

    fn parse(body: &[u8], limits: &Limits) -> Result<Parsed<Self>, ApiError> {
        Self::parse_with(body, limits, &Backing::none())
    }

    fn parse_with(body: &[u8], limits: &Limits, backing: &Backing<'_>) -> Result<Parsed<Self>, ApiError> {
        let ResponsesRequest { turn, asked, notes } = ResponsesRequest::parse(body, limits, backing)?;
        let dialect = Self {
            id: output::id("resp"),
            head: Head::default(),
            asked,
            seal: Arc::clone(&backing.seal),
            events: 0,
            items: Vec::new(),
            open: None,
            ending: Ending::Stop,
        };
        Ok(Parsed { turns: vec![turn], dialect, notes })
    }

    fn memory(&self) -> usize {
        let values = self.asked.repeated.values().chain(&self.asked.input);
        values.map(|value| Weight::of_json(value).memory()).sum()
    }

    fn begin(&mut self, head: Head) {
        self.head = head;
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        let response = self.response("in_progress", Map::new());
        self.event(out, "response.created", json!({"response": response}));
        self.keep_alive(out);
    }

    fn keep_alive(&mut self, out: &mut Vec<u8>) {
        let response = self.response("in_progress", Map::new());
        self.event(out, "response.in_progress", json!({"response": response}));
    }

    fn said(&mut self, _choice: u32, said: Vec<Said>, logprobs: Vec<TokenLogprob>, out: &mut Vec<u8>) {
        let mut logprobs = if self.asked.logprobs { logprobs } else { Vec::new() };
        for said in said {
            match said {
                Said::Reasoning(text) => self.think(text, out),
                Said::Content(text) => self.say(text, std::mem::take(&mut logprobs), out),
                Said::CallStart { id, name, .. } => self.call(id, name, out),
                Said::Arguments { text, .. } => self.argue(&text, out),
                Said::CallEnd { .. } => self.close_item(Status::Completed, out),
            }
        }
    }

    fn ended(&mut self, _choice: u32, ending: Ending, out: &mut Vec<u8>) {
        let status = match ending {
            Ending::Length => Status::Incomplete,
            _ => Status::Completed,
        };
        self.ending = ending;
        if self.items.is_empty() && self.open.is_none() {
            self.say(String::new(), Vec::new(), out);
        }
        self.close_item(status, out);
    }

    fn close(&mut self, counts: Counts, out: &mut Vec<u8>) {
        let (name, response) = self.finished(counts);
        self.event(out, name, json!({"response": response}));
        self.keep(response);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        self.close_item(Status::Incomplete, out);
        let code = error.kind.code().unwrap_or("server_error");
        let mut more = Map::new();
        more.insert("error".into(), json!({"code": code, "message": error.message}));
        let response = self.response("failed", more);
        self.event(out, "response.failed", json!({"response": response}));
    }

    fn document(mut self, answers: Vec<(Spoken, Vec<TokenLogprob>, Ending)>, counts: Counts) -> Value {
        let (spoken, logprobs, ending) =
            answers.into_iter().next().unwrap_or((Spoken::default(), Vec::new(), Ending::Stop));
        let cut = matches!(ending, Ending::Length);
        let silent = spoken.content.is_empty();
        let calls: Vec<_> = spoken.calls().cloned().collect();
        // What was cut is the last.
        let status = |last: bool| if cut && last { Status::Incomplete } else { Status::Completed };
        if !spoken.reasoning.is_empty() {
            let status = status(silent && calls.is_empty());
            let text = Some(spoken.reasoning.as_str());
            let item = self.asked.thoughts.item(&output::id("rs"), text, status, &self.seal);
            self.items.push(item);
        }
        if !silent || self.items.is_empty() && calls.is_empty() {
            let logprobs = if self.asked.logprobs { logprobs } else { Vec::new() };
            let part = output::text_part(&spoken.content, &logprobs);
            self.items.push(output::message(&output::id("msg"), Some(part), status(calls.is_empty())));
        }
        for (i, call) in calls.iter().enumerate() {
            let (id, status) = (output::id("fc"), status(i + 1 == calls.len()));
            let item = output::call(&id, &call.id, &call.name, &self.asked.names, &call.arguments, status);
            self.items.push(item);
        }
        self.ending = ending;
        let (_, response) = self.finished(counts);
        self.keep(response.clone());
        response
    }
}

impl ResponsesDialect {
    /// One event, numbered.
    fn event(&mut self, out: &mut Vec<u8>, name: &'static str, mut data: Value) {
        if let Some(object) = data.as_object_mut() {
            object.insert("sequence_number".into(), self.events.into());
        }
        self.events += 1;
        event(out, name, data);
    }

    /// An event of the open item, or of the one before it is counted.
    fn of_item(&mut self, out: &mut Vec<u8>, name: &'static str, mut data: Value) {
        if let Some(object) = data.as_object_mut() {
            object.insert("output_index".into(), self.items.len().into());
        }
        self.event(out, name, data);
    }

    fn added(&mut self, item: &Value, out: &mut Vec<u8>) {
        self.of_item(out, "response.output_item.added", json!({"item": item}));
    }

    fn think(&mut self, new: String, out: &mut Vec<u8>) {
        if !matches!(self.open, Some(Open::Thoughts { .. })) {
            self.leave_item(out);
            let id = output::id("rs");
            let item = self.asked.thoughts.item(&id, None, Status::InProgress, &self.seal);
            self.added(&item, out);
            let (part, id) = (self.asked.thoughts.part(""), id);
            match self.asked.thoughts.summary {
                true => {
                    let data = json!({"item_id": id, "summary_index": 0, "part": part});
                    self.of_item(out, "response.reasoning_summary_part.added", data);
                }
                false => {
                    let data = json!({"item_id": id, "content_index": 0, "part": part});
                    self.of_item(out, "response.content_part.added", data);
                }
            }
            self.open = Some(Open::Thoughts { id, text: String::new() });
        }
        let Some(Open::Thoughts { id, text }) = &mut self.open else { return };
        text.push_str(&new);
        let id = id.clone();
        let (name, index) = match self.asked.thoughts.summary {
            true => ("response.reasoning_summary_text.delta", "summary_index"),
            false => ("response.reasoning_text.delta", "content_index"),
        };
        self.of_item(out, name, json!({"item_id": id, index: 0, "delta": new}));
    }

    fn say(&mut self, new: String, tokens: Vec<TokenLogprob>, out: &mut Vec<u8>) {
        if !matches!(self.open, Some(Open::Message { .. })) {
            self.leave_item(out);
            let id = output::id("msg");
            self.added(&output::message(&id, None, Status::InProgress), out);
            let part = output::text_part("", &[]);
            let data = json!({"item_id": id, "content_index": 0, "part": part});
            self.of_item(out, "response.content_part.added", data);
            self.open = Some(Open::Message { id, text: String::new(), logprobs: Vec::new() });
        }
        let Some(Open::Message { id, text, logprobs }) = &mut self.open else { return };
        if new.is_empty() && tokens.is_empty() {
            return;
        }
        text.push_str(&new);
        let data = json!({"item_id": id, "content_index": 0, "delta": new, "logprobs": tokens});
        logprobs.extend(tokens);
        self.of_item(out, "response.output_text.delta", data);
    }

    fn call(&mut self, call_id: String, name: String, out: &mut Vec<u8>) {
        self.leave_item(out);
        let id = output::id("fc");
        let item = output::call(&id, &call_id, &name, &self.asked.names, "", Status::InProgress);
        self.added(&item, out);
        self.open = Some(Open::Call { id, call_id, name, arguments: String::new() });
    }

    fn argue(&mut self, new: &str, out: &mut Vec<u8>) {
        let Some(Open::Call { id, arguments, .. }) = &mut self.open else { return };
        arguments.push_str(new);
        let data = json!({"item_id": id, "delta": new});
        self.of_item(out, "response.function_call_arguments.delta", data);
    }

    /// Ends the open item, as another begins. A call that was not ended by then was none after all.
    fn leave_item(&mut self, out: &mut Vec<u8>) {
        let broken = matches!(self.open, Some(Open::Call { .. }));
        self.close_item(if broken { Status::Incomplete } else { Status::Completed }, out);
    }

    /// Ends the open item. A call that was cut has no arguments to tell.
    fn close_item(&mut self, status: Status, out: &mut Vec<u8>) {
        let item = match self.open.take() {
            None => return,
            Some(Open::Thoughts { id, text }) => {
                let part = self.asked.thoughts.part(&text);
                if self.asked.thoughts.summary {
                    let data = json!({"item_id": id, "summary_index": 0, "text": text});
                    self.of_item(out, "response.reasoning_summary_text.done", data);
                    let data = json!({"item_id": id, "summary_index": 0, "part": part});
                    self.of_item(out, "response.reasoning_summary_part.done", data);
                } else {
                    let data = json!({"item_id": id, "content_index": 0, "text": text});
                    self.of_item(out, "response.reasoning_text.done", data);
                    let data = json!({"item_id": id, "content_index": 0, "part": part});
                    self.of_item(out, "response.content_part.done", data);
                }
                self.asked.thoughts.item(&id, Some(&text), status, &self.seal)
            }
            Some(Open::Message { id, text, logprobs }) => {
                let data = json!({"item_id": id, "content_index": 0, "text": text, "logprobs": logprobs});
                self.of_item(out, "response.output_text.done", data);
                let part = output::text_part(&text, &logprobs);
                let data = json!({"item_id": id, "content_index": 0, "part": part});
                self.of_item(out, "response.content_part.done", data);
                output::message(&id, Some(part), status)
            }
            Some(Open::Call { id, call_id, name, arguments }) => {
                if status == Status::Completed {
                    let (_, original) = self.asked.names.original(&name);
                    let data = json!({"item_id": id, "name": original, "arguments": arguments});
                    self.of_item(out, "response.function_call_arguments.done", data);
                }
                output::call(&id, &call_id, &name, &self.asked.names, &arguments, status)
            }
        };
        self.of_item(out, "response.output_item.done", json!({"item": item}));
        self.items.push(item);
    }

    /// The response object, `more` over what it says otherwise.
    fn response(&self, status: &str, more: Map<String, Value>) -> Value {
        let mut response = Map::new();
        let own = [
            ("id", self.id.as_str().into()),
            ("object", "response".into()),
            ("created_at", self.head.created.into()),
            ("status", status.into()),
            ("background", false.into()),
            ("completed_at", Value::Null),
            ("error", Value::Null),
            ("incomplete_details", Value::Null),
            ("model", self.head.model.as_str().into()),
            ("output", self.items.clone().into()),
            ("usage", Value::Null),
        ];
        response.extend(own.map(|(name, value)| (name.to_owned(), value)));
        response.extend(self.asked.repeated.clone());
        response.extend(more);
        response.into()
    }

    /// The event that ends a stream, and its response.
    fn finished(&self, counts: Counts) -> (&'static str, Value) {
        let mut more = Map::new();
        more.insert("usage".into(), usage(counts));
        if self.ending == Ending::Length {
            more.insert("incomplete_details".into(), json!({"reason": "max_output_tokens"}));
            return ("response.incomplete", self.response("incomplete", more));
        }
        more.insert("completed_at".into(), now().into());
        ("response.completed", self.response("completed", more))
    }

    fn keep(&mut self, response: Value) {
        let Some(keep) = self.asked.keep.take() else { return };
        let (previous, input) = (self.asked.previous.take(), std::mem::take(&mut self.asked.input));
        keep.keep(Record { previous, input, response });
    }
}

/// Unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Tokens as this API counts them.
pub(super) fn usage(counts: Counts) -> Value {
    json!({
        "input_tokens": counts.prompt, "input_tokens_details": {"cached_tokens": counts.cached},
        "output_tokens": counts.completion,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": counts.prompt + counts.completion,
    })
}
