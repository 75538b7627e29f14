//! The routed experts of a layer, whatever the layout on disk.

use std::path::Path;

use mach_quant::FloatType;

use crate::{Checkpoint, CheckpointError, Dtype, Family, LinearSource};

/// One routed expert, borrowed from the mapped shards.
#[derive(Debug, Clone, Copy)]
pub struct ExpertSource<'a> {
    /// `[intermediate, hidden]`, passed through the activation.
    pub gate: LinearSource<'a>,
    /// `[intermediate, hidden]`.
    pub up: LinearSource<'a>,
    /// `[hidden, intermediate]`.
    pub down: LinearSource<'a>,
    /// What is added to their outputs, if the family's experts have biases.
    pub biases: Option<ExpertBiases<'a>>,
}

/// The biases of one routed expert.
#[derive(Debug, Clone, Copy)]
pub struct ExpertBiases<'a> {
    /// `[intermediate]`.
    pub gate: VectorSource<'a>,
    /// `[intermediate]`.
    pub up: VectorSource<'a>,
    /// `[hidden]`.
    pub down: VectorSource<'a>,
}

/// Floats of a mapped shard, some values apart.
#[derive(Debug, Clone, Copy)]
pub struct VectorSource<'a> {
    /// Tensor name, for messages.
    pub tensor: &'a str,
    /// Shard, for messages.
    pub file: &'a Path,
    /// F32, F16 or BF16.
    pub dtype: Dtype,
    /// From the first value on.
    pub data: &'a [u8],
    /// How many there are.
    pub len: usize,
    /// Distance of values: 1 where they are adjacent.
    pub step: usize,
}

impl VectorSource<'_> {
    /// The type of the values.
    pub fn float(&self) -> Result<FloatType, CheckpointError> {
        match self.dtype {
            Dtype::F32 => Ok(FloatType::F32),
            Dtype::F16 => Ok(FloatType::F16),
            Dtype::BF16 => Ok(FloatType::Bf16),
            other => Err(self.error(format!("type {other:?} where floats are needed"))),
        }
    }

    /// The values, widened; all of them finite.
    pub fn values(&self) -> Result<Vec<f32>, CheckpointError> {
        let float = self.float()?;
        if self.len > 0 && self.data.len() < ((self.len - 1) * self.step + 1) * float.size() {
            return Err(self.error("shorter than its shape implies".to_owned()));
        }
        let values: Vec<f32> = (0..self.len).map(|i| float.read(self.data, i * self.step)).collect();
        match values.iter().find(|v| !v.is_finite()) {
            Some(value) => Err(self.error(format!("a value is {value}"))),
            None => Ok(values),
        }
    }

    fn error(&self, reason: String) -> CheckpointError {
        CheckpointError::tensor(self.file, self.tensor, reason)
    }
}

impl Checkpoint {
    /// Whether the first layer with experts has them as stacks. False where the tensors hold none.
    pub fn stacks_experts(&self) -> bool {
        let Some(layer) = self.config().moe_layers.iter().position(|&moe| moe) else { return false };
        let base = self.experts_base(layer);
        let stacks = ["switch_mlp.gate_proj", "experts.gate_proj", "experts.gate_up_proj"];
        stacks.iter().any(|stack| {
            let module = format!("{base}.{stack}");
            self.has(&format!("{module}.weight")) || self.has(&module)
        })
    }

    /// The module that holds the experts of a layer.
    fn experts_base(&self, layer: usize) -> String {
        match self.config().family {
            Family::DeepseekV4 => self.full_name(&format!("layers.{layer}.ffn")),
            _ => format!("{}layers.{layer}.mlp", self.config().tensor_prefix),
        }
    }

    /// The routed experts of MoE layer `layer`, in order. Known layouts: `switch_mlp.{gate,up,down}_proj` stacks (MLX),
    /// `experts.gate_up_proj` (gate rows first) and `experts.down_proj` stacks, `experts.{gate,up,down}_proj` stacks, and one tensor per
    /// expert (`experts.E.gate_proj.weight`, or `w1`, `w3`, `w2` for gate, up and down); each dense or quantized.
    pub fn experts(&self, layer: usize) -> Result<Vec<ExpertSource<'_>>, CheckpointError> {
        let config = self.config();
        let moe = &config.moe;
        let (hidden, width, count) = (config.hidden_size, moe.intermediate_size, moe.num_experts);
        let base = self.experts_base(layer);
        let stacked = |module: &str| self.has(&format!("{module}.weight")) || self.has(module);

        for stack in [format!("{base}.switch_mlp"), format!("{base}.experts")] {
            if stacked(&format!("{stack}.gate_proj")) {
                let gates = self.linear_stack(&format!("{stack}.gate_proj"), count, width, hidden)?;
                let ups = self.linear_stack(&format!("{stack}.up_proj"), count, width, hidden)?;
                let downs = self.linear_stack(&format!("{stack}.down_proj"), count, hidden, width)?;
                let experts = gates.into_iter().zip(ups).zip(downs);
                return Ok(experts
                    .map(|((gate, up), down)| ExpertSource { gate, up, down, biases: None })
                    .collect());
            }
        }
        let fused = format!("{base}.experts.gate_up_proj");
        if stacked(&fused) {
            let pairs = self.linear_stack(&fused, count, 2 * width, hidden)?;
            let downs = self.linear_stack(&format!("{base}.experts.down_proj"), count, hidden, width)?;
            return pairs
                .into_iter()
                .zip(downs)
                .map(|(pair, down)| match (pair.slice_rows(0, width), pair.slice_rows(width, width)) {
                    (Some(gate), Some(up)) => Ok(ExpertSource { gate, up, down, biases: None }),
                    _ => Err(CheckpointError::tensor(pair.file, pair.module, "too few rows")),
                })
                .collect();
        }
        let [gate, up, down] = match self.has(&format!("{base}.experts.0.w1.weight")) {
            true => ["w1", "w3", "w2"],
            false => ["gate_proj", "up_proj", "down_proj"],
        };
        (0..count)
            .map(|e| {
                let expert = format!("{base}.experts.{e}");
                Ok(ExpertSource {
                    gate: self.linear(&format!("{expert}.{gate}"), width, hidden)?,
                    up: self.linear(&format!("{expert}.{up}"), width, hidden)?,
                    down: self.linear(&format!("{expert}.{down}"), hidden, width)?,
                    biases: None,
                })
            })
            .collect()
    }
}
