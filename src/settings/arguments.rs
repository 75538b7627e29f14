//! Flags as clap defines them, seen from outside: which are given, which stand against each other, how a value is written.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

/// The argument of a flag's name or alias; the first positional one goes by its own name. Further ones are no settings: they would
/// stand before the user's own.
pub(super) fn find<'a>(command: &'a Command, flag: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|argument| {
        let aliases = argument.get_all_aliases().unwrap_or_default();
        match argument.get_long() {
            Some(long) => long == flag || aliases.contains(&flag),
            None => argument.get_index() == Some(1) && argument.get_id().as_str() == flag,
        }
    })
}

fn is_switch(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::SetTrue | ArgAction::SetFalse)
}

fn repeats(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Append)
}

/// What an environment variable says of a switch.
pub(super) fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// The values of a variable: those of a flag that can be repeated are separated by commas.
pub(super) fn split(argument: &Arg, text: &str) -> Vec<String> {
    match repeats(argument) {
        true => text.split(',').map(|word| word.trim().to_owned()).collect(),
        false => vec![text.to_owned()],
    }
}

/// A setting as words of a command line.
pub(super) fn of_value(argument: &Arg, values: &[String]) -> Result<Vec<String>, String> {
    let Some(long) = argument.get_long() else { return Ok(values.to_vec()) };
    match values {
        [value] if is_switch(argument) => match truth(value) {
            Some(true) => Ok(vec![format!("--{long}")]),
            Some(false) => Ok(Vec::new()),
            None => Err(format!("`{value}` is neither true nor false")),
        },
        _ if is_switch(argument) => Err("must be true or false".to_owned()),
        [_] => Ok(values.iter().map(|value| format!("--{long}={value}")).collect()),
        _ if repeats(argument) => Ok(values.iter().map(|value| format!("--{long}={value}")).collect()),
        _ => Err("takes one value".to_owned()),
    }
}

/// The flags that a command line holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    /// Ids of arguments.
    ids: BTreeSet<String>,
    config: Option<String>,
}

impl Given {
    /// Looks for flags, without judging them: that is left to clap.
    pub(super) fn scan(command: &Command, words: &[OsString]) -> Self {
        let mut out = Self::default();
        let positional = command.get_positionals().next().map(|argument| argument.get_id().to_string());
        let mut words = words.iter().map(|word| word.to_string_lossy().into_owned());
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").filter(|rest| !rest.is_empty()) else {
                if word == "--" || !word.starts_with('-') {
                    out.ids.extend(positional.clone());
                }
                if word == "--" {
                    break;
                }
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let Some(argument) = find(command, name) else { continue };
            out.ids.insert(argument.get_id().to_string());
            let value =
                if argument.get_action().takes_values() { value.or_else(|| words.next()) } else { None };
            if name == "config" {
                out.config = value;
            }
        }
        out
    }

    /// The settings file.
    pub(super) fn config(&self) -> Option<String> {
        self.config.clone()
    }

    /// Adds a flag.
    pub(super) fn note(&mut self, argument: &Arg) {
        self.ids.insert(argument.get_id().to_string());
    }

    /// The flag that settles this one already: itself, or one that stands against it.
    pub(super) fn blocks(&self, command: &Command, flag: &str) -> Option<String> {
        let wanted = find(command, flag)?;
        let name = |argument: &Arg| argument.get_long().map_or_else(|| flag.to_owned(), str::to_owned);
        if self.ids.contains(wanted.get_id().as_str()) {
            return Some(flag.to_owned());
        }
        let against = |one: &Arg, other: &Arg| {
            command.get_arg_conflicts_with(one).iter().any(|argument| argument.get_id() == other.get_id())
        };
        let given = command.get_arguments().filter(|argument| self.ids.contains(argument.get_id().as_str()));
        given.into_iter().find(|other| against(wanted, other) || against(other, wanted)).map(name)
    }
}
