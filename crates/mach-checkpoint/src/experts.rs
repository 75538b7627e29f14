//! The routed experts of a layer, whatever the layout on disk.

use std::path::Path;

use mach_quant::{Axes, FloatType};

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

    /// The routed experts of MoE layer `layer`, in order. Known layouts: `switch_mlp` or `switch_glu.{gate,up,down}_proj` stacks (MLX),
    /// `experts.gate_up_proj` (gate rows first) and `experts.down_proj` stacks, `experts.{gate,up,down}_proj` stacks, and one tensor per
    /// expert (`experts.E.gate_proj.weight`, or `w1`, `w3`, `w2` for gate, up and down); each dense or quantized. Those of gpt_oss: MLX's stacks, or fused ones in which
    /// gate and up lie in turn, as MXFP4 blocks or as floats with the input axis first; all with biases.
    pub fn experts(&self, layer: usize) -> Result<Vec<ExpertSource<'_>>, CheckpointError> {
        let config = self.config();
        let moe = &config.moe;
        let (hidden, width, count) = (config.hidden_size, moe.intermediate_size, moe.num_experts);
        let index = layer;
        let layer = format!("{}layers.{layer}", config.tensor_prefix);
        let stacks = match config.family {
            Family::GptOss => {
                return self.biased_experts(&format!("{layer}.mlp.experts"), count, width, hidden);
            }
            Family::DeepseekV4 => {
                let base = self.experts_base(index);
                [format!("{base}.switch_mlp"), format!("{base}.experts")]
            }
            Family::Gemma4 => [format!("{layer}.experts.switch_glu"), format!("{layer}.experts")],
            _ => [format!("{layer}.mlp.switch_mlp"), format!("{layer}.mlp.experts")],
        };
        let [_, plain] = &stacks;
        let stacked = |module: &str| self.has(&format!("{module}.weight")) || self.has(module);

        for stack in &stacks {
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
        let fused = format!("{plain}.gate_up_proj");
        if stacked(&fused) {
            let pairs = self.linear_stack(&fused, count, 2 * width, hidden)?;
            let downs = self.linear_stack(&format!("{plain}.down_proj"), count, hidden, width)?;
            return pairs
                .into_iter()
                .zip(downs)
                .map(|(pair, down)| match (pair.slice_rows(0, width), pair.slice_rows(width, width)) {
                    (Some(gate), Some(up)) => Ok(ExpertSource { gate, up, down, biases: None }),
                    _ => Err(CheckpointError::tensor(pair.file, pair.module, "too few rows")),
                })
                .collect();
        }
        self.single_experts(plain, count, width, hidden)
    }

    /// A matrix by the name that it would have if every expert had tensors of its own, `{stack}.{expert}.{matrix}`, out of
    /// the stacks `{stack}.gate_up_proj` and `{stack}.down_proj`, or one for each of the three, there or in MLX's place
    /// (`switch_mlp` for `experts`). `None` if the name is not of that kind, or there is no such stack.
    pub(crate) fn out_of_stack(
        &self,
        module: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Option<LinearSource<'_>>, CheckpointError> {
        let parts = module.rsplit_once('.').and_then(|(expert, matrix)| {
            let (stack, expert) = expert.rsplit_once('.')?;
            Some((stack, expert.parse::<usize>().ok()?, matrix))
        });
        let Some((stack, expert, matrix)) = parts else { return Ok(None) };
        let count = self.config().moe.num_experts;
        let stacked = |module: &str| self.has(&format!("{module}.weight")) || self.has(module);
        let (own, fused) = (format!("{stack}.{matrix}"), format!("{stack}.gate_up_proj"));
        let own = match stack.strip_suffix("experts") {
            Some(base) if !stacked(&own) => format!("{base}switch_mlp.{matrix}"),
            _ => own,
        };
        let first = match matrix {
            "gate_proj" => Some(0),
            "up_proj" => Some(rows),
            _ => None,
        };
        if stacked(&own) {
            return Ok(self.linear_stack(&own, count, rows, cols)?.get(expert).copied());
        }
        match first.filter(|_| stacked(&fused)) {
            Some(first) => {
                let pairs = self.linear_stack(&fused, count, 2 * rows, cols)?;
                Ok(pairs.get(expert).and_then(|pair| pair.slice_rows(first, rows)))
            }
            None => Ok(None),
        }
    }

    /// One tensor per expert and matrix.
    fn single_experts(
        &self,
        plain: &str,
        count: usize,
        width: usize,
        hidden: usize,
    ) -> Result<Vec<ExpertSource<'_>>, CheckpointError> {
        let [gate, up, down] = match self.has(&format!("{plain}.0.w1.weight")) {
            true => ["w1", "w3", "w2"],
            false => ["gate_proj", "up_proj", "down_proj"],
        };
        (0..count)
            .map(|e| {
                let expert = format!("{plain}.{e}");
                Ok(ExpertSource {
                    gate: self.linear(&format!("{expert}.{gate}"), width, hidden)?,
                    up: self.linear(&format!("{expert}.{up}"), width, hidden)?,
                    down: self.linear(&format!("{expert}.{down}"), hidden, width)?,
                    biases: None,
                })
            })
            .collect()
    }

    /// The stacks of gpt_oss under `base`.
    fn biased_experts(
        &self,
        base: &str,
        count: usize,
        width: usize,
        hidden: usize,
    ) -> Result<Vec<ExpertSource<'_>>, CheckpointError> {
        let name = |rest: &str| format!("{base}.{rest}");
        if self.has(&name("gate_proj.weight")) {
            let matrices = |module: &str, rows, cols| self.linear_stack(&name(module), count, rows, cols);
            let vectors = |module: &str, n| self.bias_stack(&name(&format!("{module}.bias")), count, n);
            let (gates, ups) = (matrices("gate_proj", width, hidden)?, matrices("up_proj", width, hidden)?);
            let downs = matrices("down_proj", hidden, width)?;
            let biases = vectors("gate_proj", width)?.into_iter().zip(vectors("up_proj", width)?);
            let biases = biases.zip(vectors("down_proj", hidden)?);
            let experts = gates.into_iter().zip(ups).zip(downs).zip(biases);
            return Ok(experts
                .map(|(((gate, up), down), ((of_gate, of_up), of_down))| {
                    let biases = Some(ExpertBiases { gate: of_gate, up: of_up, down: of_down });
                    ExpertSource { gate, up, down, biases }
                })
                .collect());
        }
        let (fused, down) = (name("gate_up_proj"), name("down_proj"));
        let pairs: Vec<[LinearSource<'_>; 2]>;
        let downs;
        if self.has(&format!("{fused}_blocks")) {
            let both = self.tensors().block_stack(&fused, count, 2 * width, hidden)?;
            pairs = both.iter().filter_map(LinearSource::split_rows).collect();
            downs = self.tensors().block_stack(&down, count, hidden, width)?;
        } else {
            let both = self.tensors().transposed_stack(&fused, count, 2 * width, hidden)?;
            pairs = both.into_iter().map(|m| in_turn(m, width)).collect();
            downs = self.tensors().transposed_stack(&down, count, hidden, width)?;
        }
        let fused_biases = self.bias_stack(&format!("{fused}_bias"), count, 2 * width)?;
        let down_biases = self.bias_stack(&format!("{down}_bias"), count, hidden)?;
        let experts = pairs.into_iter().zip(downs).zip(fused_biases.into_iter().zip(down_biases));
        Ok(experts
            .map(|(([gate, up], down), (both, of_down))| {
                let of_gate = VectorSource { len: width, step: 2, ..both };
                let data = both.data.get(both.dtype.size()..).unwrap_or_default();
                let of_up = VectorSource { data, ..of_gate };
                let biases = Some(ExpertBiases { gate: of_gate, up: of_up, down: of_down });
                ExpertSource { gate, up, down, biases }
            })
            .collect())
    }

    /// A tensor `[experts, n]` of floats as one vector per expert.
    fn bias_stack(
        &self,
        name: &str,
        experts: usize,
        n: usize,
    ) -> Result<Vec<VectorSource<'_>>, CheckpointError> {
        let view = self.tensor(name)?;
        if view.shape != [experts, n] {
            let implied = [experts, n];
            return Err(view.error(format!("shape {:?}, but config.json implies {implied:?}", view.shape)));
        }
        let (tensor, file, dtype) = (view.name, view.file, view.dtype);
        let vectors = view.data.chunks_exact((n * dtype.size()).max(1));
        Ok(vectors.map(|data| VectorSource { tensor, file, dtype, data, len: n, step: 1 }).collect())
    }
}

/// Gate and up of a fused matrix whose input axis comes first and whose outputs are theirs in turn.
fn in_turn(both: LinearSource<'_>, width: usize) -> [LinearSource<'_>; 2] {
    let gate = LinearSource { rows: width, axes: Axes::Columns { across: 2 * width, every: 2 }, ..both };
    let size = both.weight.len() / (2 * width * both.cols).max(1);
    [gate, LinearSource { weight: both.weight.get(size..).unwrap_or_default(), ..gate }]
}
