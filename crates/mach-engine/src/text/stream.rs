//! The text of one answer as it grows, and which tokens have become visible.

use std::collections::VecDeque;
use std::sync::Arc;

use super::stop::StopMatcher;
use super::utf8::Utf8Decoder;
use crate::TextTokenizer;

/// Text that became visible, and the tokens that did, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Visible<T> {
    pub(crate) text: String,
    pub(crate) tokens: Vec<T>,
}

/// Tokens in, visible text out. `T` travels with each token (its log probabilities) and comes out when the token's text
/// is visible. Tokens that begin inside a stop string never come out.
#[derive(Debug)]
pub(crate) struct TextStream<T> {
    /// Control tokens that are shown.
    show: Arc<[u32]>,
    utf8: Utf8Decoder,
    stop: StopMatcher,
    /// Bytes of text decoded, and released.
    decoded: usize,
    released: usize,
    /// Tokens not yet out, with where their text begins and ends.
    waiting: VecDeque<(usize, usize, T)>,
}

impl<T> TextStream<T> {
    pub(crate) fn new(stops: Vec<String>, show: Arc<[u32]>) -> Self {
        Self {
            show,
            utf8: Utf8Decoder::default(),
            stop: StopMatcher::new(stops),
            decoded: 0,
            released: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Adds a token.
    pub(crate) fn push(&mut self, id: u32, extra: Option<T>, tokenizer: &TextTokenizer) -> Visible<T> {
        let mut text = String::new();
        if !tokenizer.is_special(id) || self.show.contains(&id) {
            self.utf8.push(tokenizer.bytes(id), &mut text);
        }
        let start = self.decoded;
        self.decoded += text.len();
        if let Some(extra) = extra {
            self.waiting.push_back((start, self.decoded, extra));
        }
        let text = self.stop.push(&text);
        self.released += text.len();
        let mut tokens = Vec::new();
        let stopped = self.stop.stopped();
        while let Some(&(start, end, _)) = self.waiting.front() {
            let out = end <= self.released || (stopped && start < self.released);
            if !out {
                break;
            }
            tokens.extend(self.waiting.pop_front().map(|t| t.2));
        }
        Visible { text, tokens }
    }

    /// Whether a stop string was met.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.stopped()
    }

    /// The stop string that was met.
    pub(crate) fn stopped_by(&self) -> Option<&str> {
        self.stop.stopped_by()
    }

    /// Ends the text and lets out what was held back.
    pub(crate) fn finish(&mut self) -> Visible<T> {
        if self.stop.stopped() {
            self.waiting.clear();
            return Visible { text: String::new(), tokens: Vec::new() };
        }
        let mut last = String::new();
        self.utf8.finish(&mut last);
        let mut text = self.stop.push(&last);
        text.push_str(&self.stop.finish());
        let tokens = self.waiting.drain(..).map(|t| t.2).collect();
        Visible { text, tokens }
    }
}
