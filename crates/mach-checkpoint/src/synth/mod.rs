//! Synthetic checkpoints: the shape of a real model, random weights, routing that depends on the token.
//!
//! They make a model's speed measurable where its weights are not; their text means nothing. Every such directory says
//! so in `synthetic.json` and in `config.json`.

mod content;
mod deepseek;
mod routing;
mod shape;
mod spread;
mod tensors;
mod writer;

use std::path::{Path, PathBuf};

use serde_json::json;

pub use routing::Routing;
pub use shape::Shape;
pub(crate) use shape::{TAPS, extend};
pub use spread::{LayerSpread, Spread, measure_spread};
pub(crate) use tensors::TEXT_TOKENS;

use crate::{Checkpoint, CheckpointError};

/// What to write, and where.
#[derive(Debug, Clone)]
pub struct SynthOptions {
    /// Name of one of [`Shape::all`].
    pub shape: String,
    /// Layers, from 1 to those of the shape.
    pub layers: usize,
    /// How tokens spread over experts.
    pub routing: Routing,
    /// Equal seeds give equal files.
    pub seed: u64,
    /// Directory to create; it must be empty if it exists.
    pub out: PathBuf,
}

/// Bytes written so far and in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynthProgress {
    /// Bytes written.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct SynthReport {
    /// Safetensors files written.
    pub shards: usize,
    /// Bytes of tensor data.
    pub bytes: u64,
    /// The routing, measured on the files.
    pub spread: Spread,
}

/// Why nothing usable was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SynthError {
    /// No such shape.
    #[error("unknown shape `{name}`; known: {known}")]
    Shape {
        /// The name given.
        name: String,
        /// The known ones.
        known: String,
    },
    /// Too many or no layers.
    #[error("{layers} layers; shape `{shape}` has 1 to {most}")]
    Layers {
        /// Layers asked for.
        layers: usize,
        /// Name of the shape.
        shape: &'static str,
        /// Layers of the real model.
        most: usize,
    },
    /// A routing that is not `uniform` or `zipf:S`.
    #[error("unknown routing `{0}`: `uniform`, or `zipf:S` with S from 0 to 4")]
    Routing(String),
    /// The directory has contents.
    #[error("{}: not empty", .0.display())]
    NotEmpty(PathBuf),
    /// A file could not be written.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file that cannot be written.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The written checkpoint did not read back.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl SynthError {
    fn io(file: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { file: file.to_owned(), source }
    }
}

/// Largest shard.
const SHARD_BYTES: u64 = 4_000_000_000;
/// Tokens routed for the report.
const SAMPLE: usize = 4096;

const TOKENIZER: &[u8] = include_bytes!("../../../../demo/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../../../demo/tokenizer_config.json");
const CHAT_TEMPLATE: &[u8] = include_bytes!("../../../../demo/chat_template.jinja");
const GENERATION_CONFIG: &[u8] = include_bytes!("../../../../demo/generation_config.json");

/// Writes a synthetic checkpoint and measures its routing. `config.json` comes last, so that a directory left by an
/// interruption does not pass for a checkpoint.
pub fn write(
    options: &SynthOptions,
    progress: &mut dyn FnMut(SynthProgress),
) -> Result<SynthReport, SynthError> {
    let (form, shape) = Shape::named(&options.shape).ok_or_else(|| SynthError::Shape {
        name: options.shape.clone(),
        known: Shape::all().map(|(_, shape)| shape.name).collect::<Vec<_>>().join(", "),
    })?;
    if options.layers == 0 || options.layers > shape.layers {
        return Err(SynthError::Layers { layers: options.layers, shape: shape.name, most: shape.layers });
    }
    let out = options.out.as_path();
    std::fs::create_dir_all(out).map_err(SynthError::io(out))?;
    if std::fs::read_dir(out).map_err(SynthError::io(out))?.next().is_some() {
        return Err(SynthError::NotEmpty(out.to_owned()));
    }

    let (shards, bytes) =
        writer::write_shards(out, tensors::plan(shape, form, options), SHARD_BYTES, progress)?;
    let put = |name: &str, contents: &[u8]| {
        let file = out.join(name);
        std::fs::write(&file, contents).map_err(SynthError::io(&file))
    };
    put("tokenizer.json", TOKENIZER)?;
    put("tokenizer_config.json", TOKENIZER_CONFIG)?;
    put("chat_template.jinja", CHAT_TEMPLATE)?;
    put("generation_config.json", GENERATION_CONFIG)?;
    put("config.json", pretty(&shape.config(form, options.layers)).as_bytes())?;

    let checkpoint = Checkpoint::open(out)?;
    let spread = measure_spread(&checkpoint, SAMPLE, options.seed)?;
    let mean = spread.mean();
    let manifest = json!({
        "synthetic": true,
        "note": "Random weights in the shape of a real model, for measuring speed. Its text means nothing.",
        "shape": shape.name,
        "layers": options.layers,
        "layers_of_the_real_model": shape.layers,
        "routing": options.routing.to_string(),
        "seed": options.seed,
        "weight_bytes": bytes,
        "measured_routing": {
            "tokens": spread.tokens,
            "hottest_expert_share": mean.hottest,
            "effective_experts": mean.effective_experts,
            "coverage": mean.coverage,
        },
    });
    put("synthetic.json", pretty(&manifest).as_bytes())?;
    Ok(SynthReport { shards, bytes, spread })
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}
