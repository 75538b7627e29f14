//! `mach generate`: one answer on the terminal.

use std::io::Write as _;

use clap::Args;
use mach_api::chat::Limits;
use mach_api::turn::{Input, Turn};
use mach_api::{ApiError, ChatRequest};
use mach_engine::{EngineConfig, Event, FinishReason, Timings};
use serde_json::{Map, Value, json};

use crate::Exit;
use crate::args::{ConfigArgs, LogArgs, ModelArgs};
use crate::loading::{Opened, Report};

/// Arguments of `mach generate`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["prompt", "chat"]))]
pub struct GenerateArgs {
    /// The model
    #[command(flatten)]
    pub model: ModelArgs,

    /// Text to continue as it stands
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// What the user says; put into the chat template
    #[arg(long, value_name = "TEXT")]
    pub chat: Option<String>,

    /// System message before --chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,

    /// Most tokens to generate; as many as the context holds if not given
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,

    /// Temperature; 0 is greedy; the checkpoint's default if not given
    #[arg(long)]
    pub temperature: Option<f64>,

    /// Keep the fewest tokens with this much probability together
    #[arg(long)]
    pub top_p: Option<f64>,

    /// Keep this many tokens
    #[arg(long)]
    pub top_k: Option<u32>,

    /// Seed; random if not given
    #[arg(long)]
    pub seed: Option<u64>,

    /// Text that ends the answer; may be given more than once
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// Print token counts and speeds to stderr
    #[arg(long)]
    pub stats: bool,

    /// Settings
    #[command(flatten)]
    pub config: ConfigArgs,

    /// Logging
    #[command(flatten, next_help_heading = "Logging")]
    pub log: LogArgs,
}

impl GenerateArgs {
    /// The request that these arguments stand for, through the checks that HTTP requests pass.
    fn request(&self, model: &str) -> Result<ChatRequest, ApiError> {
        let mut body = Map::new();
        body.insert("model".into(), model.into());
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        let user = self.chat.as_ref().or(self.prompt.as_ref());
        messages.push(json!({"role": "user", "content": user}));
        body.insert("messages".into(), messages.into());
        let fields = [
            ("max_tokens", self.max_tokens.map(Value::from)),
            ("temperature", self.temperature.map(Value::from)),
            ("top_p", self.top_p.map(Value::from)),
            ("top_k", self.top_k.map(Value::from)),
            ("seed", self.seed.map(Value::from)),
            ("stop", Some(self.stop.clone().into())),
        ];
        body.extend(fields.into_iter().filter_map(|(name, v)| Some((name.to_owned(), v?))));
        ChatRequest::parse(Value::from(body).to_string().as_bytes(), &Limits::default())
    }
}

/// Runs the command.
pub fn run(args: GenerateArgs) -> Result<(), Exit> {
    crate::logging::init(&args.log);
    let opened = Opened::open(args.model.clone().validate()?)?;
    let name = opened.default_name();
    let request = args.request(&name).map_err(Exit::input)?;
    let model = opened.load(EngineConfig::default(), vec![name], &Report { signals: false }, &mut |_| ())?;
    let turn = match args.prompt {
        Some(text) => Turn { input: Input::Text(text), settings: request.settings },
        None => request.into_turn(),
    };
    let generate = model.prepare(&turn).map_err(Exit::input)?.generate;
    let prompt_tokens = generate.prompt.len();
    let mut events = model.engine.submit(generate).map_err(Exit::input)?;
    let mut out = std::io::stdout().lock();
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Text { text, .. } => {
                let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                if written.is_err() {
                    // The reader has gone away, as `head` does.
                    return Ok(());
                }
            }
            Event::Finished { reason, tokens, timings, .. } => {
                let _ = writeln!(out);
                if args.stats {
                    print_stats(prompt_tokens, tokens, reason, timings);
                }
                return Ok(());
            }
            Event::Failed(error) => return Err(Exit::failure(error)),
        }
    }
    Err(Exit::failure("the engine dropped the request"))
}

fn print_stats(prompt: usize, tokens: usize, reason: FinishReason, timings: Timings) {
    let rate = |n: usize, seconds: f64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
    let (prefill, decode) = (timings.prefill.as_secs_f64(), timings.decode.as_secs_f64());
    eprintln!("prompt   {prompt} tokens in {prefill:.3} s: {:.1} tokens/s", rate(prompt, prefill));
    // The first token comes with the prompt's last pass.
    let decoded = tokens.saturating_sub(1);
    eprintln!("decode   {decoded} tokens in {decode:.3} s: {:.1} tokens/s", rate(decoded, decode));
    let reason = match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    };
    eprintln!("finished {reason} after {tokens} tokens");
}
