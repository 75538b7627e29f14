//! `mach generate`: one answer on the terminal.

use std::io::{IsTerminal as _, Read as _};

use clap::Args;
use mach_api::chat::Settings;
use mach_api::turn::{Ending, Input, Turn};
use mach_engine::EngineConfig;
use mach_server::Heard;
use serde_json::json;

use crate::Exit;
use crate::args::{ConfigArgs, LogArgs, LogLevel, ModelArgs};
use crate::asking::AskingArgs;
use crate::figures::Figures;
use crate::loading::{Opened, Report};
use crate::output::OutputArgs;
use crate::signals::Signals;
use crate::speech::Speech;

/// Arguments of `mach generate`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("input").args(["text", "prompt", "chat"]))]
pub struct GenerateArgs {
    /// The model
    #[command(flatten)]
    pub model: ModelArgs,

    /// What the user says, or - for what standard input holds; put into the chat template where the checkpoint has one, else continued
    /// as it stands
    #[arg(value_name = "TEXT")]
    pub text: Option<String>,

    /// Text to continue as it stands
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// What the user says; put into the chat template
    #[arg(long, value_name = "TEXT")]
    pub chat: Option<String>,

    /// System message before what the user says
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt")]
    pub system: Option<String>,

    /// How the answer is generated
    #[command(flatten)]
    pub asking: AskingArgs,

    /// How the answer is read
    #[command(flatten)]
    pub output: OutputArgs,

    /// Print token counts and speeds to stderr
    #[arg(long)]
    pub stats: bool,

    /// Print to stderr how the model is loaded and run, and what it says to itself before it answers
    #[arg(long, short)]
    pub verbose: bool,

    /// Settings
    #[command(flatten)]
    pub config: ConfigArgs,

    /// Logging
    #[command(flatten, next_help_heading = "Logging")]
    pub log: LogArgs,
}

/// What is to be answered.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// What the user says.
    Said(String),
    /// A text to continue.
    Begun(String),
}

impl GenerateArgs {
    /// What is to be answered, standard input read. `can_chat`: the checkpoint has a chat template.
    fn asked(&self, can_chat: bool) -> Result<Asked, Exit> {
        match (&self.prompt, &self.chat, self.text.as_deref()) {
            (Some(text), ..) => Ok(Asked::Begun(text.clone())),
            (_, Some(text), _) => Ok(Asked::Said(text.clone())),
            (.., None) => {
                Err(Exit::input("nothing to answer: give TEXT, - (standard input), --chat or --prompt"))
            }
            (.., Some(text)) => {
                let text = if text == "-" { standard_input()? } else { text.to_owned() };
                match (can_chat, &self.system) {
                    (true, _) => Ok(Asked::Said(text)),
                    (false, None) => Ok(Asked::Begun(text)),
                    (false, Some(_)) => Err(Exit::input("--system: this checkpoint has no chat template")),
                }
            }
        }
    }

    fn turn(&self, model: &str, asked: Asked) -> Result<Turn, Exit> {
        let (Asked::Said(text) | Asked::Begun(text)) = &asked;
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        let messages = system.chain([json!({"role": "user", "content": text})]).collect();
        let request = self.asking.request(model, messages).map_err(Exit::input)?;
        Ok(match asked {
            Asked::Said(_) => request.into_turn(),
            Asked::Begun(text) => continued(text, request.settings),
        })
    }
}

fn continued(text: String, settings: Settings) -> Turn {
    Turn { input: Input::Text(text), settings }
}

/// All of standard input, without the line end that closes it.
fn standard_input() -> Result<String, Exit> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .read_to_string(&mut text)
        .map_err(|e| Exit::input(format!("standard input: {e}")))?;
    if text.ends_with('\n') {
        text.pop();
    }
    if text.trim().is_empty() {
        return Err(Exit::input("standard input is empty"));
    }
    Ok(text)
}

/// Runs the command.
pub fn run(args: GenerateArgs) -> Result<(), Exit> {
    crate::logging::init(&args.log, if args.verbose { LogLevel::Info } else { LogLevel::Error });
    let opened = Opened::open(args.model.clone().validate()?)?;
    let name = opened.default_name();
    let turn = args.turn(&name, args.asked(opened.can_chat())?)?;
    let output = args.output.apply(opened.output_format());
    let signals = if args.verbose { Signals::Stderr } else { Signals::Nowhere };
    let report = Report { signals, bar: args.verbose };
    let model = opened.load(EngineConfig::default(), vec![name], &report, &mut |_| ())?.with_output(output);
    let mut answer = model.ask(&turn).map_err(Exit::input)?;
    let mut speech = Speech::plain(std::io::stdout().lock());
    let mut thoughts =
        args.verbose.then(|| Speech::thoughts(std::io::stderr(), std::io::stderr().is_terminal()));
    loop {
        let heard = answer.blocking_next().map_err(Exit::failure)?;
        let (Heard::Said(said) | Heard::Ended { said, .. }) = &heard;
        // A stderr that is gone is no reason to stop.
        let _ = thoughts.as_mut().map(|thoughts| thoughts.say(said));
        if speech.say(said).is_err() {
            // The reader has gone away, as `head` does.
            return Ok(());
        }
        if let Heard::Ended { ending, counts, timings, .. } = heard {
            let _ = thoughts.map(Speech::end);
            let _ = speech.end();
            if args.stats {
                eprint!("{}", Figures { counts, timings, ending: ending.clone() });
            }
            let spoken = answer.into_spoken();
            if ending == Ending::Length && spoken.content.is_empty() && !spoken.reasoning.is_empty() {
                eprintln!(
                    "note: the model was still reasoning at the last token; nothing was answered (-v shows it)"
                );
            }
            return Ok(());
        }
    }
}
