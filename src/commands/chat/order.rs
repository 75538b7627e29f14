//! What a typed line means.

use std::path::PathBuf;

/// The commands, for `/help`.
pub(super) const HELP: &str = "\
/system TEXT   sets the system message, \"\" takes it away; without a text, shows it
/regenerate    answers the last message again, with the next seed
/clear         begins a new conversation; the system message stays
/save FILE     writes the conversation: as a request to /v1/chat/completions if FILE ends in
               .json, else as Markdown; writes over files of this chat only
/stats         tokens, speeds and seed of the last answer, and how full the context is
/help          this list
/exit          ends, as Ctrl-D does
//TEXT         says /TEXT

Enter sends. A line that ends in \\ goes on in the next one, as does all between two lines of
\"\"\". Every answer takes the next seed, the first that of --seed: the same seed, settings and
conversation give the same answer.
";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// This is said to the model.
    Say(String),
    /// The last message is answered again.
    Regenerate,
    /// The system message is set, or shown.
    System(Option<String>),
    /// A new conversation begins.
    Clear,
    /// The conversation is written to a file.
    Save(PathBuf),
    /// Figures of the last answer.
    Stats,
    /// The list of commands.
    Help,
    /// The end.
    Exit,
}

impl Order {
    /// Reads a line, or several; nothing if they are empty.
    pub(super) fn read(line: &str) -> Option<Result<Self, String>> {
        let line = line.trim();
        if line.is_empty() {
            return None;
        }
        let Some(command) = line.strip_prefix('/') else { return Some(Ok(Self::Say(line.to_owned()))) };
        if command.starts_with('/') {
            return Some(Ok(Self::Say(command.to_owned())));
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let alone = |order| if rest.is_empty() { Ok(order) } else { Err(format!("/{name} takes nothing")) };
        Some(match name {
            "system" if rest.is_empty() => Ok(Self::System(None)),
            "system" if rest == "\"\"" => Ok(Self::System(Some(String::new()))),
            "system" => Ok(Self::System(Some(rest.to_owned()))),
            "save" if rest.is_empty() => Err("/save needs the name of a file".to_owned()),
            "save" => Ok(Self::Save(rest.into())),
            "regenerate" => alone(Self::Regenerate),
            "clear" => alone(Self::Clear),
            "stats" => alone(Self::Stats),
            "help" | "?" => alone(Self::Help),
            "exit" | "quit" => alone(Self::Exit),
            _ => {
                let name: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
                Err(format!("there is no command /{name}; /help lists them, //{name} says it to the model"))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_said_or_followed() {
        let read = |line: &str| Order::read(line).unwrap();
        assert_eq!(Order::read(" \t\n"), None);
        assert_eq!(read(" What is 1/2? "), Ok(Order::Say("What is 1/2?".into())));
        assert_eq!(read("//help me"), Ok(Order::Say("/help me".into())));
        assert_eq!(read("/system Be brief.\nAlways."), Ok(Order::System(Some("Be brief.\nAlways.".into()))));
        assert_eq!(read("/system"), Ok(Order::System(None)));
        assert_eq!(read("/system \"\""), Ok(Order::System(Some(String::new()))));
        assert_eq!(read("/save a b.json"), Ok(Order::Save("a b.json".into())));
        assert_eq!(read("/quit"), Ok(Order::Exit));
        for line in ["/save", "/regenerate now", "/etc/passwd", "/", "/Help"] {
            assert!(read(line).is_err(), "{line}");
        }
        for line in
            HELP.lines().filter_map(|line| line.strip_prefix('/')).filter(|line| !line.starts_with('/'))
        {
            let name = line.split_whitespace().next().unwrap();
            assert!(Order::read(&format!("/{name}")).unwrap().is_ok() || name == "save", "{name}");
        }
    }
}
