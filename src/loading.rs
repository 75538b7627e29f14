//! From a checkpoint directory to a model that can chat.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mach_checkpoint::Checkpoint;
use mach_engine::{Engine, EngineConfig, SamplingParams, TextTokenizer};
use mach_models::{Activations, LoadProgress};
use mach_server::{ChatModel, Templates};
use tracing::info;

use crate::Exit;
use crate::args::ModelConfig;
use crate::signals::Signal;

/// Share of the memory left after loading that the state of sequences may take.
const STATE_SHARE: f64 = 0.8;

/// A checkpoint whose files have been read and checked, weights aside.
#[derive(Debug)]
pub(crate) struct Opened {
    config: ModelConfig,
    checkpoint: Checkpoint,
    tokenizer: Arc<TextTokenizer>,
    templates: Option<Templates>,
    stop_ids: Vec<u32>,
}

impl Opened {
    /// Reads and checks everything but the weights; every error here is one of input.
    pub(crate) fn open(config: ModelConfig) -> Result<Self, Exit> {
        let checkpoint = Checkpoint::open(&config.checkpoint).map_err(Exit::input)?;
        let tokenizer = checkpoint.tokenizer().map_err(Exit::input)?;
        let vocab = checkpoint.config().vocab_size;
        let tokenizer = TextTokenizer::new(tokenizer, vocab).map_err(|e| {
            Exit::input(format!("{}: {e}", config.checkpoint.join("tokenizer.json").display()))
        })?;
        let templates = Templates::of(&checkpoint).map_err(Exit::input)?;
        let stop_ids = ChatModel::stop_ids_of(&checkpoint, &tokenizer).map_err(Exit::input)?;
        Ok(Self { config, checkpoint, tokenizer: Arc::new(tokenizer), templates, stop_ids })
    }

    /// The directory's own name.
    pub(crate) fn default_name(&self) -> String {
        let path = self.checkpoint.dir();
        let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        full.file_name().map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
    }

    /// Loads the weights and starts the engine.
    pub(crate) fn load(
        self,
        mut engine: EngineConfig,
        names: Vec<String>,
        report: &Report,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<ChatModel, Exit> {
        let started = Instant::now();
        let mut display = Display::new(&self.config.checkpoint);
        let model = mach_models::load(&self.checkpoint, &self.config.load, &mut |p| {
            display.update(p);
            progress(p);
        })
        .map_err(Exit::input)?;
        display.finish();
        engine.max_context = self.config.max_context;
        engine.prefill_chunk = self.config.prefill_chunk;
        engine.state_budget = crate::memory::available().map(|bytes| (bytes as f64 * STATE_SHARE) as usize);
        let facts = model.facts();
        let architecture = model.config().model_type.clone();
        let experts =
            model.config().moe.num_experts * model.config().moe_layers.iter().filter(|&&m| m).count();
        let engine_config = engine.clone();
        let engine = Engine::start(model, self.tokenizer, engine).map_err(Exit::failure)?;
        let defaults = SamplingParams::defaults(self.checkpoint.generation(), 0);
        if report.signals {
            mode_signal(&self.config, &facts, experts).emit();
            let mut signal = Signal::new("model")
                .with("name", names.join(","))
                .with("checkpoint", self.config.checkpoint.display())
                .with("architecture", architecture);
            for (key, value) in &facts {
                signal = signal.with(key, value);
            }
            signal.emit();
            let mut signal = Signal::new("engine")
                .with("context", engine.context())
                .with("prefill_chunk", engine.prefill_chunk())
                .with("max_queue", engine_config.queue_capacity)
                .with("max_sequences", engine_config.max_sequences);
            if let Some(bytes) = engine_config.state_budget {
                signal = signal.with("state_budget_bytes", bytes);
            }
            signal.emit();
            Signal::new("sampling")
                .with("temperature", defaults.temperature)
                .with("top_p", defaults.top_p)
                .with("top_k", defaults.top_k)
                .with("min_p", defaults.min_p)
                .with("repetition_penalty", defaults.repetition_penalty)
                .with("stop_ids", self.stop_ids.iter().map(u32::to_string).collect::<Vec<_>>().join(","))
                .emit();
        }
        info!(seconds = started.elapsed().as_secs_f64(), "model loaded");
        Ok(ChatModel::new(engine, self.templates, defaults, self.stop_ids, names))
    }
}

/// What loading tells the operator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report {
    /// Startup signals on stdout.
    pub(crate) signals: bool,
}

/// `experts`: routed experts of all layers together.
fn mode_signal(config: &ModelConfig, facts: &[(&'static str, String)], experts: usize) -> Signal {
    let fact = |wanted: &str| facts.iter().find(|(key, _)| *key == wanted).map(|(_, value)| value.as_str());
    // int8 activations are the path that serves; f32 is the one that is held to references.
    let profile = match config.load.activations {
        Activations::Int8 => "production",
        Activations::F32 => "exact",
    };
    let mut signal = Signal::new("mode")
        .with("profile", profile)
        .with("production_streaming_mode", config.streaming.as_str());
    if let Some(slots) = fact("expert_slots").and_then(|v| v.parse::<usize>().ok()) {
        // Stacked: one allocation with a slot for every expert of every layer.
        signal = signal.with("expert_residency", if slots >= experts { "stacked" } else { "banked" });
    }
    for key in ["activations", "isa", "threads"] {
        if let Some(value) = fact(key) {
            signal = signal.with(key, value);
        }
    }
    signal
}

/// A progress bar on a terminal, a log line now and then otherwise.
struct Display {
    bar: Option<ProgressBar>,
    logged: Instant,
}

impl Display {
    const LOG_EVERY: Duration = Duration::from_secs(2);

    fn new(checkpoint: &Path) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let template = "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message("loading");
            bar
        });
        if bar.is_none() {
            info!(checkpoint = %checkpoint.display(), "loading");
        }
        Self { bar, logged: Instant::now() }
    }

    fn update(&mut self, progress: LoadProgress) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(progress.bytes_total);
                bar.set_position(progress.bytes_done);
            }
            None if self.logged.elapsed() >= Self::LOG_EVERY => {
                self.logged = Instant::now();
                info!(bytes_done = progress.bytes_done, bytes_total = progress.bytes_total, "loading");
            }
            None => {}
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
