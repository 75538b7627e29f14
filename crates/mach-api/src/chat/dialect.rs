//! Answers of `/v1/chat/completions`, in chunks and whole.

use serde_json::Value;

use super::response::{
    ChatCompletion, ChatCompletionChunk, Choice, ChunkChoice, Delta, FinishReason, FunctionDelta,
    ResponseFunction, ResponseMessage, ResponseToolCall, TokenLogprob, ToolCallDelta, Usage, completion_id,
};
use super::{ChatRequest, Limits};
use crate::ApiError;
use crate::turn::{Call, Counts, DONE, Dialect, Ending, Head, Parsed, Said, Spoken, data};

/// Writes the answer to a chat request.
#[derive(Debug)]
pub struct ChatDialect {
    id: String,
    head: Head,
    /// Calls go back as `function_call`.
    legacy: bool,
    include_usage: bool,
    logprobs: bool,
    /// They tell which tokens were proposed.
    sources: bool,
    /// Which choices have said who speaks.
    begun: Vec<bool>,
}

impl Dialect for ChatDialect {
    const PROMPT_FIELD: &'static str = "messages";

    fn parse(body: &[u8], limits: &Limits) -> Result<Parsed<Self>, ApiError> {
        let mut request = ChatRequest::parse(body, limits)?;
        let dialect = Self {
            id: completion_id(),
            head: Head::default(),
            legacy: request.legacy_functions,
            include_usage: request.settings.include_usage,
            logprobs: request.settings.logprobs.is_some(),
            sources: request.token_sources,
            begun: vec![false; request.settings.n as usize],
        };
        let notes = std::mem::take(&mut request.notes);
        Ok(Parsed { turns: vec![request.into_turn()], dialect, notes })
    }

    fn begin(&mut self, head: Head) {
        self.head = head;
    }

    fn said(&mut self, choice: u32, said: Vec<Said>, logprobs: Vec<TokenLogprob>, out: &mut Vec<u8>) {
        let mut logprobs = (self.logprobs && !logprobs.is_empty()).then(|| self.told(logprobs));
        let mut deltas: Vec<Delta> = said.into_iter().filter_map(|said| self.delta(said)).collect();
        // Log probabilities go with the first chunk; tokens that show nothing have them too.
        if deltas.is_empty() && logprobs.is_some() {
            deltas.push(Delta::default());
        }
        for mut delta in deltas {
            let content = delta.content.is_some();
            self.introduce(out, choice, &mut delta, content);
            let logprobs = logprobs.take().map(Into::into);
            self.chunk(out, Some(ChunkChoice { index: choice, delta, logprobs, finish_reason: None }));
        }
    }

    fn ended(&mut self, choice: u32, ending: Ending, out: &mut Vec<u8>) {
        // An answer that says nothing has a content too.
        let mut delta = Delta::default();
        self.introduce(out, choice, &mut delta, true);
        let finish_reason = Some(self.finish_reason(ending));
        self.chunk(out, Some(ChunkChoice { index: choice, delta, logprobs: None, finish_reason }));
    }

    fn close(&mut self, counts: Counts, out: &mut Vec<u8>) {
        if self.include_usage {
            data(out, &ChatCompletionChunk { usage: Some(Some(counts.into())), ..self.blank() });
        }
        out.extend_from_slice(DONE);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        data(out, &error.body());
        out.extend_from_slice(DONE);
    }

    fn document(self, answers: Vec<(Spoken, Vec<TokenLogprob>, Ending)>, counts: Counts) -> Value {
        let choice = |(index, (spoken, logprobs, ending)): (u32, (Spoken, Vec<TokenLogprob>, Ending))| {
            let logprobs = self.logprobs.then(|| self.told(logprobs));
            Choice::new(index, self.message(spoken), logprobs, self.finish_reason(ending))
        };
        let choices = (0..).zip(answers).map(choice).collect();
        let completion = ChatCompletion {
            choices,
            usage: counts.into(),
            id: self.id,
            object: "chat.completion",
            created: self.head.created,
            model: self.head.model,
            system_fingerprint: self.head.numerics,
        };
        // Strings and finite numbers only.
        serde_json::to_value(completion).unwrap_or_default()
    }
}

impl ChatDialect {
    fn finish_reason(&self, ending: Ending) -> FinishReason {
        match ending {
            Ending::Stop | Ending::StopString(_) => FinishReason::Stop,
            Ending::Length => FinishReason::Length,
            Ending::Calls if self.legacy => FinishReason::FunctionCall,
            Ending::Calls => FinishReason::ToolCalls,
        }
    }

    /// Log probabilities as the request wants them.
    fn told(&self, mut logprobs: Vec<TokenLogprob>) -> Vec<TokenLogprob> {
        if !self.sources {
            logprobs.iter_mut().for_each(|token| token.drafted = None);
        }
        logprobs
    }

    /// What a piece adds; nothing for the end of a call, which OpenAI does not tell.
    fn delta(&self, said: Said) -> Option<Delta> {
        let (index, id, name, arguments) = match said {
            Said::Reasoning(text) => {
                return Some(Delta { reasoning_content: Some(text), ..Delta::default() });
            }
            Said::Content(text) => return Some(Delta { content: Some(text), ..Delta::default() }),
            Said::CallEnd { .. } => return None,
            Said::CallStart { index, id, name } => (index, Some(id), Some(name), String::new()),
            Said::Arguments { index, text } => (index, None, None, text),
        };
        let function = FunctionDelta { name, arguments };
        if self.legacy {
            return Some(Delta { function_call: Some(function), ..Delta::default() });
        }
        let r#type = id.is_some().then_some("function");
        Some(Delta { tool_calls: vec![ToolCallDelta { index, id, r#type, function }], ..Delta::default() })
    }

    /// Says who speaks, once a choice: in a chunk of its own before content, as OpenAI does, else with what comes first, so that
    /// a message that only calls or reasons gets no content.
    fn introduce(&mut self, out: &mut Vec<u8>, index: u32, first: &mut Delta, content: bool) {
        let begun = self.begun.get_mut(index as usize).map(|begun| std::mem::replace(begun, true));
        if begun != Some(false) {
            return;
        }
        if !content {
            first.role = Some("assistant");
            return;
        }
        let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        self.chunk(out, Some(ChunkChoice { index, delta, logprobs: None, finish_reason: None }));
    }

    fn chunk(&self, out: &mut Vec<u8>, choice: Option<ChunkChoice>) {
        data(out, &ChatCompletionChunk { choices: choice.into_iter().collect(), ..self.blank() });
    }

    /// A chunk without a choice, and without counts.
    fn blank(&self) -> ChatCompletionChunk<'_> {
        ChatCompletionChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.head.created,
            model: &self.head.model,
            system_fingerprint: &self.head.numerics,
            choices: Vec::new(),
            usage: self.include_usage.then_some(None::<Usage>),
        }
    }

    fn message(&self, spoken: Spoken) -> ResponseMessage {
        let function =
            |call: &Call| ResponseFunction { name: call.name.clone(), arguments: call.arguments.clone() };
        let calls: Vec<&Call> = spoken.calls().collect();
        let silent = spoken.content.is_empty() && !calls.is_empty();
        let (tool_calls, function_call) = match self.legacy {
            true => (Vec::new(), calls.first().map(|call| function(call))),
            false => {
                let call = |call: &&Call| ResponseToolCall {
                    id: call.id.clone(),
                    r#type: "function",
                    function: function(call),
                };
                (calls.iter().map(call).collect(), None)
            }
        };
        ResponseMessage {
            role: "assistant",
            reasoning_content: Some(spoken.reasoning.clone()).filter(|text| !text.is_empty()),
            tool_calls,
            function_call,
            refusal: None,
            content: (!silent).then_some(spoken.content),
        }
    }
}
