//! Answers in the same process, without HTTP: one choice, as it is spoken.

use std::sync::Arc;

use mach_api::turn::{Counts, Ending, Said, Spoken, Turn};
use mach_api::{ApiError, ErrorKind};
use mach_engine::{Event, Events, FinishReason, TextTokenizer, Timings};

use crate::ChatModel;
use crate::answer::thought;
use crate::failure::from_engine;
use crate::reader::Reader;

/// The field that complaints about a prompt's length name.
const PROMPT_FIELD: &str = "messages";

/// What is heard of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// More of it.
    Said(Vec<Said>),
    /// Its end; nothing follows.
    Ended {
        /// The last of it.
        said: Vec<Said>,
        /// Why it ended.
        ending: Ending,
        /// Tokens.
        counts: Counts,
        /// How long its parts took.
        timings: Timings,
    },
}

/// An answer in the making. Dropping it cancels the generation before the next pass.
#[derive(Debug)]
pub struct LocalAnswer {
    events: Events,
    reader: Reader,
    tokenizer: Arc<TextTokenizer>,
    prompt_tokens: usize,
}

impl ChatModel {
    /// Asks for the answer to a turn; only its first choice is heard.
    pub fn ask(&self, turn: &Turn) -> Result<LocalAnswer, ApiError> {
        let prepared = self.prepare(turn)?;
        let prompt_tokens = prepared.generate.prompt.len();
        let reader = Reader::new(&prepared.reading, Arc::clone(&self.output_stats));
        let events = self.engine.submit(prepared.generate).map_err(|e| from_engine(&e, PROMPT_FIELD))?;
        Ok(LocalAnswer { events, reader, tokenizer: Arc::clone(self.engine.tokenizer()), prompt_tokens })
    }
}

impl LocalAnswer {
    /// Waits for what comes next.
    pub async fn next(&mut self) -> Result<Heard, ApiError> {
        let event = self.events.recv().await;
        self.heard(event)
    }

    /// The same, for threads.
    pub fn blocking_next(&mut self) -> Result<Heard, ApiError> {
        let event = self.events.blocking_recv();
        self.heard(event)
    }

    fn heard(&mut self, event: Option<Event>) -> Result<Heard, ApiError> {
        match event {
            Some(Event::Text { choice: 0, text, .. }) => Ok(Heard::Said(self.reader.push(&text))),
            Some(Event::Text { .. } | Event::Embedding(_)) => Ok(Heard::Said(Vec::new())),
            Some(Event::Finished { reason, tokens, timings, cached, ids, stopped_by, .. }) => {
                let cut = reason == FinishReason::Length;
                let said = self.reader.finish(cut);
                let ending = self.reader.ending(cut, stopped_by);
                let reasoning = match self.reader.spoken().reasoning.as_str() {
                    "" => 0,
                    text => thought(&self.tokenizer, text, ids.as_deref(), tokens),
                };
                let counts = Counts { prompt: self.prompt_tokens, cached, completion: tokens, reasoning };
                Ok(Heard::Ended { said, ending, counts, timings })
            }
            Some(Event::Failed(error)) => Err(from_engine(&error, PROMPT_FIELD)),
            None => Err(ApiError::new(ErrorKind::Internal, "the engine dropped the request")),
        }
    }

    /// Gives the answer up where it is, and what was said until then.
    pub fn stop(mut self) -> (Vec<Said>, Spoken) {
        let said = self.reader.finish(true);
        (said, self.reader.into_spoken())
    }

    /// All that was said.
    pub fn into_spoken(self) -> Spoken {
        self.reader.into_spoken()
    }
}
