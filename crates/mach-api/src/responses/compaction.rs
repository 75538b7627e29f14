//! `POST /v1/responses/compact`: a conversation made shorter. What people said stays as it is; the rest becomes a summary by the
//! model, sealed, which the next request brings back as an item.

use std::sync::Arc;

use serde_json::{Value, json};

use super::dialect::usage;
use super::items::is_summary;
use super::output;
use super::past::Backing;
use super::request::ResponsesRequest;
use super::seal::{Kind, Seal};
use crate::chat::{Content, Limits, Message, Role, TokenLogprob, ToolChoice};
use crate::turn::{Counts, Dialect, Ending, Head, Input, Parsed, Said, Spoken};
use crate::{ApiError, ErrorKind};

/// What the model is asked behind the conversation.
const ASKED: &str = "The conversation so far is about to be left out, and you will go on from your own notes alone. Write those \
notes now: what the user wants, what was found out and decided, which files, names and values matter, what was done, and \
what is left to do. Be exact and brief. Call no tools.";

/// Bytes of what people said that stay, the newest first.
const STAYS: usize = 64 << 10;

/// Writes the shorter conversation.
#[derive(Debug)]
pub struct CompactionDialect {
    head: Head,
    seal: Arc<Seal>,
    stays: Vec<Value>,
}

impl Dialect for CompactionDialect {
    const PROMPT_FIELD: &'static str = "input";

    fn parse(body: &[u8], limits: &Limits) -> Result<Parsed<Self>, ApiError> {
        Self::parse_with(body, limits, &Backing::none())
    }

    fn parse_with(body: &[u8], limits: &Limits, backing: &Backing<'_>) -> Result<Parsed<Self>, ApiError> {
        let ResponsesRequest { mut turn, asked, notes } = ResponsesRequest::parse(body, limits, backing)?;
        let Input::Conversation(conversation) = &mut turn.input else {
            return Err(ApiError::new(ErrorKind::Internal, "no conversation"));
        };
        let instructed = asked.repeated.get("instructions").is_some_and(Value::is_string);
        let stays = staying(conversation.messages.get(usize::from(instructed)..).unwrap_or_default());
        conversation.messages.push(Message::text(Role::User, ASKED));
        // The template goes on showing the tools, so that the prompt begins as the ones before did.
        conversation.tool_choice = ToolChoice::None;
        turn.settings.stream = false;
        turn.settings.format = None;
        turn.settings.logprobs = None;
        let dialect = Self { head: Head::default(), seal: Arc::clone(&backing.seal), stays };
        Ok(Parsed { turns: vec![turn], dialect, notes })
    }

    fn begin(&mut self, head: Head) {
        self.head = head;
    }

    // Never streamed.
    fn said(&mut self, _: u32, _: Vec<Said>, _: Vec<TokenLogprob>, _: &mut Vec<u8>) {}
    fn ended(&mut self, _: u32, _: Ending, _: &mut Vec<u8>) {}
    fn close(&mut self, _: Counts, _: &mut Vec<u8>) {}
    fn fail(&mut self, _: &ApiError, _: &mut Vec<u8>) {}

    fn document(self, answers: Vec<(Spoken, Vec<TokenLogprob>, Ending)>, counts: Counts) -> Value {
        let (spoken, ..) =
            answers.into_iter().next().unwrap_or((Spoken::default(), Vec::new(), Ending::Stop));
        let sealed = self.seal.close(Kind::Compaction, spoken.content.trim());
        let mut items = self.stays;
        items.push(json!({"id": output::id("cmp"), "type": "compaction", "encrypted_content": sealed}));
        json!({
            "id": output::id("resp"), "object": "response.compaction", "created_at": self.head.created,
            "output": items, "usage": usage(counts),
        })
    }
}

/// What people said, as items, oldest first; summaries of before are in the new one.
fn staying(messages: &[Message]) -> Vec<Value> {
    let (mut left, mut items) = (STAYS, Vec::new());
    for message in messages.iter().rev() {
        if !matches!(message.role, Role::User | Role::Developer | Role::System) || is_summary(message) {
            continue;
        }
        let texts = match &message.content {
            Content::None => continue,
            Content::Text(text) => std::slice::from_ref(text),
            Content::Parts(texts) => texts.as_slice(),
        };
        let Some(rest) = left.checked_sub(texts.iter().map(String::len).sum()) else { break };
        left = rest;
        let parts: Vec<_> = texts.iter().map(|text| json!({"type": "input_text", "text": text})).collect();
        let role = message.role.as_str();
        items.push(json!({"id": output::id("msg"), "type": "message", "role": role, "content": parts}));
    }
    items.reverse();
    items
}
