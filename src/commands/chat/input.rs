//! Where lines come from: an editor on a terminal, or a pipe.

use std::borrow::Cow;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};
use tokio::sync::mpsc;

use crate::Exit;

const PROMPT: &str = "> ";
/// What stands alone on the first and the last of several lines.
const FENCE: &str = "\"\"\"";
/// Lines of the history, at most.
const REMEMBERED: usize = 1000;

/// What was typed.
#[derive(Debug)]
pub(super) enum Line {
    /// A line, or several.
    Text(String),
    /// Ctrl-C at the prompt.
    Cleared,
    /// The end of the input.
    End,
    /// SIGINT while a pipe is waited for.
    Interrupted,
}

/// Lines as they come.
pub(super) enum Lines {
    Terminal(Box<Typed>),
    Piped(mpsc::Receiver<std::io::Result<String>>),
}

/// The editor, and where its history is kept.
pub(super) struct Typed {
    editor: Editor<Typing, DefaultHistory>,
    history: Option<PathBuf>,
}

impl Lines {
    /// From the terminal. A history that cannot be read or written is told once and left alone.
    pub(super) fn terminal(history: Option<PathBuf>) -> Result<Self, Exit> {
        let config = Config::builder().auto_add_history(false).history_ignore_space(true);
        let config = config.max_history_size(REMEMBERED).map_err(Exit::failure)?.build();
        let mut editor = Editor::with_config(config).map_err(Exit::failure)?;
        editor.set_helper(Some(Typing));
        let history = history.filter(|file| {
            let opened = open_history(&mut editor, file);
            opened.inspect_err(|error| eprintln!("note: no history in {}: {error}", file.display())).is_ok()
        });
        Ok(Self::Terminal(Box::new(Typed { editor, history })))
    }

    /// From standard input, each line for itself.
    pub(super) fn piped() -> Result<Self, Exit> {
        let (sender, receiver) = mpsc::channel(1);
        let read = move || {
            for line in std::io::stdin().lock().lines() {
                if sender.blocking_send(line).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("mach-lines".into()).spawn(read).map_err(Exit::failure)?;
        Ok(Self::Piped(receiver))
    }

    /// Waits for the next line. On a terminal the thread waits.
    pub(super) async fn next(&mut self) -> Result<Line, Exit> {
        match self {
            Self::Terminal(typed) => typed.next(),
            Self::Piped(lines) => tokio::select! {
                line = lines.recv() => match line {
                    Some(Ok(line)) => Ok(Line::Text(line)),
                    Some(Err(error)) => Err(Exit::input(format!("standard input: {error}"))),
                    None => Ok(Line::End),
                },
                _ = tokio::signal::ctrl_c() => Ok(Line::Interrupted),
            },
        }
    }
}

impl Typed {
    fn next(&mut self) -> Result<Line, Exit> {
        match self.editor.readline(PROMPT) {
            Ok(line) => {
                // A line that cannot be kept is still a line.
                if self.editor.add_history_entry(line.as_str()).unwrap_or(false)
                    && let Some(file) = &self.history
                {
                    let _ = self.editor.append_history(file);
                }
                Ok(Line::Text(joined(&line)))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Cleared),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(Exit::failure(format!("the terminal: {error}"))),
        }
    }
}

fn open_history(editor: &mut Editor<Typing, DefaultHistory>, file: &Path) -> rustyline::Result<()> {
    if !file.exists() {
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory)?;
        }
        return editor.save_history(file);
    }
    editor.load_history(file)
}

/// What several typed lines say: fences and the backslashes before line ends are left out.
fn joined(typed: &str) -> String {
    let inside = typed.trim().strip_prefix(FENCE).and_then(|rest| rest.strip_suffix(FENCE));
    match inside {
        Some(text) => text.trim_matches('\n').to_owned(),
        None => typed.replace("\\\n", "\n"),
    }
}

/// Whether more lines are to come.
fn goes_on(typed: &str) -> bool {
    match typed.trim_start().strip_prefix(FENCE) {
        Some(rest) => !rest.trim_end().ends_with(FENCE),
        None => typed.ends_with('\\'),
    }
}

/// Tells the editor when a message is complete, and completes commands.
struct Typing;

const COMMANDS: &[&str] = &["/clear", "/exit", "/help", "/regenerate", "/save ", "/stats", "/system "];

impl Validator for Typing {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match goes_on(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Typing {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..at).unwrap_or_default();
        let meant = COMMANDS.iter().filter(|command| typed.starts_with('/') && command.starts_with(typed));
        Ok((0, meant.map(|command| (*command).to_owned()).collect()))
    }
}

impl Hinter for Typing {
    type Hint = String;
}

impl Highlighter for Typing {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        Cow::Owned(format!("\x1b[1m{prompt}\x1b[0m"))
    }
}

impl Helper for Typing {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_lines_are_one_message() {
        for (typed, open) in [
            ("a", false),
            ("a\\", true),
            ("a\\\nb", false),
            ("\"\"\"", true),
            ("\"\"\"\nx\n\n", true),
            ("\"\"\"\nx\n\n\"\"\"", false),
            ("\"\"\"one\"\"\"", false),
            ("say \"\"\"", false),
        ] {
            assert_eq!(goes_on(typed), open, "{typed:?}");
        }
        assert_eq!(joined("a\\\nb"), "a\nb");
        assert_eq!(joined("\"\"\"\na\n\n  b\\\n\"\"\""), "a\n\n  b\\");
        assert_eq!(joined("\"\"\"one\"\"\""), "one");
        assert_eq!(joined("a \"\"\" b"), "a \"\"\" b");
    }
}
