//! What an answer says, as it grows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mach_api::output::{OutputFormat, OutputParser, Part, ReasoningStart, ToolSchemas};
use mach_api::turn::{Ending, Said, Spoken};
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

    fn count_malformed(&self, raw: &str) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
        let begins: String = raw.chars().take(80).collect();
        warn!(begins, "a tool call could not be read; it is answered as text");
    }
}

/// How the answers to one turn are read.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// The model's way of writing.
    pub(crate) format: OutputFormat,
    /// The functions that it may call; none if it may not.
    pub(crate) schemas: Option<Arc<ToolSchemas>>,
    /// Where its reasoning begins.
    pub(crate) start: ReasoningStart,
}

/// Reads one choice.
#[derive(Debug)]
pub(crate) struct Reader {
    parser: Box<dyn OutputParser>,
    stats: Arc<OutputStats>,
    spoken: Spoken,
}

impl Reader {
    pub(crate) fn new(reading: &Reading, stats: Arc<OutputStats>) -> Self {
        let parser = reading.format.parser(reading.schemas.clone(), reading.start);
        Self { parser, stats, spoken: Spoken::default() }
    }

    /// Takes more text and gives what is new.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Said> {
        let mut parts = Vec::new();
        self.parser.push(text, &mut parts);
        self.take(parts)
    }

    /// Ends the text. `cut`: at the length.
    pub(crate) fn finish(&mut self, cut: bool) -> Vec<Said> {
        let mut parts = Vec::new();
        self.parser.finish(cut, &mut parts);
        self.take(parts)
    }

    fn take(&mut self, parts: Vec<Part>) -> Vec<Said> {
        let mut said = Vec::new();
        let mut parts = parts.into_iter().peekable();
        while let Some(part) = parts.next() {
            match &part {
                Part::CallEnd => {
                    self.stats.calls.fetch_add(1, Ordering::Relaxed);
                }
                Part::CallBroken(raw) => self.stats.count_malformed(raw),
                Part::Malformed => match parts.peek() {
                    Some(Part::Content(text)) => self.stats.count_malformed(text),
                    _ => self.stats.count_malformed(""),
                },
                _ => {}
            }
            self.spoken.take(part, &mut |new| said.push(new));
        }
        said
    }

    /// Why the answer ended: cut at the length, by a stop string, or by the model.
    pub(crate) fn ending(&self, cut: bool, stopped_by: Option<String>) -> Ending {
        match (self.spoken.ending(cut), stopped_by) {
            (Ending::Stop, Some(text)) => Ending::StopString(text),
            (ending, _) => ending,
        }
    }

    /// What was said so far.
    pub(crate) fn spoken(&self) -> &Spoken {
        &self.spoken
    }

    /// What was said in all.
    pub(crate) fn into_spoken(self) -> Spoken {
        self.spoken
    }
}
