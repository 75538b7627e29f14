//! Startup signals: one line of `key=value` pairs each, for operators and scripts to read; on stdout, unless that is for answers.

use std::fmt::Write as _;
use std::io::Write as _;

/// Where signals go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signals {
    /// Nobody reads them.
    Nowhere,
    /// The usual place.
    Stdout,
    /// Beside the logs, where stdout is for answers.
    Stderr,
}

/// A line in the making: `startup TOPIC key=value ...`.
#[derive(Debug)]
pub(crate) struct Signal {
    line: String,
}

impl Signal {
    /// A line without a topic: `startup key=value ...`.
    pub(crate) fn pairs() -> Self {
        Self { line: "startup".to_owned() }
    }

    pub(crate) fn new(topic: &str) -> Self {
        Self { line: format!("startup {topic}") }
    }

    /// A line that begins with other words than `startup`.
    pub(crate) fn line(words: &str) -> Self {
        Self { line: words.to_owned() }
    }

    /// Adds a pair; values that hold anything but plain characters are quoted as JSON strings.
    pub(crate) fn with(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        let value = value.to_string();
        let plain = !value.is_empty()
            && value.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '"' && c != '=');
        // Writing to a String cannot fail.
        let _ = if plain {
            write!(self.line, " {key}={value}")
        } else {
            write!(self.line, " {key}={}", serde_json::Value::from(value))
        };
        self
    }

    /// Writes the line to stdout. A closed one is no reason to stop.
    pub(crate) fn emit(self) {
        self.emit_to(Signals::Stdout);
    }

    /// Writes the line where signals go.
    pub(crate) fn emit_to(self, signals: Signals) {
        let mut out: Box<dyn std::io::Write> = match signals {
            Signals::Nowhere => return,
            Signals::Stdout => Box::new(std::io::stdout().lock()),
            Signals::Stderr => Box::new(std::io::stderr().lock()),
        };
        let _ = writeln!(out, "{}", self.line);
        let _ = out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::Signal;

    #[test]
    fn values_with_spaces_are_quoted() {
        let line = Signal::new("x").with("a", 1).with("b", "two words").with("c", "").line;
        assert_eq!(line, r#"startup x a=1 b="two words" c="""#);
    }
}
