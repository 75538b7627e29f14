//! Stop strings, matched across token boundaries.

/// Holds back text that could become a stop string. What is released does not depend on how the text was cut into
/// pieces: the stop string that is complete first wins, and of those that end at the same place the longest.
#[derive(Debug, Default)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: Option<String>,
}

impl StopMatcher {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self {
            stops: stops.into_iter().filter(|s| !s.is_empty()).collect(),
            held: String::new(),
            stopped: None,
        }
    }

    /// Takes more text and returns what may be shown. After a match, nothing more is.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        if self.stops.is_empty() {
            return text.to_owned();
        }
        self.held.push_str(text);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, stop)))
            .min();
        if let Some((_, start, stop)) = first {
            self.stopped = Some(stop.clone());
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep = self.longest_beginning();
        let kept = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, kept)
    }

    /// Whether a stop string was met.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// The stop string that was met.
    pub(crate) fn stopped_by(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// Ends the text: what was held back was no stop string.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of `held` that begins a stop string.
    fn longest_beginning(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let len = self.held.len();
        let from = len.saturating_sub(longest.saturating_sub(1));
        (from..len)
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.held.get(at..).is_some_and(|end| self.stops.iter().any(|s| s.starts_with(end))))
            .map_or(0, |at| len - at)
    }
}
