//! The shaders of the device's operations, by what they are made for.

use std::collections::HashMap;

use mach_models::device::{FfnSpec, GateFunction};
use mach_quant::{Codec, FloatType, MatrixLayout, Order};

use super::tiles::Tiles;
use crate::{GpuError, Pipeline, Pipelines, Shader};

/// How a matrix is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// Codes in tiles, with activations quantized by groups.
    Tiles(Tiles),
    /// Rows, with float activations.
    Rows(Rows),
}

/// A row-major encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Rows(Codec);

impl Rows {
    /// Puts the function that reads an element in front of a shader.
    fn weight(self, shader: Shader) -> Shader {
        let codes = |shader: Shader, group: usize, scale_bytes: u32, mxfp4: bool| {
            shader
                .with("BITS", self.0.bits() as u32)
                .with("GROUP", group as u32)
                .with("SCALE_BYTES", scale_bytes)
                .with("MXFP4", mxfp4)
                .after(include_str!("../wgsl/weight_codes.wgsl"))
        };
        match self.0 {
            Codec::Affine { group, scales: FloatType::Bf16, .. } => codes(shader, group, 4, false),
            Codec::Affine { group, .. } => codes(shader, group, 8, false),
            Codec::Mxfp4 => codes(shader, 32, 1, true),
            float => shader
                .with("BF16", float == Codec::Dense(FloatType::Bf16))
                .after(include_str!("../wgsl/weight_dense.wgsl")),
        }
    }
}

impl Form {
    /// That of a layout; `None` if no shader knows it.
    pub(crate) fn of(layout: &MatrixLayout) -> Option<Form> {
        match (layout.codec, layout.order) {
            (Codec::Dense(_), _) | (Codec::Affine { .. } | Codec::Mxfp4, Order::Rows) => {
                Some(Form::Rows(Rows(layout.codec)))
            }
            _ => Tiles::of(layout).map(Form::Tiles),
        }
    }

    /// Columns of a group that activations are quantized by.
    pub(crate) fn group(self) -> Option<usize> {
        match self {
            Form::Tiles(tiles) => Some(tiles.group()),
            Form::Rows(_) => None,
        }
    }
}

/// How gate and up are combined, as shaders are made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Gated {
    activation: u32,
    alpha: u32,
    limit: Option<u32>,
}

impl Gated {
    pub(crate) fn of(spec: &FfnSpec) -> Gated {
        let (activation, alpha) = match spec.gate {
            GateFunction::Silu => (0, 0.0f32),
            GateFunction::GeluTanh => (1, 0.0),
            GateFunction::SigmoidPlusOne { alpha } => (2, alpha),
        };
        Gated { activation, alpha: alpha.to_bits(), limit: spec.clamp.map(f32::to_bits) }
    }

    fn constants(self, shader: Shader) -> Shader {
        shader
            .with("ACTIVATION", self.activation)
            .with("ALPHA", self.alpha)
            .with("CLAMPED", self.limit.is_some())
            .with("LIMIT", self.limit.unwrap_or(0))
            .after(include_str!("../wgsl/gated.wgsl"))
    }
}

/// What a router does beside choosing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Routes {
    /// Softmax over all experts, else over the chosen ones.
    pub(crate) over_all: bool,
    /// Divides the chosen weights by their sum.
    pub(crate) normalise: bool,
    /// Adds a bias to logits.
    pub(crate) biased: bool,
    /// Multiplies weights by a scale of each expert.
    pub(crate) scaled: bool,
    /// The shared expert has a gate.
    pub(crate) gated: bool,
}

/// An operation for which a shader is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Quantize {
        group: usize,
    },
    GateQuantize {
        group: usize,
        gated: Gated,
    },
    Gate(Gated),
    GateTwo(Gated),
    Add,
    Cap,
    CopyRows,
    Embed(Form),
    Product {
        form: Form,
        rows: usize,
    },
    ExpertProduct(Form),
    ExpertBias {
        bf16: bool,
    },
    /// 0 without a shared expert, 1 with one of weight 1, 2 with weights of its own.
    Combine {
        shared: u32,
    },
    Route(Routes),
    TopK,
    Lead,
    Convolve,
    CopyWithin,
    Join,
}

/// Lanes of a workgroup of products with tiles.
const LANES: usize = 128;

fn tiles(name: &'static str, tiles: Tiles, m: usize, head: &'static str, place: &str) -> Shader {
    Shader::generated(name, tiles.shader(m, LANES, place))
        .after(head)
        .after(include_str!("../wgsl/tiles.wgsl"))
}

impl Op {
    fn shader(self) -> Shader {
        match self {
            Op::Quantize { group } => Shader::new("quantize", include_str!("../wgsl/quantize.wgsl"))
                .with("LANES", group as u32 / 4)
                .after(include_str!("../wgsl/values_plain.wgsl")),
            Op::GateQuantize { group, gated } => gated
                .constants(Shader::new("gate_quantize", include_str!("../wgsl/quantize.wgsl")))
                .with("LANES", group as u32 / 4)
                .after(include_str!("../wgsl/gate_quantize_values.wgsl")),
            Op::Gate(gated) => gated.constants(Shader::new("gate", include_str!("../wgsl/gate.wgsl"))),
            Op::GateTwo(gated) => {
                gated.constants(Shader::new("gate_two", include_str!("../wgsl/gate_two.wgsl")))
            }
            Op::Add => Shader::new("add", include_str!("../wgsl/add.wgsl")),
            Op::Cap => Shader::new("cap", include_str!("../wgsl/cap.wgsl")),
            Op::CopyRows => Shader::new("copy_rows", include_str!("../wgsl/copy_rows.wgsl")),
            Op::Join => Shader::new("join", include_str!("../wgsl/join.wgsl")),
            Op::CopyWithin => Shader::new("copy_within", include_str!("../wgsl/copy_within.wgsl")),
            Op::Embed(Form::Rows(rows)) => rows
                .weight(Shader::new("embed", include_str!("../wgsl/embed.wgsl")))
                .after(include_str!("../wgsl/embed_rows.wgsl")),
            Op::Embed(Form::Tiles(tiles)) => Shader::new("embed", include_str!("../wgsl/embed.wgsl"))
                .after_generated(tiles.element())
                .after(include_str!("../wgsl/tiles.wgsl")),
            Op::Product { form: Form::Tiles(form), rows } => tiles(
                "product",
                form,
                rows,
                include_str!("../wgsl/tiles_plain.wgsl"),
                &format!(
                    "let at = wg.x + wg.z * 65535u;\n\
                     if (at * 16u >= p.rows) {{ return; }}\n\
                     strip = p.base + at * p.strip_words;\n\
                     first_row = at * 16u;\n\
                     row = wg.y * {rows}u;\n\
                     rows = min({rows}u, p.x_rows - row);\n\
                     to = p.out_at + row * p.stride + first_row;"
                ),
            ),
            Op::Product { form: Form::Rows(rows), .. } => rows
                .weight(Shader::new("product of rows", include_str!("../wgsl/dense.wgsl")))
                .after(include_str!("../wgsl/dense_plain.wgsl")),
            Op::ExpertProduct(Form::Tiles(form)) => tiles(
                "experts",
                form,
                1,
                include_str!("../wgsl/tiles_experts.wgsl"),
                "strip = chosen[wg.y] * p.record + p.base + wg.z * p.second + wg.x * p.strip_words;\n\
                 first_row = wg.x * 16u;\n\
                 row = wg.y / p.share;\nrows = 1u;\n\
                 to = p.out_at + wg.z * p.out_second + wg.y * p.stride + first_row;",
            ),
            Op::ExpertProduct(Form::Rows(rows)) => rows
                .weight(Shader::new("experts of rows", include_str!("../wgsl/dense.wgsl")))
                .after(include_str!("../wgsl/dense_experts.wgsl")),
            Op::ExpertBias { bf16 } => {
                Shader::new("expert_bias", include_str!("../wgsl/expert_bias.wgsl")).with("BF16", bf16)
            }
            Op::Combine { shared } => {
                Shader::new("combine", include_str!("../wgsl/combine.wgsl")).with("SHARED", shared)
            }
            Op::Route(routes) => Shader::new("route", include_str!("../wgsl/route.wgsl"))
                .with("LOWEST", f32::NEG_INFINITY.to_bits())
                .with("OVER_ALL", routes.over_all)
                .with("NORMALISE", routes.normalise)
                .with("BIASED", routes.biased)
                .with("SCALED", routes.scaled)
                .with("GATED", routes.gated),
            Op::TopK => Shader::new("top_k", include_str!("../wgsl/top_k.wgsl")),
            Op::Lead => Shader::new("lead", include_str!("../wgsl/lead.wgsl")),
            Op::Convolve => Shader::new("convolve", include_str!("../wgsl/convolve.wgsl")),
        }
    }
}

/// The pipelines of operations, compiled when they are first met.
#[derive(Debug)]
pub(crate) struct Ops {
    pub(crate) pipelines: Pipelines,
    made: HashMap<Op, Pipeline>,
}

impl Ops {
    pub(crate) fn new(pipelines: Pipelines) -> Ops {
        Ops { pipelines, made: HashMap::new() }
    }

    pub(crate) fn get(&mut self, op: Op) -> Result<Pipeline, GpuError> {
        if let Some(pipeline) = self.made.get(&op) {
            return Ok(pipeline.clone());
        }
        let pipeline = self.pipelines.get(&op.shader())?;
        self.made.insert(op, pipeline.clone());
        Ok(pipeline)
    }
}

#[cfg(test)]
mod tests {
    use mach_quant::Bits;

    use super::*;

    fn form(codec: Codec, order: Order) -> Form {
        Form::of(&MatrixLayout { rows: 16, cols: 128, codec, order }).unwrap()
    }

    /// Every operation, for every encoding.
    fn every() -> Vec<Op> {
        let mut forms = vec![
            form(Codec::Dense(FloatType::Bf16), Order::Rows),
            form(Codec::Dense(FloatType::F32), Order::Rows),
        ];
        for order in [Order::Tiles, Order::Rows] {
            forms.push(form(Codec::Mxfp4, order));
            for bits in [Bits::B2, Bits::B3, Bits::B4, Bits::B5, Bits::B6, Bits::B8] {
                forms.push(form(Codec::Affine { bits, group: 64, scales: FloatType::Bf16 }, order));
            }
            for (group, scales) in [(32, FloatType::F32), (128, FloatType::Bf16)] {
                forms.push(form(Codec::Affine { bits: Bits::B4, group, scales }, order));
            }
        }
        let mut all = vec![Op::Add, Op::Cap, Op::CopyRows, Op::CopyWithin, Op::TopK, Op::Lead, Op::Convolve];
        for form in forms {
            all.extend([Op::Embed(form), Op::ExpertProduct(form)]);
            all.extend([1, 2, 4].map(|rows| Op::Product { form, rows }));
        }
        for (activation, limit) in [(0, None), (1, Some(7.0f32)), (2, None)] {
            let gated = Gated { activation, alpha: 1.702f32.to_bits(), limit: limit.map(f32::to_bits) };
            all.extend([Op::Gate(gated), Op::GateTwo(gated)]);
            all.extend([32, 64, 128].map(|group| Op::GateQuantize { group, gated }));
        }
        all.extend([32, 64, 128].map(|group| Op::Quantize { group }));
        all.extend([false, true].map(|bf16| Op::ExpertBias { bf16 }));
        all.extend([0, 1, 2].map(|shared| Op::Combine { shared }));
        for flags in 0..32 {
            let flag = |bit: u32| flags >> bit & 1 == 1;
            all.push(Op::Route(Routes {
                over_all: flag(0),
                normalise: flag(1),
                biased: flag(2),
                scaled: flag(3),
                gated: flag(4),
            }));
        }
        all
    }

    #[test]
    fn every_operation_is_sound_spirv_and_msl() {
        for op in every() {
            let shader = op.shader();
            crate::spirv::tests::check(&shader);
            crate::msl::tests::check(&shader);
        }
    }
}
