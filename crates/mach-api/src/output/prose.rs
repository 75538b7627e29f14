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

/// Where in its line a text ends, and whether in a block of code between Markdown's fences, where calls are examples.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The line so far, as much of it as could be a fence.
    line: String,
    fence: Option<(char, usize)>,
}

impl Lines {
    /// A line with a fence is shorter.
    const LONGEST: usize = 256;

    pub(super) fn push(&mut self, text: &str) {
        for c in text.chars() {
            if c == '\n' {
                self.end_line();
            } else if self.line.len() <= Self::LONGEST {
                self.line.push(c);
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let bare = line.trim_start_matches(' ');
        let Some(mark @ ('`' | '~')) = bare.chars().next() else { return };
        let behind = bare.trim_start_matches(mark);
        let run = bare.len() - behind.len();
        if run < 3 || line.len() - bare.len() > 3 || line.len() > Self::LONGEST {
            return;
        }
        self.fence = match self.fence {
            Some((open, length)) if open == mark && run >= length && behind.trim().is_empty() => None,
            None if mark == '~' || !behind.contains('`') => Some((mark, run)),
            open => open,
        };
    }

    /// Nothing but white space stands in the line so far.
    pub(super) fn at_start(&self) -> bool {
        self.line.trim().is_empty()
    }

    pub(super) fn fenced(&self) -> bool {
        self.fence.is_some()
    }

    fn restart(&mut self) {
        self.line.clear();
    }
}

/// Content on its way out. White space is held until it is known that no call follows: between content and calls it belongs
/// to neither.
#[derive(Debug, Default)]
pub(super) struct Prose {
    held: String,
    /// A call was the last thing, so white space is dropped.
    after_call: bool,
    lines: Lines,
}

impl Prose {
    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.lines.push(text);
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

    /// A call begins; the white space before it, which is part of the text if the call turns out to be none.
    pub(super) fn call(&mut self) -> String {
        self.after_call = true;
        self.lines.restart();
        std::mem::take(&mut self.held)
    }

    /// What looked like a call is text.
    pub(super) fn restore(&mut self, raw: &str, out: &mut Vec<Part>) {
        out.push(Part::Malformed);
        self.unread(raw, out);
    }

    /// The same, where it was cut off and nobody is to blame.
    pub(super) fn unread(&mut self, raw: &str, out: &mut Vec<Part>) {
        self.after_call = false;
        self.push(raw, out);
    }

    /// A call that was told is text after all.
    pub(super) fn broken(&mut self, mut raw: String, out: &mut Vec<Part>) {
        self.lines.push(&raw);
        self.after_call = false;
        self.held = raw.split_off(raw.trim_end().len());
        out.push(Part::CallBroken(raw));
    }

    pub(super) fn finish(&mut self, out: &mut Vec<Part>) {
        content(out, &std::mem::take(&mut self.held));
    }

    pub(super) fn lines(&self) -> &Lines {
        &self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_are_those_of_markdown() {
        let fenced = |text: &str| {
            let mut lines = Lines::default();
            lines.push(text);
            lines.fenced()
        };
        assert!(fenced("a\n```xml\n"));
        assert!(fenced("   ~~~\nb"));
        assert!(fenced("````\n```\n"));
        assert!(fenced("```\n~~~\n"));
        assert!(fenced("```\nx\n``` trailing\n"));
        assert!(!fenced("```\nx\n```\n"));
        assert!(!fenced("```\nx\n````  \n"));
        assert!(!fenced("    ```\n"));
        assert!(!fenced("inline ```\n"));
        assert!(!fenced("```code``` then\n"));
        assert!(!fenced("```xml"));
    }
}
