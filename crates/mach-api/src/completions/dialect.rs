//! Answers of `/v1/completions`, in chunks and whole.

use serde_json::Value;

use super::response::{Completion, CompletionChoice, CompletionChunk, CompletionLogprobs, completion_id};
use super::{CompletionRequest, Prompt};
use crate::ApiError;
use crate::chat::{FinishReason, Limits, TokenLogprob, Usage};
use crate::turn::{Counts, DONE, Dialect, Ending, Head, Input, Parsed, Said, Spoken, Turn, data};

/// Writes the answers to plain prompts.
#[derive(Debug)]
pub struct CompletionDialect {
    id: String,
    head: Head,
    echo: bool,
    include_usage: bool,
    logprobs: bool,
    /// Answers of a prompt.
    n: usize,
    /// Where the next token of each choice begins, in characters.
    offsets: Vec<usize>,
}

impl Dialect for CompletionDialect {
    const PROMPT_FIELD: &'static str = "prompt";

    fn parse(body: &[u8], limits: &Limits) -> Result<Parsed<Self>, ApiError> {
        let CompletionRequest { prompts, echo, settings, notes } = CompletionRequest::parse(body, limits)?;
        let dialect = Self {
            id: completion_id(),
            head: Head::default(),
            echo,
            include_usage: settings.include_usage,
            logprobs: settings.logprobs.is_some(),
            n: settings.n as usize,
            offsets: vec![0; prompts.len() * settings.n as usize],
        };
        let turn = |prompt| {
            let input = match prompt {
                Prompt::Text(text) => Input::Text(text),
                Prompt::Tokens(ids) => Input::Tokens(ids),
            };
            Turn { input, settings: settings.clone() }
        };
        Ok(Parsed { turns: prompts.into_iter().map(turn).collect(), dialect, notes })
    }

    fn wants_prompts(&self) -> bool {
        self.echo
    }

    fn begin(&mut self, head: Head) {
        self.head = head;
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        let prompts = self.head.prompts.iter().flat_map(|text| std::iter::repeat_n(text, self.n));
        for (index, text) in (0..).zip(prompts) {
            self.chunk(
                out,
                CompletionChoice { index, text: text.clone(), logprobs: None, finish_reason: None },
            );
        }
    }

    fn said(&mut self, choice: u32, said: Vec<Said>, logprobs: Vec<TokenLogprob>, out: &mut Vec<u8>) {
        let logprobs = self.logprobs(choice, logprobs);
        let text: String = said
            .into_iter()
            .filter_map(|said| match said {
                Said::Content(text) => Some(text),
                _ => None,
            })
            .collect();
        if !text.is_empty() || logprobs.is_some() {
            self.chunk(out, CompletionChoice { index: choice, text, logprobs, finish_reason: None });
        }
    }

    fn ended(&mut self, choice: u32, ending: Ending, out: &mut Vec<u8>) {
        let finish_reason = Some(finish_reason(ending));
        self.chunk(
            out,
            CompletionChoice { index: choice, text: String::new(), logprobs: None, finish_reason },
        );
    }

    fn close(&mut self, counts: Counts, out: &mut Vec<u8>) {
        if self.include_usage {
            data(out, &CompletionChunk { usage: Some(Some(counts.into())), ..self.blank() });
        }
        out.extend_from_slice(DONE);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        data(out, &error.body());
        out.extend_from_slice(DONE);
    }

    fn document(mut self, answers: Vec<(Spoken, Vec<TokenLogprob>, Ending)>, counts: Counts) -> Value {
        let mut choices = Vec::with_capacity(answers.len());
        for (index, (spoken, logprobs, ending)) in (0..).zip(answers) {
            let prompt = self.head.prompts.get(index as usize / self.n.max(1)).map_or("", String::as_str);
            let text = format!("{prompt}{}", spoken.content);
            let logprobs = self.logprobs.then(|| self.logprobs(index, logprobs).unwrap_or_default());
            choices.push(CompletionChoice {
                index,
                text,
                logprobs,
                finish_reason: Some(finish_reason(ending)),
            });
        }
        let completion = Completion {
            id: self.id,
            object: "text_completion",
            created: self.head.created,
            model: self.head.model,
            system_fingerprint: self.head.numerics,
            choices,
            usage: counts.into(),
        };
        // Strings and finite numbers only.
        serde_json::to_value(completion).unwrap_or_default()
    }
}

impl CompletionDialect {
    fn logprobs(&mut self, choice: u32, tokens: Vec<TokenLogprob>) -> Option<CompletionLogprobs> {
        let offset = self.offsets.get_mut(choice as usize)?;
        (self.logprobs && !tokens.is_empty()).then(|| CompletionLogprobs::new(tokens, offset))
    }

    fn chunk(&self, out: &mut Vec<u8>, choice: CompletionChoice) {
        data(out, &CompletionChunk { choices: vec![choice], ..self.blank() });
    }

    /// A chunk without a choice, and without counts.
    fn blank(&self) -> CompletionChunk<'_> {
        CompletionChunk {
            id: &self.id,
            object: "text_completion",
            created: self.head.created,
            model: &self.head.model,
            system_fingerprint: &self.head.numerics,
            choices: Vec::new(),
            usage: self.include_usage.then_some(None::<Usage>),
        }
    }
}

/// Plain prompts have no calls.
fn finish_reason(ending: Ending) -> FinishReason {
    match ending {
        Ending::Length => FinishReason::Length,
        Ending::Stop | Ending::StopString(_) | Ending::Calls => FinishReason::Stop,
    }
}
