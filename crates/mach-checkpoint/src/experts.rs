//! The routed experts of a layer, whatever the layout on disk.

use crate::{Checkpoint, CheckpointError, LinearSource};

/// One routed expert, borrowed from the mapped shards.
#[derive(Debug, Clone, Copy)]
pub struct ExpertSource<'a> {
    /// `[intermediate, hidden]`, passed through the activation.
    pub gate: LinearSource<'a>,
    /// `[intermediate, hidden]`.
    pub up: LinearSource<'a>,
    /// `[hidden, intermediate]`.
    pub down: LinearSource<'a>,
}

impl Checkpoint {
    /// The routed experts of MoE layer `layer`, in order. Known layouts: `switch_mlp.{gate,up,down}_proj` stacks (MLX),
    /// `experts.gate_up_proj` (gate rows first) and `experts.down_proj` stacks, `experts.{gate,up,down}_proj` stacks, and one tensor per
    /// expert (`experts.E.gate_proj.weight`); each dense or quantized.
    pub fn experts(&self, layer: usize) -> Result<Vec<ExpertSource<'_>>, CheckpointError> {
        let config = self.config();
        let moe = &config.moe;
        let (hidden, width, count) = (config.hidden_size, moe.intermediate_size, moe.num_experts);
        let base = format!("{}layers.{layer}.mlp", config.tensor_prefix);
        let stacked = |module: &str| self.has(&format!("{module}.weight")) || self.has(module);

        for stack in [format!("{base}.switch_mlp"), format!("{base}.experts")] {
            if stacked(&format!("{stack}.gate_proj")) {
                let gates = self.linear_stack(&format!("{stack}.gate_proj"), count, width, hidden)?;
                let ups = self.linear_stack(&format!("{stack}.up_proj"), count, width, hidden)?;
                let downs = self.linear_stack(&format!("{stack}.down_proj"), count, hidden, width)?;
                let experts = gates.into_iter().zip(ups).zip(downs);
                return Ok(experts.map(|((gate, up), down)| ExpertSource { gate, up, down }).collect());
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
                    (Some(gate), Some(up)) => Ok(ExpertSource { gate, up, down }),
                    _ => Err(CheckpointError::tensor(pair.file, pair.module, "too few rows")),
                })
                .collect();
        }
        (0..count)
            .map(|e| {
                let expert = format!("{base}.experts.{e}");
                Ok(ExpertSource {
                    gate: self.linear(&format!("{expert}.gate_proj"), width, hidden)?,
                    up: self.linear(&format!("{expert}.up_proj"), width, hidden)?,
                    down: self.linear(&format!("{expert}.down_proj"), hidden, width)?,
                })
            })
            .collect()
    }
}
