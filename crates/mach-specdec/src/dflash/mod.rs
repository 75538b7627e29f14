//! DFlash: a block-diffusion draft. A small transformer that fills a block of masked positions in one pass, from features
//! taken inside the target (Chen et al., "DFlash: Block Diffusion for Flash Speculative Decoding", 2026), first and
//! second generation.
//!
//! The draft has no embedding and no head: it borrows the target's. What it draws from the target's features depends on
//! nothing but the position, so it is projected once and kept as keys and values of the context.

mod config;
mod context;
mod forward;
mod proposer;
mod quantize;
mod second;
mod weights;

use std::path::Path;

use mach_checkpoint::{ModelConfig, Tensors};
use mach_kernels::elementwise::Rope;
use mach_models::Activations;

pub use config::{DraftConfig, LayerMask, SecondConfig};
pub use context::DraftContext;
pub use forward::{DraftRows, DraftWorkspace};
pub use proposer::DFlashProposer;

use crate::DraftError;
use second::{Convolution, Selector};
use weights::{Matrix, Plan, Weights};

/// How to load a draft.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DraftOptions {
    /// The target's activation path.
    pub activations: Activations,
    /// Quantize unquantized matrices to 4 or 8 bits, in groups of 64.
    pub quantize_bits: Option<u8>,
}

#[derive(Debug)]
struct Layer {
    mask: LayerMask,
    input_norm: Vec<f32>,
    post_norm: Vec<f32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    o: Matrix,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    /// Around attention and around the MLP.
    convolutions: Option<[Convolution; 2]>,
}

/// A loaded draft; shared by all sequences.
#[derive(Debug)]
pub struct DFlash {
    config: DraftConfig,
    activations: Activations,
    rope: Rope,
    weights: Weights,
    fc: Matrix,
    hidden_norm: Vec<f32>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    selector: Option<Selector>,
}

impl DFlash {
    /// Loads the draft in `dir` for a target.
    pub fn open(dir: &Path, target: &ModelConfig, options: DraftOptions) -> Result<Self, DraftError> {
        let (tensors, json) = Tensors::open(dir)?;
        let config = DraftConfig::parse(&dir.join("config.json"), &json)?;
        config.fits(target)?;
        let c = &config;
        let (hidden, head) = (c.hidden_size, c.head_dim);
        let (width, kv_width) = (c.heads * head, c.kv_heads * head);
        let mut plan = Plan::new(&tensors, options);
        let fc = plan.matrix("fc", hidden, c.target_layer_ids.len() * hidden)?;
        let mut layers = Vec::with_capacity(c.layers.len());
        for (n, &mask) in c.layers.iter().enumerate() {
            let name = |rest: &str| format!("layers.{n}.{rest}");
            let norm = |rest: &str, n: usize| tensors.floats(&name(rest), &[n]);
            let convolutions = match &c.second {
                Some(second) => Some([
                    Convolution::load(&mut plan, &name("attention_conv"), hidden, second)?,
                    Convolution::load(&mut plan, &name("mlp_conv"), hidden, second)?,
                ]),
                None => None,
            };
            layers.push(Layer {
                mask,
                input_norm: norm("input_layernorm.weight", hidden)?,
                post_norm: norm("post_attention_layernorm.weight", hidden)?,
                q: plan.matrix(&name("self_attn.q_proj"), width, hidden)?,
                k: plan.matrix(&name("self_attn.k_proj"), kv_width, hidden)?,
                v: plan.matrix(&name("self_attn.v_proj"), kv_width, hidden)?,
                o: plan.matrix(&name("self_attn.o_proj"), hidden, width)?,
                q_norm: norm("self_attn.q_norm.weight", head)?,
                k_norm: norm("self_attn.k_norm.weight", head)?,
                gate: plan.matrix(&name("mlp.gate_proj"), c.intermediate_size, hidden)?,
                up: plan.matrix(&name("mlp.up_proj"), c.intermediate_size, hidden)?,
                down: plan.matrix(&name("mlp.down_proj"), hidden, c.intermediate_size)?,
                convolutions,
            });
        }
        let selector = match &c.second {
            Some(second) => Some(Selector::load(&mut plan, c, second)?),
            None => None,
        };
        Ok(DFlash {
            activations: options.activations,
            rope: Rope::new(c.theta, head),
            fc,
            hidden_norm: tensors.floats("hidden_norm.weight", &[hidden])?,
            norm: tensors.floats("norm.weight", &[hidden])?,
            layers,
            selector,
            weights: plan.fill()?,
            config,
        })
    }

    /// Its settings.
    pub fn config(&self) -> &DraftConfig {
        &self.config
    }

    /// Bytes of its matrices.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }
}
