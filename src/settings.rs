//! Settings from four layers: the command line, then `MACH_*` variables, then a TOML file, then defaults.
//!
//! The lower layers are turned into arguments that stand before the user's own, so that everything is parsed and checked
//! by the same definitions. What a higher layer says, or contradicts, a lower one cannot.

mod aliases;
mod arguments;
mod file;

use std::ffi::OsString;

use clap::{Command, Parser};

use crate::Exit;
use arguments::{Given, find, of_value};

/// Variables that set flags begin so.
const PREFIX: &str = "MACH_";

/// A flag that a lower layer sets.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    /// The flag's name, without dashes; `checkpoint` is the positional argument.
    flag: String,
    /// Its values; a switch has `true` or `false`.
    values: Vec<String>,
    /// Who says so, for messages.
    source: String,
}

/// What the layers make of a command line.
#[derive(Debug, Default)]
struct Layered {
    arguments: Vec<OsString>,
    /// What was taken from where: flag, source.
    taken: Vec<(String, String)>,
    /// Words for the operator.
    notices: Vec<String>,
}

/// Parses the process's arguments over its environment and a settings file. Ends the process at `--help` and at errors, as clap
/// does.
pub fn parse<C: Parser>(arguments: Vec<OsString>) -> C {
    // The layers are for the command that the arguments name; the others take theirs as they are.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let layered = match layer(C::command(), arguments, variables.collect()) {
        Ok(layered) => layered,
        Err(exit) => {
            eprintln!("error: {}", exit.message);
            std::process::exit(exit.code.into());
        }
    };
    for notice in &layered.notices {
        eprintln!("note: {notice}");
    }
    C::try_parse_from(layered.arguments).unwrap_or_else(|error| {
        let text = error.to_string();
        let _ = error.print();
        for (flag, source) in layered.taken.iter().filter(|(flag, _)| text.contains(flag.as_str())) {
            eprintln!("note: {flag} was set by {source}");
        }
        std::process::exit(error.exit_code())
    })
}

/// Puts the layers together. Commands without `--config` take no settings.
fn layer(
    mut root: Command,
    arguments: Vec<OsString>,
    mut variables: Vec<(String, String)>,
) -> Result<Layered, Exit> {
    root.build();
    let Some((command, at)) = configurable(&root, &arguments) else {
        return Ok(Layered { arguments, ..Layered::default() });
    };
    variables.sort();
    let (own, users) = arguments.split_at(at);
    let given = Given::scan(command, users);
    let mut out = Layered::default();
    let environment = environment(command, &variables, &mut out.notices);
    let file = given.config().or_else(|| variable(&variables, "MACH_CONFIG"));
    let file = file.map(|path| file::read(command, path.as_ref())).transpose()?.unwrap_or_default();
    let mut inserted = Vec::new();
    let mut above = given;
    for layer in [environment, file] {
        let mut here = above.clone();
        for setting in layer {
            match above.blocks(command, &setting.flag) {
                Some(higher) if higher == setting.flag => {}
                Some(higher) => {
                    out.notices.push(format!("{}: --{higher} stands against it", setting.source));
                }
                None => {
                    let argument = find(command, &setting.flag);
                    let Some(argument) = argument else { continue };
                    let words = of_value(argument, &setting.values)
                        .map_err(|reason| Exit::input(format!("{}: {reason}", setting.source)))?;
                    here.note(argument);
                    out.taken.push((format!("--{}", setting.flag), setting.source));
                    inserted.extend(words.into_iter().map(OsString::from));
                }
            }
        }
        above = here;
    }
    out.arguments = own.iter().cloned().chain(inserted).chain(users.iter().cloned()).collect();
    Ok(out)
}

/// The command that the arguments name, if it takes settings, and where its own arguments begin.
fn configurable<'a>(root: &'a Command, arguments: &[OsString]) -> Option<(&'a Command, usize)> {
    let takes_settings = |command: &Command| find(command, "config").is_some();
    if takes_settings(root) {
        return Some((root, 1));
    }
    let name = arguments.get(1)?.to_str()?;
    root.find_subcommand(name).filter(|command| takes_settings(command)).map(|command| (command, 2))
}

fn variable(variables: &[(String, String)], name: &str) -> Option<String> {
    let found = variables.iter().find(|(key, value)| key == name && !value.is_empty());
    found.map(|(_, value)| value.clone())
}

/// Settings of `MACH_*` variables, and of the `LME_*` names of earlier servers that those do not contradict.
fn environment(command: &Command, variables: &[(String, String)], notices: &mut Vec<String>) -> Vec<Setting> {
    let mut out = Vec::new();
    for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let flag = rest.to_ascii_lowercase().replace('_', "-");
        match find(command, &flag) {
            _ if flag == "config" => {}
            Some(argument) => {
                let values = arguments::split(argument, value);
                out.push(Setting { flag, values, source: name.clone() });
            }
            None => notices.push(format!("{name} is no setting of this command")),
        }
    }
    for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
        let Some(alias) = aliases::read(name, value) else { continue };
        match alias {
            Ok(setting) => {
                let said = out.iter().any(|s| s.flag == setting.flag);
                let known = find(command, &setting.flag).is_some();
                let means = aliases::describe(&setting);
                notices.push(if said {
                    format!("{name} is ignored: a MACH_ variable sets {means}")
                } else {
                    format!("{name} is read as {means}")
                });
                if !said && known {
                    out.push(setting);
                }
            }
            Err(words) => notices.push(format!("{name}={value}: {words}")),
        }
    }
    out
}

#[cfg(test)]
mod tests;
