//! From a checkpoint directory to a model that can chat.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mach_api::output::OutputFormat;
use mach_checkpoint::{Checkpoint, OutputConvention};
use mach_engine::{Engine, EngineConfig, Generator as _, SamplingParams, Speculation, TextTokenizer, Unread};
use mach_models::{DraftNeeds, LoadOptions, LoadProgress, Model, ModelCard};
use mach_prefix::PrefixConfig;
use mach_server::{ChatModel, Decoding, ExpertLayout, Places, Serving, Templates};
use mach_specdec::{Draft, EffectivePath};
use tracing::{info, warn};

use crate::Exit;
use crate::args::ModelConfig;
use crate::budget::{Budget, Clients};
use crate::device::{Chosen, DeviceArg};
use crate::drafts::{DraftFound, Loaded, draft_dir, draft_that_fits};
use crate::experts::Prepared;
use crate::identity::{Identity, WeightFiles};
use crate::signals::{Signal, Signals};
use crate::sizing::Beside;

/// A checkpoint whose files have been read and checked, weights aside.
#[derive(Debug)]
pub(crate) struct Opened {
    config: ModelConfig,
    checkpoint: Checkpoint,
    tokenizer: Arc<TextTokenizer>,
    templates: Option<Templates>,
    stop_ids: Vec<u32>,
    weight_files: WeightFiles,
    clients: Option<Clients>,
}

/// The checkpoint with a context that is at least so long.
fn stretched(checkpoint: Checkpoint, tokens: usize) -> Checkpoint {
    let own = checkpoint.config().max_position_embeddings;
    if tokens <= own {
        return checkpoint;
    }
    warn!(
        tokens,
        own, "--stretch-context: longer than the checkpoint says; answers may get worse beyond that"
    );
    checkpoint.with_positions(tokens)
}

impl Opened {
    /// Reads and checks everything but the weights; every error here is one of input.
    pub(crate) fn open(config: ModelConfig) -> Result<Self, Exit> {
        let checkpoint = Checkpoint::open(&config.checkpoint).map_err(Exit::input)?;
        let checkpoint = match config.max_context.filter(|_| config.stretch_context) {
            Some(tokens) => stretched(checkpoint, tokens),
            None => checkpoint,
        };
        let cores = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
        if config.load.threads > cores {
            let threads = config.load.threads;
            warn!(threads, cores, "--threads: more threads than cores only wait for each other");
        }
        let tokenizer = checkpoint.tokenizer().map_err(Exit::input)?;
        let vocab = checkpoint.config().vocab_size;
        let tokenizer = TextTokenizer::new(tokenizer, vocab).map_err(|e| {
            Exit::input(format!("{}: {e}", config.checkpoint.join("tokenizer.json").display()))
        })?;
        let templates = Templates::of(&checkpoint).map_err(Exit::input)?;
        let stop_ids = ChatModel::stop_ids_of(&checkpoint, &tokenizer).map_err(Exit::input)?;
        let weight_files = WeightFiles::of(&checkpoint, draft_dir(&config).as_deref());
        let tokenizer = Arc::new(tokenizer);
        Ok(Self { config, checkpoint, tokenizer, templates, stop_ids, weight_files, clients: None })
    }

    /// Tells who will ask, so that there is memory for their requests.
    pub(crate) fn for_clients(self, clients: Clients) -> Self {
        Self { clients: Some(clients), ..self }
    }

    /// The directory's own name.
    pub(crate) fn default_name(&self) -> String {
        let path = self.checkpoint.dir();
        let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        full.file_name().map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
    }

    /// The files.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Whether requests share passes, or why they cannot.
    pub(crate) fn batching(&self, asked: Option<bool>) -> Result<bool, String> {
        self.checkpoint.family().batching(asked)
    }

    /// What bounds the context where memory does not.
    fn context_bound(&self) -> &'static str {
        let model = self.checkpoint.config().max_position_embeddings;
        let stretched = self.config.stretch_context;
        if self.config.max_context.is_some_and(|asked| asked < model || stretched && asked == model) {
            "max-context"
        } else {
            "model"
        }
    }

    /// Whether chats can be rendered.
    pub(crate) fn can_chat(&self) -> bool {
        self.templates.is_some()
    }

    /// How the model writes its answers, by its chat template.
    pub(crate) fn output_format(&self) -> OutputFormat {
        let template = self.templates.as_ref().map_or("", Templates::source);
        // Exhaustive: a family that its templates do not show names its convention here.
        let usual = match self.checkpoint.family().output {
            OutputConvention::AsTemplate => OutputFormat::default(),
        };
        OutputFormat::detect(template, usual)
    }

    /// Loads the weights and starts the engine: budget, weights, draft, settings of the engine, the engine itself.
    pub(crate) fn load(
        self,
        engine: EngineConfig,
        names: Vec<String>,
        report: &Report,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<ChatModel, Exit> {
        let started = Instant::now();
        let (Prepared { load, budget, residency, signals }, found) = self.budget(&engine)?;
        signals.into_iter().for_each(|signal| signal.emit_to(report.signals));
        let mut model = self.weights(&load, report, progress)?;
        let loaded = found.load(&self.checkpoint, &self.config, model.as_mut())?;
        let Loaded { draft, bytes: draft_bytes, decoding } = loaded;
        let rho = draft.as_ref().and_then(|draft| draft.gate().cloned());
        let (card, numerics) = (model.card(), model.numerics());
        let settings = self.settings(engine, &budget, draft, &decoding, &numerics);
        let tokenizer = Arc::clone(&self.tokenizer);
        let engine = Engine::start(model, tokenizer, settings.clone()).map_err(Exit::failure)?;
        self.settle_identity(&engine, &settings);
        let defaults = SamplingParams::defaults(self.checkpoint.generation(), 0);
        let signals = [
            self.model_signal(&names, &card),
            self.engine_signal(&engine, &settings),
            prefix_signal(settings.prefix.as_ref()),
            decoding_signal(&decoding, draft_bytes, &found),
            self.sampling_signal(&defaults),
        ];
        signals.into_iter().for_each(|signal| signal.emit_to(report.signals));
        info!(seconds = started.elapsed().as_secs_f64(), "model loaded");
        let arch = Some(self.checkpoint.family().card());
        let serving = Serving {
            backend: "production",
            arch,
            residency,
            experts: self.expert_layout(),
            memory: budget.plan(&settings, &card, draft_bytes),
            places: Places { running: settings.max_batch, waiting: settings.queue_capacity },
            card: card.pairs(),
        };
        let model = ChatModel::new(engine, self.templates, defaults, self.stop_ids, names, decoding);
        let model = model.with_serving(serving).with_numerics(numerics).with_rho(rho);
        Ok(match (self.clients, budget.needs.requests) {
            (Some(_), requests) => {
                model.with_request_memory(requests.account, requests.grammars, settings.max_batch)
            }
            (None, _) => model,
        })
    }

    fn expert_layout(&self) -> ExpertLayout {
        let config = self.checkpoint.config();
        let layers = config.moe_layers.iter().enumerate().filter(|&(_, &has)| has);
        ExpertLayout {
            layers: layers.map(|(layer, _)| layer).collect(),
            experts: config.moe.num_experts,
            per_token: config.moe.top_k,
        }
    }

    /// What memory holds, and how experts are reached; the draft that there is room for.
    fn budget(&self, engine: &EngineConfig) -> Result<(Prepared, DraftFound), Exit> {
        let beside = Beside {
            sequences: engine.max_batch,
            draft: DraftNeeds::default(),
            prefix: engine.prefix.as_ref().map_or(0, |prefix| prefix.max_bytes),
            saves: engine.prefix.as_ref().map_or(0, PrefixConfig::saving_bytes),
            clients: self.clients,
        };
        let (found, beside) = draft_that_fits(&self.config, &self.checkpoint, beside);
        Ok((crate::experts::prepare(&self.checkpoint, &self.config, beside)?, found))
    }

    fn weights(
        &self,
        load: &LoadOptions,
        report: &Report,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Box<dyn Model>, Exit> {
        let wish = self.config.device;
        let mut chosen = wish.choose(&self.checkpoint, load)?;
        loop {
            let mut display = Display::new(&self.config.checkpoint, report.bar);
            let model = chosen.load(&self.checkpoint, load, &mut |p| {
                display.update(p);
                progress(p);
            });
            display.finish();
            match model {
                Err(error) if wish.device == DeviceArg::Auto && chosen.is_gpu() => {
                    // A GPU that nobody asked for and that is too small is no reason to stop.
                    chosen = Chosen::Cpu(Some(error.to_string()));
                }
                model => {
                    chosen.signal().emit_to(report.signals);
                    return model.map_err(Exit::input);
                }
            }
        }
    }

    /// Has the prefix cache use its disk as soon as it is known which weights these are.
    fn settle_identity(&self, engine: &Engine, settings: &EngineConfig) {
        let (Some(cache), Some(config)) = (engine.prefix(), &settings.prefix) else { return };
        let files = match settings.speculation.draft {
            Some(_) => self.weight_files.clone(),
            None => self.weight_files.clone().without_draft(),
        };
        if let Some(identity) = Identity::new(config, files) {
            identity.settle(cache);
        }
    }

    /// The engine's settings, completed by what the budget leaves and the draft that was found.
    fn settings(
        &self,
        mut engine: EngineConfig,
        budget: &Budget,
        draft: Option<Arc<dyn Draft>>,
        decoding: &Decoding,
        numerics: &str,
    ) -> EngineConfig {
        engine.speculation = Speculation { draft, policy: decoding.policy, guard: decoding.guard };
        engine.max_context = self.config.max_context;
        engine.prefill_chunk = self.config.prefill_chunk;
        engine.state_budget = Some(budget.state);
        if self.clients.is_some() {
            engine.unread = Arc::new(Unread::new(budget.needs.requests.unread));
        }
        if let Some(prefix) = &mut engine.prefix {
            let draft = engine.speculation.draft.is_some().then(|| draft_dir(&self.config)).flatten();
            crate::prefix::complete(prefix, &self.checkpoint, numerics, draft.as_deref());
            if !matches!(decoding.gate.effective, EffectivePath::SpecdecV7 | EffectivePath::TargetOnly) {
                crate::prefix::with_block(prefix);
            }
            if prefix.max_bytes == 0 {
                // Half of what the shortest useful request does not need.
                prefix.max_bytes = (budget.state - budget.needs.least_state.min(budget.state)) / 2;
                // Of that, those that wait to be saved.
                prefix.max_bytes -= prefix.max_bytes / 9;
                engine.state_budget = Some(budget.state - prefix.max_bytes - prefix.saving_bytes());
            }
        }
        engine
    }
}

/// What loading tells the operator.
impl Opened {
    fn model_signal(&self, names: &[String], card: &ModelCard) -> Signal {
        let signal = Signal::new("model")
            .with("name", names.join(","))
            .with("checkpoint", self.config.checkpoint.display())
            .with("architecture", &card.model_type);
        card.pairs().iter().fold(signal, |signal, (key, value)| signal.with(key, value))
    }

    fn engine_signal(&self, engine: &Engine, settings: &EngineConfig) -> Signal {
        let (context, wanted) = (engine.context(), engine.wanted_context());
        let cut = wanted > context;
        if cut {
            warn!(context, wanted, "memory bounds the context; --memory-gb gives it more");
        }
        let mut signal = Signal::new("engine")
            .with("context", context)
            .with("context_bound", if cut { "memory" } else { self.context_bound() })
            .with("prefill_chunk", engine.prefill_chunk())
            .with("max_queue", settings.queue_capacity)
            .with("max_batch", settings.max_batch)
            .with("continuous_batching", settings.continuous_batching);
        if let Some(reason) = self.checkpoint.family().batching.reason() {
            signal = signal.with("continuous_batching_reason", reason);
        }
        match settings.state_budget {
            Some(bytes) => signal.with("state_budget_bytes", bytes),
            None => signal,
        }
    }

    fn sampling_signal(&self, defaults: &SamplingParams) -> Signal {
        Signal::new("sampling")
            .with("temperature", defaults.temperature)
            .with("top_p", defaults.top_p)
            .with("top_k", defaults.top_k)
            .with("min_p", defaults.min_p)
            .with("repetition_penalty", defaults.repetition_penalty)
            .with("stop_ids", self.stop_ids.iter().map(u32::to_string).collect::<Vec<_>>().join(","))
    }
}

fn decoding_signal(decoding: &Decoding, draft_bytes: Option<usize>, found: &DraftFound) -> Signal {
    let signal = Signal::pairs()
        .with("decode_path", decoding.path)
        .with("adaptive_block_policy", decoding.policy)
        .with("guard", decoding.guard)
        .with("effective_decode_path", decoding.gate.effective)
        .with("reason", &decoding.gate.reason);
    let signal = match found {
        DraftFound::Neither(why) => signal.with("mtp", why),
        _ => signal,
    };
    match draft_bytes {
        Some(bytes) => signal.with("draft_weight_bytes", bytes),
        None => signal,
    }
}

fn prefix_signal(config: Option<&PrefixConfig>) -> Signal {
    let Some(config) = config else { return Signal::new("prefix_cache").with("enabled", false) };
    let signal = Signal::new("prefix_cache")
        .with("enabled", true)
        .with("max_bytes", config.max_bytes)
        .with("max_entries", config.max_entries)
        .with("block_size", config.block);
    match &config.directory {
        Some(directory) => {
            signal.with("disk_kv_dir", directory.display()).with("disk_budget_bytes", config.disk_budget)
        }
        None => signal.with("disk_kv_dir", "none"),
    }
}

/// What loading tells the operator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report {
    /// Where startup signals go.
    pub(crate) signals: Signals,
    /// Whether a terminal shows how far the weights are.
    pub(crate) bar: bool,
}

/// A progress bar on a terminal, a log line now and then otherwise.
struct Display {
    bar: Option<ProgressBar>,
    logged: Instant,
}

impl Display {
    const LOG_EVERY: Duration = Duration::from_secs(2);

    fn new(checkpoint: &Path, bar: bool) -> Self {
        let bar = (bar && std::io::stderr().is_terminal()).then(|| {
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
