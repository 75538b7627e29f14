//! What a model says, as it is written to a terminal or a pipe.

use std::io::{self, Write};

use mach_api::turn::Said;

/// How reasoning is told from the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reasoning {
    /// It is left out.
    Hidden,
    /// Between the answer's lines, dim.
    Dim,
    /// Between the answer's lines, on a terminal that knows no dim text.
    Named,
}

/// Writes one answer.
#[derive(Debug)]
pub(crate) struct Speech<W> {
    out: W,
    reasoning: Reasoning,
    /// Whether the answer itself is written.
    content: bool,
    /// For a terminal, which would obey control characters and wants closed lines.
    terminal: bool,
    now: Now,
    /// Whether a line begins.
    at_start: bool,
}

/// What was written last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Now {
    Nothing,
    Reasoning,
    Content,
}

impl<W: Write> Speech<W> {
    /// For a pipe or a file: the answer as it is, and nothing else.
    pub(crate) fn plain(out: W) -> Self {
        Self {
            out,
            reasoning: Reasoning::Hidden,
            content: true,
            terminal: false,
            now: Now::Nothing,
            at_start: true,
        }
    }

    /// For a terminal.
    pub(crate) fn terminal(out: W, reasoning: Reasoning) -> Self {
        Self { reasoning, terminal: true, ..Self::plain(out) }
    }

    /// For reasoning alone.
    pub(crate) fn thoughts(out: W, dim: bool) -> Self {
        let reasoning = if dim { Reasoning::Dim } else { Reasoning::Named };
        Self { content: false, ..Self::terminal(out, reasoning) }
    }

    /// Writes more.
    pub(crate) fn say(&mut self, said: &[Said]) -> io::Result<()> {
        for one in said {
            match one {
                Said::Reasoning(text) if self.reasoning != Reasoning::Hidden => {
                    self.turn_to(Now::Reasoning)?;
                    self.write(text)?;
                }
                Said::Content(text) if self.content => {
                    self.turn_to(Now::Content)?;
                    self.write(text)?;
                }
                // Nothing is called where there are no tools.
                _ => {}
            }
        }
        self.out.flush()
    }

    /// Ends the answer. A terminal's cursor is at the start of a line then; a pipe gets one line end more than the answer has.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.leave()?;
        if !self.terminal || !self.at_start {
            writeln!(self.out)?;
        }
        self.out.flush()
    }

    fn turn_to(&mut self, next: Now) -> io::Result<()> {
        if self.now == next {
            return Ok(());
        }
        let before = self.now;
        self.leave()?;
        if before != Now::Nothing {
            let lines: &[u8] = if self.at_start { b"\n" } else { b"\n\n" };
            self.out.write_all(lines)?;
        }
        match (next, self.reasoning) {
            (Now::Reasoning, Reasoning::Dim) => self.out.write_all(b"\x1b[2m")?,
            (Now::Reasoning, Reasoning::Named) => self.out.write_all(b"(reasoning)\n")?,
            (Now::Content, Reasoning::Named) if before != Now::Nothing => {
                self.out.write_all(b"(answer)\n")?;
            }
            _ => {}
        }
        self.now = next;
        self.at_start = true;
        Ok(())
    }

    /// Ends the dim text.
    fn leave(&mut self) -> io::Result<()> {
        match (self.now, self.reasoning) {
            (Now::Reasoning, Reasoning::Dim) => self.out.write_all(b"\x1b[0m"),
            _ => Ok(()),
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let Some(last) = text.chars().next_back() else { return Ok(()) };
        self.at_start = last == '\n';
        match self.terminal {
            true => self.out.write_all(tame(text).as_bytes()),
            false => self.out.write_all(text.as_bytes()),
        }
    }
}

/// The text without characters that a terminal would obey instead of showing them.
pub(crate) fn tame(text: &str) -> String {
    text.chars().filter(|&c| matches!(c, '\n' | '\t') || !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(speech: impl Fn(Vec<u8>) -> Speech<Vec<u8>>, said: &[Said]) -> String {
        let mut speech = speech(Vec::new());
        speech.say(said).unwrap();
        let mut all = std::mem::take(&mut speech.out);
        speech.leave().unwrap();
        all.append(&mut speech.out);
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn reasoning_is_dim_named_or_left_out() {
        let said = [
            Said::Reasoning("hm".into()),
            Said::Reasoning(", so".into()),
            Said::Content("Yes\x1b[31m.\r\n".into()),
            Said::Content("\tDone".into()),
        ];
        let terminal = |how| move |out| Speech::terminal(out, how);
        assert_eq!(written(terminal(Reasoning::Dim), &said), "\x1b[2mhm, so\x1b[0m\n\nYes[31m.\n\tDone");
        assert_eq!(
            written(terminal(Reasoning::Named), &said),
            "(reasoning)\nhm, so\n\n(answer)\nYes[31m.\n\tDone"
        );
        assert_eq!(written(terminal(Reasoning::Hidden), &said), "Yes[31m.\n\tDone");
        assert_eq!(written(Speech::plain, &said), "Yes\x1b[31m.\r\n\tDone", "a pipe gets every byte");
        // Cut while it reasons: the terminal is not left dim.
        assert_eq!(written(terminal(Reasoning::Dim), &said[..1]), "\x1b[2mhm\x1b[0m");
        assert_eq!(written(terminal(Reasoning::Dim), &said[2..3]), "Yes[31m.\n");
    }
}
