//! Answers of `/v1/messages`, in events and whole.

use serde_json::{Value, json};

use super::{MessagesRequest, messages_error};
use crate::ApiError;
use crate::chat::{Limits, TokenLogprob};
use crate::turn::{Counts, Dialect, Ending, Head, Parsed, Said, Spoken, event};

/// Writes the answer to a request of the Messages API.
#[derive(Debug)]
pub struct MessagesDialect {
    id: String,
    head: Head,
    marks_cache: bool,
    /// The block that is open, and its number.
    block: Option<Block>,
    blocks: usize,
    thought: blake3::Hasher,
    ending: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    Call,
}

impl Dialect for MessagesDialect {
    const PROMPT_FIELD: &'static str = "messages";

    fn parse(body: &[u8], limits: &Limits) -> Result<Parsed<Self>, ApiError> {
        let MessagesRequest { turn, marks_cache, notes } = MessagesRequest::parse(body, limits)?;
        let dialect = Self {
            id: format!("msg_{}", uuid::Uuid::new_v4().simple()),
            head: Head::default(),
            marks_cache,
            block: None,
            blocks: 0,
            thought: blake3::Hasher::new(),
            ending: Ending::Stop,
        };
        Ok(Parsed { turns: vec![turn], dialect, notes })
    }

    fn begin(&mut self, head: Head) {
        self.head = head;
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        // What is cached is known when the prompt is computed; the last event has the true counts.
        let counts = Counts { prompt: self.head.prompt_tokens, ..Counts::default() };
        let message = json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.head.model, "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": self.usage(counts),
        });
        event(out, "message_start", json!({"message": message}));
        event(out, "ping", json!({}));
    }

    fn keep_alive(&mut self, out: &mut Vec<u8>) {
        event(out, "ping", json!({}));
    }

    fn said(&mut self, _choice: u32, said: Vec<Said>, _logprobs: Vec<TokenLogprob>, out: &mut Vec<u8>) {
        for said in said {
            match said {
                Said::Reasoning(text) => {
                    self.thought.update(text.as_bytes());
                    self.turn_to(Block::Thinking, out);
                    self.delta(out, json!({"type": "thinking_delta", "thinking": text}));
                }
                Said::Content(text) => {
                    self.turn_to(Block::Text, out);
                    self.delta(out, json!({"type": "text_delta", "text": text}));
                }
                Said::CallStart { id, name, .. } => {
                    self.stop_block(out);
                    self.start_block(Block::Call, tool_use(&id, &name, json!({})), out);
                }
                Said::Arguments { text, .. } => {
                    self.delta(out, json!({"type": "input_json_delta", "partial_json": text}));
                }
                Said::CallEnd { .. } => self.stop_block(out),
            }
        }
    }

    fn ended(&mut self, _choice: u32, ending: Ending, out: &mut Vec<u8>) {
        self.ending = ending;
        if self.blocks == 0 {
            self.turn_to(Block::Text, out);
        }
        self.stop_block(out);
    }

    fn close(&mut self, counts: Counts, out: &mut Vec<u8>) {
        let (reason, sequence) = stop_reason(&self.ending);
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        event(out, "message_delta", json!({"delta": delta, "usage": self.usage(counts)}));
        event(out, "message_stop", json!({}));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(out, "error", messages_error(error));
    }

    fn document(self, answers: Vec<(Spoken, Vec<TokenLogprob>, Ending)>, counts: Counts) -> Value {
        let (spoken, ending) =
            answers.into_iter().next().map_or((Spoken::default(), Ending::Stop), |(s, _, e)| (s, e));
        let mut content = Vec::new();
        if !spoken.reasoning.is_empty() {
            let signature = signature(blake3::Hasher::new().update(spoken.reasoning.as_bytes()));
            content.push(json!({"type": "thinking", "thinking": spoken.reasoning, "signature": signature}));
        }
        if !spoken.content.is_empty() || spoken.calls().next().is_none() {
            content.push(json!({"type": "text", "text": spoken.content}));
        }
        content.extend(spoken.calls().map(|call| {
            // An answer that was cut inside a call has what could be made out of it.
            let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
            tool_use(&call.id, &call.name, input)
        }));
        let (reason, sequence) = stop_reason(&ending);
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.head.model, "content": content,
            "stop_reason": reason, "stop_sequence": sequence, "usage": self.usage(counts),
        })
    }

    fn error(error: &ApiError) -> Value {
        messages_error(error)
    }
}

impl MessagesDialect {
    /// Tokens as Anthropic counts them: those that were cached, those that are from now on, and the rest, which add up to the
    /// prompt. The cache keeps every prompt; it is told so where the request marks something for it.
    fn usage(&self, counts: Counts) -> Value {
        let fresh = counts.prompt.saturating_sub(counts.cached);
        let (created, input) = if self.marks_cache { (fresh, 0) } else { (0, fresh) };
        json!({
            "input_tokens": input, "cache_creation_input_tokens": created,
            "cache_read_input_tokens": counts.cached, "output_tokens": counts.completion,
        })
    }

    /// Opens a block for text or thoughts, unless it is open.
    fn turn_to(&mut self, block: Block, out: &mut Vec<u8>) {
        if self.block == Some(block) {
            return;
        }
        self.stop_block(out);
        let empty = match block {
            Block::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
            _ => json!({"type": "text", "text": ""}),
        };
        self.start_block(block, empty, out);
    }

    fn start_block(&mut self, block: Block, content: Value, out: &mut Vec<u8>) {
        self.block = Some(block);
        event(out, "content_block_start", json!({"index": self.blocks, "content_block": content}));
    }

    fn stop_block(&mut self, out: &mut Vec<u8>) {
        let Some(block) = self.block.take() else { return };
        if block == Block::Thinking {
            let signature = signature(&std::mem::take(&mut self.thought));
            self.delta(out, json!({"type": "signature_delta", "signature": signature}));
        }
        event(out, "content_block_stop", json!({"index": self.blocks}));
        self.blocks += 1;
    }

    fn delta(&self, out: &mut Vec<u8>, delta: Value) {
        event(out, "content_block_delta", json!({"index": self.blocks, "delta": delta}));
    }
}

fn tool_use(id: &str, name: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

/// Clients drop thoughts without a signature. Nothing is made of it when it comes back: what a client says that the model
/// thought is read as what the model thought, in this API as in the others.
fn signature(thought: &blake3::Hasher) -> String {
    format!("mach-{}", thought.finalize().to_hex())
}

fn stop_reason(ending: &Ending) -> (&'static str, Option<&str>) {
    match ending {
        Ending::Stop => ("end_turn", None),
        Ending::StopString(text) => ("stop_sequence", Some(text)),
        Ending::Length => ("max_tokens", None),
        Ending::Calls => ("tool_use", None),
    }
}
