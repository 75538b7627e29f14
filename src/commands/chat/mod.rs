//! `mach chat`: a conversation on the terminal, in the same process as the model.

mod conversation;
mod input;
mod order;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use mach_api::chat::Settings;
use mach_api::turn::{Conversation as Asked, Ending, Input, Turn};
use mach_engine::EngineConfig;
use mach_prefix::PrefixConfig;
use mach_server::{ChatModel, Heard};
use serde_json::json;
use tokio::runtime::Runtime;

use self::conversation::Conversation;
use self::input::{Line, Lines};
use self::order::{HELP, Order};
use crate::Exit;
use crate::args::{ConfigArgs, LogArgs, LogLevel, ModelArgs};
use crate::asking::AskingArgs;
use crate::figures::Figures;
use crate::loading::{Opened, Report};
use crate::output::OutputArgs;
use crate::signals::Signals;
use crate::speech::{Reasoning, Speech};

/// Arguments of `mach chat`.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// The model
    #[command(flatten)]
    pub model: ModelArgs,

    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// How answers are generated
    #[command(flatten)]
    pub asking: AskingArgs,

    /// How answers are read
    #[command(flatten)]
    pub output: OutputArgs,

    /// Print token counts and speeds after every answer
    #[arg(long)]
    pub stats: bool,

    /// File of the lines that were typed; in the user's state directory if not given
    #[arg(long, value_name = "FILE", conflicts_with = "no_history")]
    pub history: Option<PathBuf>,

    /// Remember typed lines only until the end
    #[arg(long)]
    pub no_history: bool,

    /// Print to stderr how the model is loaded and run
    #[arg(long, short)]
    pub verbose: bool,

    /// Settings
    #[command(flatten)]
    pub config: ConfigArgs,

    /// Logging
    #[command(flatten, next_help_heading = "Logging")]
    pub log: LogArgs,
}

/// Runs the command.
pub fn run(args: ChatArgs) -> Result<(), Exit> {
    crate::logging::init(&args.log, if args.verbose { LogLevel::Info } else { LogLevel::Error });
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let opened = Opened::open(args.model.clone().validate()?)?;
    if !opened.can_chat() {
        return Err(Exit::input(
            "this checkpoint has no chat template; `mach generate --prompt` continues a text",
        ));
    }
    let name = opened.default_name();
    let greeting = [json!({"role": "user", "content": "Hello"})].to_vec();
    let request = args.asking.request(&name, greeting).map_err(Exit::input)?;
    let output = args.output.apply(opened.output_format());
    let signals = if args.verbose { Signals::Stderr } else { Signals::Nowhere };
    let report = Report { signals, bar: terminal || args.verbose };
    // One answer at a time; what was said before is kept in memory, which needs the room of a second one.
    let engine = EngineConfig {
        max_batch: 2,
        prefix: Some(PrefixConfig { directory: None, ..PrefixConfig::default() }),
        ..EngineConfig::default()
    };
    let model = opened.load(engine, vec![name.clone()], &report, &mut |_| ())?.with_output(output);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let mut chat = Chat {
        seed: args.asking.seed.unwrap_or_else(random_seed),
        conversation: Conversation::new(name, args.system.clone()),
        asked: request.conversation,
        settings: request.settings,
        last: None,
        stats: args.stats,
        terminal,
        reasoning: match (terminal, std::env::var_os("TERM").is_none_or(|term| term == "dumb")) {
            (false, _) => Reasoning::Hidden,
            (true, false) => Reasoning::Dim,
            (true, true) => Reasoning::Named,
        },
        failed: false,
        runtime: runtime.map_err(Exit::failure)?,
        model,
    };
    let lines = match terminal {
        true => Lines::terminal(history(&args))?,
        false => Lines::piped()?,
    };
    chat.talk(lines)
}

/// Where typed lines are kept.
fn history(args: &ChatArgs) -> Option<PathBuf> {
    if args.no_history {
        return None;
    }
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state = if cfg!(target_os = "macos") {
        variable("HOME").map(|home| home.join("Library/Application Support"))
    } else {
        variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")))
    };
    args.history.clone().or_else(|| state.map(|state| state.join("mach").join("chat_history")))
}

/// A seed for a chat that was given none. It needs to differ, not to be hard to guess.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id()) >> 32
}

/// A chat, and what it is held with.
struct Chat {
    model: ChatModel,
    conversation: Conversation,
    /// What a turn is made of, its messages aside.
    asked: Asked,
    settings: Settings,
    /// The seed of the next answer; each takes the next number.
    seed: u64,
    /// Figures of the last answer, and its seed.
    last: Option<(Figures, u64)>,
    stats: bool,
    terminal: bool,
    reasoning: Reasoning,
    /// Whether something went wrong; a script wants to know.
    failed: bool,
    runtime: Runtime,
}

impl Chat {
    /// Takes lines until there are no more.
    fn talk(&mut self, mut lines: Lines) -> Result<(), Exit> {
        if self.terminal {
            println!(
                "{}: /help lists commands, Ctrl-C stops an answer, Ctrl-D ends.",
                self.conversation.model()
            );
        }
        let mut hinted = false;
        loop {
            let line = match self.runtime.block_on(lines.next())? {
                Line::Text(line) => line,
                Line::Cleared => {
                    if !hinted {
                        println!("Ctrl-D or /exit ends the chat.");
                    }
                    hinted = true;
                    continue;
                }
                Line::End => break,
                Line::Interrupted => return Err(Exit { code: 130, message: "interrupted".into() }),
            };
            match Order::read(&line) {
                None => {}
                Some(Ok(Order::Exit)) => break,
                Some(Ok(order)) => {
                    if let Err(error) = self.follow(order) {
                        self.complain(&error);
                    }
                }
                Some(Err(error)) => self.complain(&error),
            }
        }
        // A script's last word on whether all went well.
        match self.failed && !self.terminal {
            true => Err(Exit::failure("not every line could be followed")),
            false => Ok(()),
        }
    }

    fn complain(&mut self, error: &str) {
        self.failed = true;
        eprintln!("error: {error}");
    }

    /// Words for a person at the terminal; a pipe gets answers and what was asked for only.
    fn tell(&self, words: &str) {
        if self.terminal {
            println!("{words}");
        }
    }

    fn follow(&mut self, order: Order) -> Result<(), String> {
        match order {
            Order::Say(text) => {
                self.conversation.say(text);
                self.answer()
            }
            Order::Regenerate => {
                self.conversation.take_back()?;
                self.answer()
            }
            Order::System(None) => {
                println!("{}", self.conversation.system().unwrap_or("There is no system message."));
                Ok(())
            }
            Order::System(Some(text)) => {
                let words =
                    if text.is_empty() { "No system message from now on." } else { "Set from now on." };
                self.conversation.instruct(text);
                self.tell(words);
                Ok(())
            }
            Order::Clear => {
                self.conversation.clear();
                self.last = None;
                self.tell("The conversation begins anew.");
                Ok(())
            }
            Order::Save(file) => {
                self.conversation.save(&file)?;
                self.tell(&format!("Saved to {}.", file.display()));
                Ok(())
            }
            Order::Stats => {
                self.print_stats();
                Ok(())
            }
            Order::Help => {
                print!("{HELP}");
                Ok(())
            }
            Order::Exit => Ok(()),
        }
    }

    fn print_stats(&self) {
        let Some((figures, seed)) = &self.last else {
            println!("Nothing was answered yet.");
            return;
        };
        let used = figures.counts.prompt + figures.counts.completion;
        print!("{figures}");
        println!("seed     {seed}");
        println!("context  {used} of {} tokens", self.model.engine.facts().context);
    }

    /// Has the last message answered.
    fn answer(&mut self) -> Result<(), String> {
        let seed = self.seed;
        let mut settings = self.settings.clone();
        settings.sampling.seed = Some(seed);
        let conversation = Asked { messages: self.conversation.messages(), ..self.asked.clone() };
        let turn = Turn { input: Input::Conversation(conversation), settings };
        let begun = Instant::now();
        let mut answer = self.model.ask(&turn).map_err(|error| self.too_much(&error))?;
        self.seed = self.seed.wrapping_add(1);
        let out = io::stdout().lock();
        let mut speech = match self.terminal {
            true => Speech::terminal(out, self.reasoning),
            false => Speech::plain(out),
        };
        let stopped = self.runtime.block_on(async {
            // Listens from here on: an earlier Ctrl-C was for something else.
            let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
            loop {
                let heard = tokio::select! {
                    heard = answer.next() => heard,
                    _ = &mut interrupt => return Ok(None),
                };
                let heard = heard.map_err(|error| error.to_string())?;
                let (Heard::Said(said) | Heard::Ended { said, .. }) = &heard;
                speech.say(said).map_err(|error| error.to_string())?;
                if let Heard::Ended { ending, counts, timings, .. } = heard {
                    return Ok(Some(Figures { ending, counts, timings }));
                }
            }
        });
        let written = |speech: Speech<_>| speech.end().map_err(|error: io::Error| error.to_string());
        match stopped {
            Ok(Some(figures)) => {
                written(speech)?;
                let cut = figures.ending == Ending::Length;
                self.last = Some((figures, seed));
                self.conversation.answered(answer.into_spoken());
                if cut {
                    self.tell("(cut off at the length)");
                }
                if self.stats {
                    self.print_stats();
                }
                Ok(())
            }
            Ok(None) => {
                let (said, spoken) = answer.stop();
                let _ = speech.say(&said);
                written(speech)?;
                self.conversation.answered(spoken);
                self.tell(&format!("(stopped after {:.1} s)", begun.elapsed().as_secs_f64()));
                Ok(())
            }
            Err(error) => {
                let _ = speech.end();
                Err(error)
            }
        }
    }

    /// What to do about a prompt that is refused.
    fn too_much(&self, error: &mach_api::ApiError) -> String {
        let _ = io::stdout().flush();
        format!("{error} (/clear begins anew)")
    }
}
