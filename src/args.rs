//! Arguments that several commands share, as they are typed.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mach_engine::EngineConfig;
use mach_models::{Activations, LoadOptions};

use crate::Exit;

/// Which checkpoint, and how it is loaded.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Directory of the checkpoint (config.json, *.safetensors, tokenizer.json)
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: PathBuf,

    /// Keep all experts in memory (the only mode so far, and the default)
    #[arg(long, conflicts_with = "streaming")]
    pub no_streaming: bool,

    /// Stream experts from the drive
    #[arg(long)]
    pub streaming: bool,

    /// Compute threads; 0 uses all cores
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub threads: usize,

    /// Activations of the linear layers: int8 is fast, f32 exact
    #[arg(long, value_enum, default_value_t = ActivationsArg::Int8)]
    pub activations: ActivationsArg,

    /// Instruction set (scalar, avx2, avx512, neon); the best of this machine if not given
    #[arg(long, value_name = "NAME")]
    pub isa: Option<String>,

    /// Longest context in tokens, prompt and answer together; bounded by the model and by memory
    #[arg(long, value_name = "TOKENS")]
    pub max_context: Option<usize>,

    /// Prompt tokens that one pass of the model takes
    #[arg(long, default_value_t = EngineConfig::default().prefill_chunk, value_name = "TOKENS")]
    pub prefill_chunk: usize,
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

/// Where experts live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streaming {
    /// All in memory.
    Resident,
}

impl Streaming {
    /// Name in startup signals.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resident => "resident",
        }
    }
}

/// [`ModelArgs`], checked.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// Where experts live.
    pub streaming: Streaming,
    /// How the model is loaded.
    pub load: LoadOptions,
    /// Bound of the context.
    pub max_context: Option<usize>,
    /// Prompt tokens a pass.
    pub prefill_chunk: usize,
}

impl ModelArgs {
    /// Checks the arguments.
    pub fn validate(self) -> Result<ModelConfig, Exit> {
        if self.streaming {
            return Err(Exit::input(
                "--streaming: streaming experts from the drive is not supported by this version; \
                 use --no-streaming, which keeps all experts in memory",
            ));
        }
        if self.max_context.is_some_and(|c| c < 2) {
            return Err(Exit::input("--max-context: must be at least 2"));
        }
        if self.prefill_chunk == 0 {
            return Err(Exit::input("--prefill-chunk: must be at least 1"));
        }
        Ok(ModelConfig {
            checkpoint: self.checkpoint,
            streaming: Streaming::Resident,
            load: LoadOptions { activations: self.activations.into(), threads: self.threads, isa: self.isa },
            max_context: self.max_context,
            prefill_chunk: self.prefill_chunk,
        })
    }
}

/// What is logged, and how. Logs go to stderr.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Least severe level that is logged
    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,

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
