//! Text between calls, and the search for markers in it.

use super::{Part, content};

/// How many bytes at the end of `text` could be the beginning of one of the markers.
pub(super) fn held_back(text: &str, markers: &[&str]) -> usize {
    let beginning = |marker: &&str| {
        let most = text.len().min(marker.len().saturating_sub(1));
        (1..=most).rev().find(|&n| text.as_bytes().ends_with(&marker.as_bytes()[..n])).unwrap_or(0)
    };
    markers.iter().map(beginning).max().unwrap_or(0)
}

/// The marker that comes first in `text`, and where.
pub(super) fn first<'a>(text: &str, markers: &[&'a str]) -> Option<(usize, &'a str)> {
    markers.iter().filter_map(|&marker| Some((text.find(marker)?, marker))).min_by_key(|(at, _)| *at)
}

/// How `text` begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning<'a> {
    /// With this marker.
    With(&'a str),
    /// With what could become one.
    Unsure,
    /// With something else.
    Else,
}

pub(super) fn beginning<'a>(text: &str, markers: &[&'a str]) -> Beginning<'a> {
    if let Some(&marker) = markers.iter().find(|&&marker| text.starts_with(marker)) {
        return Beginning::With(marker);
    }
    if markers.iter().any(|marker| marker.starts_with(text)) { Beginning::Unsure } else { Beginning::Else }
}

/// White space at the beginning of a text.
pub(super) fn blank(text: &str) -> usize {
    text.len() - text.trim_start().len()
}

/// Content on its way out. White space is held until it is known that no call follows: between content and calls it belongs
/// to neither.
#[derive(Debug, Default)]
pub(super) struct Prose {
    held: String,
    /// A call was the last thing, so white space is dropped.
    after_call: bool,
}

impl Prose {
    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        let text = if self.after_call { text.trim_start() } else { text };
        let said = text.trim_end();
        if !said.is_empty() {
            self.after_call = false;
            content(out, &std::mem::take(&mut self.held));
            content(out, said);
        }
        if !self.after_call {
            self.held.push_str(&text[said.len()..]);
        }
    }

    /// A call begins.
    pub(super) fn call(&mut self) {
        self.held.clear();
        self.after_call = true;
    }

    /// What looked like a call is text.
    pub(super) fn restore(&mut self, raw: &str, out: &mut Vec<Part>) {
        self.after_call = false;
        content(out, &std::mem::take(&mut self.held));
        content(out, raw);
    }

    pub(super) fn finish(&mut self, out: &mut Vec<Part>) {
        content(out, &std::mem::take(&mut self.held));
    }
}
