//! Arguments that several commands share, as they are typed.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mach_engine::EngineConfig;
use mach_models::{Activations, LoadOptions, TurboQuant};
use mach_quant::Bits;
use mach_specdec::DecodePath;
use mach_specdec::policy::{GuardSpec, PolicySpec};

use crate::Exit;
use crate::device::{DeviceArg, DeviceWish};
use crate::experts::ExpertArgs;

/// Which checkpoint, and how it is loaded.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Directory of the checkpoint (config.json, *.safetensors, tokenizer.json), or ORG/NAME in the model cache
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: PathBuf,

    /// Where experts live
    #[command(flatten, next_help_heading = "Experts and memory")]
    pub experts: ExpertArgs,

    /// Compute threads; 0 uses all cores
    #[arg(long, help_heading = "Computing", default_value_t = 0, value_name = "N")]
    pub threads: usize,

    /// Activations of the linear layers: int8 is fast, f32 exact
    #[arg(long, help_heading = "Computing", value_enum, default_value_t = ActivationsArg::Int8)]
    pub activations: ActivationsArg,

    /// Keys and values rotated and quantized to so many bits: off, 2, 3, 4, 8, or keys and values apart as in k4v3. Several times
    /// smaller, answers a little different
    #[arg(long, help_heading = "Computing", default_value = "off", value_name = "BITS")]
    pub turboquant_kv: TurboQuantArg,

    /// What runs the model: auto (a GPU that gives the CPU's bytes, else the CPU), cpu, gpu or gpu:N
    #[arg(long, help_heading = "Computing", default_value_t = DeviceArg::Auto, value_name = "DEVICE")]
    pub device: DeviceArg,

    /// Refuse a GPU whose results are not the CPU's, bit by bit
    #[arg(long, help_heading = "Computing")]
    pub require_exact: bool,

    /// Instruction set (scalar, avx2, avx-vnni, avx512, neon, neon-dotprod); the best of this machine if not given
    #[arg(long, help_heading = "Computing", value_name = "NAME")]
    pub isa: Option<String>,

    /// Longest context in tokens, prompt and answer together; bounded by the model and by memory
    #[arg(long, help_heading = "Computing", value_name = "TOKENS")]
    pub max_context: Option<usize>,

    /// Let --max-context be longer than the checkpoint says; far beyond what a model was trained on its answers get worse
    #[arg(long, help_heading = "Computing", requires = "max_context")]
    pub stretch_context: bool,

    /// Prompt tokens that one pass of the model takes
    #[arg(long, help_heading = "Computing", default_value_t = EngineConfig::default().prefill_chunk, value_name = "TOKENS")]
    pub prefill_chunk: usize,

    /// Speculative decoding
    #[command(flatten, next_help_heading = "Speculation")]
    pub speculation: SpeculationArgs,
}

/// How tokens are proposed ahead of the model. Changes the speed, never the answer.
#[derive(Debug, Clone, Args)]
pub struct SpeculationArgs {
    /// specdec-v7 (a draft proposes, where there is one) or target-only
    #[arg(long, default_value_t = DecodePath::default(), value_name = "PATH")]
    pub decode_path: DecodePath,

    /// Directory of the DFlash draft; `draft` inside the checkpoint if it is there and this is not given
    #[arg(long, value_name = "DIR")]
    pub draft_dir: Option<PathBuf>,

    /// Fail at the start if the draft cannot be used, instead of decoding without it
    #[arg(long)]
    pub require_draft: bool,

    /// Bits of the draft's matrices: unquantized ones are quantized to 4 or 8 while loading, 16 leaves them as stored;
    /// 8 if not given, 16 with f32 activations
    #[arg(long, value_name = "BITS", value_parser = ["4", "8", "16"])]
    pub draft_bits: Option<String>,

    /// Size of the blocks: opencode-sampled-v1, fixed-N (rows), cost-aware (all is left to the guard) or off
    #[arg(long, default_value_t = EngineConfig::default().speculation.policy, value_name = "POLICY")]
    pub serving_adaptive_block_policy: PolicySpec,

    /// What stands over that policy: cost-aware shortens or skips blocks that would lose, off leaves them
    #[arg(long, default_value_t = EngineConfig::default().speculation.guard, value_name = "GUARD")]
    pub serving_block_guard: GuardSpec,

    /// Where the model has a block of its own (v4_mtp): it drafts while tokens gained over the cost of their rows are at least
    /// this; 0 always drafts
    #[arg(long, default_value_t = 1.0, value_name = "RATIO")]
    pub rho_gate: f64,
}

/// Values of `--activations`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ActivationsArg {
    /// Quantized to int8 per group.
    Int8,
    /// Exact float32.
    F32,
}

impl From<ActivationsArg> for Activations {
    fn from(arg: ActivationsArg) -> Self {
        match arg {
            ActivationsArg::Int8 => Self::Int8,
            ActivationsArg::F32 => Self::F32,
        }
    }
}

/// Values of `--turboquant-kv`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurboQuantArg(pub Option<TurboQuant>);

impl std::str::FromStr for TurboQuantArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            widths => widths.parse().map(|t| Self(Some(t))).map_err(|e: String| format!("{e}, nor off")),
        }
    }
}

/// [`ModelArgs`], checked.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// Where experts live.
    pub experts: ExpertArgs,
    /// How the model is loaded, the place of its experts aside.
    pub load: LoadOptions,
    /// What runs it.
    pub device: DeviceWish,
    /// Bound of the context.
    pub max_context: Option<usize>,
    /// The bound may be beyond the checkpoint's own.
    pub stretch_context: bool,
    /// Prompt tokens a pass.
    pub prefill_chunk: usize,
    /// The decode path asked for.
    pub decode_path: DecodePath,
    /// The draft's directory, if given.
    pub draft_dir: Option<PathBuf>,
    /// A draft that cannot be used is an error.
    pub require_draft: bool,
    /// Bits that the draft's unquantized matrices are quantized to.
    pub draft_bits: Option<Bits>,
    /// Size of the blocks.
    pub policy: PolicySpec,
    /// What stands over it.
    pub guard: GuardSpec,
    /// What the block of a model that has one must gain to draft.
    pub rho_gate: f64,
}

/// What a parser makes of a checkpoint alone.
#[derive(Debug, clap::Parser)]
struct Alone {
    #[command(flatten)]
    model: ModelArgs,
}

impl ModelArgs {
    /// A checkpoint with the usual settings.
    pub(crate) fn of(checkpoint: &std::path::Path) -> Self {
        use clap::Parser as _;
        Alone::parse_from(["mach".as_ref(), "--".as_ref(), checkpoint.as_os_str()]).model
    }

    /// Checks the arguments.
    pub fn validate(self) -> Result<ModelConfig, Exit> {
        if self.max_context.is_some_and(|c| c < 2) {
            return Err(Exit::input("--max-context: must be at least 2"));
        }
        if self.prefill_chunk == 0 {
            return Err(Exit::input("--prefill-chunk: must be at least 1"));
        }
        let speculation = self.speculation;
        if !(0.0..=1e6).contains(&speculation.rho_gate) {
            return Err(Exit::input("--rho-gate: must be from 0 to 1000000"));
        }
        let (policy, guard) = (speculation.serving_adaptive_block_policy, speculation.serving_block_guard);
        if (policy, guard) == (PolicySpec::CostAware, GuardSpec::Off) {
            return Err(Exit::input(
                "--serving-block-guard off: the policy cost-aware leaves all to the guard; give another policy, or leave one of the \
                 two out",
            ));
        }
        Ok(ModelConfig {
            checkpoint: crate::hub::locate(&self.checkpoint)?,
            experts: self.experts,
            load: LoadOptions {
                activations: self.activations.into(),
                threads: self.threads,
                isa: self.isa,
                turboquant_kv: self.turboquant_kv.0,
                ..LoadOptions::default()
            },
            device: DeviceWish { device: self.device, require_exact: self.require_exact },
            max_context: self.max_context,
            stretch_context: self.stretch_context,
            prefill_chunk: self.prefill_chunk,
            decode_path: speculation.decode_path,
            draft_dir: speculation.draft_dir,
            require_draft: speculation.require_draft,
            draft_bits: match (speculation.draft_bits.as_deref(), self.activations) {
                (Some("4"), _) => Some(Bits::B4),
                (Some("8"), _) | (None, ActivationsArg::Int8) => Some(Bits::B8),
                (Some(_), _) | (None, ActivationsArg::F32) => None,
            },
            policy: speculation.serving_adaptive_block_policy,
            guard: speculation.serving_block_guard,
            rho_gate: speculation.rho_gate,
        })
    }
}

/// Where settings come from beside the command line.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// TOML file with settings: keys are flags without their dashes. Every flag can also be set by a variable (MACH_MAX_BATCH for
    /// --max-batch). The command line comes before variables, those before the file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What is logged, and how. Logs go to stderr.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Least severe level that is logged; info if not given (for generate and chat: error, and info with -v)
    #[arg(long, value_enum)]
    pub log_level: Option<LogLevel>,

    /// Form of the log lines
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Values of `--log-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Errors.
    Error,
    /// And warnings.
    Warn,
    /// And one line a request.
    Info,
    /// And what the engine decides.
    Debug,
    /// Everything.
    Trace,
}

/// Values of `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
