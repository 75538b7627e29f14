//! `mach completions`, `mach man`: what shells and readers know of the programs, out of their command lines.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::Exit;
use crate::cli::programs;

/// Arguments of `mach completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: Shell,

    /// The program that is completed
    #[arg(value_name = "PROGRAM", default_value = "mach", conflicts_with = "out")]
    pub program: String,

    /// Write one file for each program into this directory, named as the shell wants it
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Arguments of `mach man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// The page: a program, or a command of mach such as `serve` or `bench`
    #[arg(value_name = "PAGE", default_value = "mach", conflicts_with = "out")]
    pub page: String,

    /// Write the pages of all programs and commands into this directory
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Runs `mach completions`.
pub fn completions(args: &CompletionsArgs) -> Result<(), Exit> {
    let Some(directory) = &args.out else {
        let mut program = named(&args.program)?;
        let mut script = Vec::new();
        clap_complete::generate(args.shell, &mut program, args.program.as_str(), &mut script);
        print(&script);
        return Ok(());
    };
    create(directory)?;
    for mut program in programs() {
        let name = program.get_name().to_owned();
        let file = clap_complete::generate_to(args.shell, &mut program, name, directory);
        println!("{}", file.map_err(|e| unwritten(directory, &e))?.display());
    }
    Ok(())
}

/// Runs `mach man`.
pub fn man(args: &ManArgs) -> Result<(), Exit> {
    let pages = pages();
    let Some(directory) = &args.out else {
        let wanted = [args.page.clone(), format!("mach-{}", args.page)];
        let found = pages.iter().find(|page| wanted.iter().any(|name| page.get_display_name() == Some(name)));
        let Some(page) = found else {
            let names: Vec<_> = pages.iter().filter_map(|page| page.get_display_name()).collect();
            return Err(Exit::input(format!(
                "there is no page `{}`; there are {}",
                args.page,
                names.join(", ")
            )));
        };
        let mut text = Vec::new();
        Man::new(page.clone()).render(&mut text).map_err(Exit::failure)?;
        print(&text);
        return Ok(());
    };
    create(directory)?;
    for page in pages {
        let file = Man::new(page).generate_to(directory);
        println!("{}", file.map_err(|e| unwritten(directory, &e))?.display());
    }
    Ok(())
}

/// A closed stdout is no reason to complain.
fn print(text: &[u8]) {
    let _ = io::stdout().lock().write_all(text);
}

fn create(directory: &Path) -> Result<(), Exit> {
    std::fs::create_dir_all(directory).map_err(|e| unwritten(directory, &e))
}

fn unwritten(directory: &Path, error: &io::Error) -> Exit {
    Exit::failure(format!("--out {}: {error}", directory.display()))
}

fn named(name: &str) -> Result<Command, Exit> {
    let names: Vec<_> = programs().iter().map(|program| program.get_name().to_owned()).collect();
    let program = programs().into_iter().find(|program| program.get_name() == name);
    program
        .ok_or_else(|| Exit::input(format!("there is no program `{name}`; there are {}", names.join(", "))))
}

/// Every program and every command of each, by the name of its page. A program that is a command of another has that one's page.
fn pages() -> Vec<Command> {
    fn with_commands(command: &Command, pages: &mut Vec<Command>) {
        let known = |page: &Command| page.get_display_name() == command.get_display_name();
        if !pages.iter().any(known) {
            pages.push(command.clone());
        }
        command.get_subcommands().filter(|c| !c.is_hide_set()).for_each(|c| with_commands(c, pages));
    }
    let mut pages = Vec::new();
    for program in programs() {
        let name = program.get_name().to_owned();
        let mut program = program.display_name(name).disable_help_subcommand(true);
        program.build();
        with_commands(&program, &mut pages);
    }
    pages
}
