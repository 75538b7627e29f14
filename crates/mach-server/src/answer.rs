//! The one loop between the engine and the dialects: events of the engine become events of turns.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use mach_api::chat::{TokenLogprob, TopLogprob};
use mach_api::turn::{Counts, Ending, Said, Spoken};
use mach_api::{ApiError, ErrorKind};
use mach_engine::{Event, Events, TextTokenizer};
use tracing::info;

use crate::ChatModel;
use crate::chat_model::Prepared;
use crate::coalesce::coalesce;
use crate::failure::from_engine;
use crate::reader::Reader;

/// Events that may share one write when the client is slower than the model.
const BATCH: usize = 64;

/// Events of several turns, each with the number of its turn.
type Numbered = Pin<Box<dyn Stream<Item = (u32, Event)> + Send>>;

/// What happened to one choice. Choices are numbered turn by turn.
#[derive(Debug)]
pub(crate) enum Step {
    /// It said more.
    Said {
        /// Which choice.
        choice: u32,
        /// What is new.
        said: Vec<Said>,
        /// Log probabilities of its tokens.
        logprobs: Vec<TokenLogprob>,
    },
    /// It ended.
    Ended {
        /// Which choice.
        choice: u32,
        /// Why the answer ended.
        ending: Ending,
    },
}

/// What of a turn outlives its way to the engine.
#[derive(Debug)]
struct Asked {
    /// Digest of the prompt's text, for answers that are remembered.
    text: Option<[u8; 32]>,
    salt: Option<String>,
}

/// Answers in the making. Dropping it cancels the generation.
pub(crate) struct Answers {
    model: Arc<ChatModel>,
    events: stream::ReadyChunks<Numbered>,
    asked: Vec<Asked>,
    /// One a choice.
    readers: Vec<Reader>,
    /// Choices of a turn.
    n: u32,
    unfinished: usize,
    prompt_field: &'static str,
    counts: Counts,
    /// An error that is still to be told.
    failed: Option<ApiError>,
}

impl Answers {
    /// Answers to turns that the engine was asked; `n` to each.
    pub(crate) fn new(
        model: Arc<ChatModel>,
        turns: Vec<(Asking, Events)>,
        n: u32,
        prompt_field: &'static str,
    ) -> Self {
        let (mut readers, mut asked, mut all) = (Vec::new(), Vec::new(), Vec::new());
        let mut counts = Counts::default();
        for (asking, events) in turns {
            counts.prompt += asking.prompt_tokens;
            readers.extend((0..n).map(|_| Reader::new(&asking.reading, Arc::clone(&model.output_stats))));
            asked.push(Asked { text: asking.text, salt: asking.salt });
            all.push(events);
        }
        let numbered = (0..).zip(all).map(|(turn, events)| {
            let mut events = events;
            stream::poll_fn(move |context| events.poll_recv(context)).map(move |event| (turn, event)).boxed()
        });
        let numbered: Numbered = Box::pin(stream::select_all(numbered));
        let unfinished = readers.len();
        Self {
            model,
            events: numbered.ready_chunks(BATCH),
            asked,
            readers,
            n,
            unfinished,
            prompt_field,
            counts,
            failed: None,
        }
    }

    /// Waits for what happens next; nothing comes after an error, or after the last choice ended.
    pub(crate) async fn next(&mut self) -> Result<Vec<Step>, ApiError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let Some(events) = self.events.next().await else { return Err(lost()) };
        let mut steps = Vec::new();
        for (turn, event) in coalesce(events) {
            if let Err(error) = self.event(turn, event, &mut steps) {
                // What was said before is told first.
                if steps.is_empty() {
                    return Err(error);
                }
                self.failed = Some(error);
                break;
            }
        }
        Ok(steps)
    }

    fn event(&mut self, turn: u32, event: Event, steps: &mut Vec<Step>) -> Result<(), ApiError> {
        match event {
            Event::Text { choice, text, logprobs } => {
                let choice = turn * self.n + choice;
                let said = self.readers.get_mut(choice as usize).map(|reader| reader.push(&text));
                let tokenizer = self.model.engine.tokenizer();
                let logprobs = logprobs.into_iter().map(|token| describe(tokenizer, token)).collect();
                steps.push(Step::Said { choice, said: said.unwrap_or_default(), logprobs });
            }
            Event::Finished { choice, reason, tokens, cached, ids, stopped_by, .. } => {
                self.counts.completion += tokens;
                // Every choice of a turn tells how much of its prompt was known.
                self.counts.cached += if choice == 0 { cached } else { 0 };
                let choice = turn * self.n + choice;
                self.unfinished = self.unfinished.saturating_sub(1);
                let Some(reader) = self.readers.get_mut(choice as usize) else { return Ok(()) };
                let cut = reason == mach_engine::FinishReason::Length;
                let said = reader.finish(cut);
                if !said.is_empty() {
                    steps.push(Step::Said { choice, said, logprobs: Vec::new() });
                }
                let spoken = reader.spoken();
                if !spoken.reasoning.is_empty() {
                    let tokenizer = self.model.engine.tokenizer();
                    self.counts.reasoning += thought(tokenizer, &spoken.reasoning, ids.as_deref(), tokens);
                }
                let ending = reader.ending(cut, stopped_by);
                steps.push(Step::Ended { choice, ending });
                if let Some(Asked { text: Some(text), salt }) = self.asked.get(turn as usize)
                    && let (Some(ids), Some(message)) = (ids, spoken.as_history())
                {
                    self.model.remember(salt.as_deref(), text, &message, &ids);
                }
                if self.unfinished == 0 {
                    let Counts { prompt, completion, .. } = self.counts;
                    info!(prompt_tokens = prompt, completion_tokens = completion, "answered");
                }
            }
            // Nobody asks for one here.
            Event::Embedding(_) => {}
            Event::Failed(error) => return Err(from_engine(&error, self.prompt_field)),
        }
        Ok(())
    }

    /// Whether every choice has ended.
    pub(crate) fn finished(&self) -> bool {
        self.unfinished == 0
    }

    /// Tokens so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Waits for all choices.
    pub(crate) async fn collect(
        mut self,
    ) -> Result<(Vec<(Spoken, Vec<TokenLogprob>, Ending)>, Counts), ApiError> {
        let mut ends: Vec<(Vec<TokenLogprob>, Option<Ending>)> = Vec::new();
        ends.resize_with(self.readers.len(), Default::default);
        while !self.finished() {
            for step in self.next().await? {
                let (Step::Said { choice, .. } | Step::Ended { choice, .. }) = &step;
                let Some((all, end)) = ends.get_mut(*choice as usize) else { continue };
                match step {
                    Step::Said { logprobs, .. } => all.extend(logprobs),
                    Step::Ended { ending, .. } => *end = Some(ending),
                }
            }
        }
        let whole = |(reader, (logprobs, end)): (Reader, (_, Option<Ending>))| {
            Ok((reader.into_spoken(), logprobs, end.ok_or_else(lost)?))
        };
        let answers = self.readers.into_iter().zip(ends).map(whole).collect::<Result<_, ApiError>>()?;
        Ok((answers, self.counts))
    }
}

/// What of a prepared turn is needed to read its answers.
#[derive(Debug)]
pub(crate) struct Asking {
    prompt_tokens: usize,
    text: Option<[u8; 32]>,
    salt: Option<String>,
    reading: crate::reader::Reading,
}

impl Asking {
    /// Takes a prepared turn apart.
    pub(crate) fn of(prepared: Prepared) -> (Self, mach_engine::GenerateRequest) {
        let Prepared { generate, text, reading } = prepared;
        let (prompt_tokens, salt) = (generate.prompt.len(), generate.cache.salt.clone());
        (Self { prompt_tokens, text, salt, reading }, generate)
    }
}

fn describe(tokenizer: &TextTokenizer, token: mach_engine::TokenLogprob) -> TokenLogprob {
    let text = |id| String::from_utf8_lossy(tokenizer.bytes(id)).into_owned();
    TokenLogprob {
        token: text(token.id),
        logprob: token.logprob,
        bytes: tokenizer.bytes(token.id).to_vec(),
        drafted: Some(token.drafted),
        top_logprobs: token
            .top
            .into_iter()
            .map(|(id, logprob)| TopLogprob { token: text(id), logprob, bytes: tokenizer.bytes(id).to_vec() })
            .collect(),
    }
}

/// Tokens of an answer that the model said to itself: those that begin before its thoughts end. Where they cannot be told one by
/// one, those that the text has by itself.
pub(crate) fn thought(tokenizer: &TextTokenizer, reasoning: &str, ids: Option<&[u32]>, all: usize) -> usize {
    let (mut text, mut starts) = (Vec::new(), Vec::new());
    for &id in ids.unwrap_or_default() {
        starts.push(text.len());
        text.extend_from_slice(tokenizer.bytes(id));
    }
    let said = reasoning.trim();
    match std::str::from_utf8(&text).ok().and_then(|text| text.find(said)) {
        Some(at) => starts.iter().filter(|start| **start < at + said.len()).count(),
        None => tokenizer.encode(reasoning, false).map_or(0, |tokens| tokens.len()).min(all),
    }
}

/// What a stream that ends too early says.
fn lost() -> ApiError {
    ApiError::new(ErrorKind::Internal, "the engine dropped the request")
}
