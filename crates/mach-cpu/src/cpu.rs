//! The device itself: compute threads, weights, working memory, and what a pass leaves to be read back.

use std::time::Duration;

use mach_kernels::Cores;
use mach_kernels::attention::AttentionScratch;
use mach_kernels::attention::turbo::TurboQuant;
use mach_kernels::delta::DeltaScratch;
use mach_kernels::elementwise::{self, Heads, Rope};
use mach_kernels::experts::FfnScratch;
use mach_kernels::quantize::Operand;
use mach_models::Activations;
use mach_models::device::{AttentionSpec, RopeSpec, Span, Tap};

use crate::compressed::Compressing;
use crate::experts::{Experts, RowKind};
use crate::placement::Stores;
use crate::rope::rope;

/// Rows of activations.
#[derive(Debug, Default)]
pub struct Buf {
    pub(crate) data: Vec<f32>,
    pub(crate) width: usize,
}

impl Buf {
    pub(crate) fn shape(&mut self, rows: usize, width: usize) {
        self.width = width;
        self.data.resize(rows * width, 0.0);
    }

    pub(crate) fn rows(&self) -> usize {
        self.data.len() / self.width.max(1)
    }
}

/// Which experts each row goes to.
#[derive(Debug, Clone, Default)]
pub struct Routing {
    /// `[rows, top_k]`, by falling weight.
    pub(crate) experts: Vec<u32>,
    /// `[rows, top_k]`, what multiplies the experts' outputs.
    pub(crate) weights: Vec<f32>,
    /// `[rows]`, what multiplies the shared expert's output; empty without one.
    pub(crate) shared: Vec<f32>,
}

/// The device: compute threads, weights, working memory.
#[derive(Debug)]
pub struct Cpu {
    pub(crate) cores: Cores,
    pub(crate) activations: Activations,
    pub(crate) turboquant_kv: Option<TurboQuant>,
    pub(crate) stores: Stores,
    /// Bytes of the model's weights, experts and padding not counted.
    pub(crate) resident_bytes: u64,
    pub(crate) experts: Experts,
    /// What each row of the pass is, for streaming.
    pub(crate) rows: Vec<RowKind>,
    pub(crate) spans: Vec<Span>,
    /// Angles of the rows of this pass, for each kind of rotation that it has met.
    pub(crate) angles: Vec<Angles>,
    pub(crate) readback: Pending,
    pub(crate) scratch: Scratch,
    /// Whether matrices share values; see [`stand_in`](crate::stand_in()).
    pub(crate) stands_in: bool,
    pub(crate) compressing: Compressing,
}

/// A rotation, and its angles at the rows of a pass.
#[derive(Debug)]
pub(crate) struct Angles {
    pub(crate) spec: RopeSpec,
    pub(crate) rope: Rope,
    pub(crate) angles: Vec<f32>,
    /// Whether `angles` are those of this pass.
    pub(crate) fresh: bool,
}

/// What the next `finish` returns.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) outputs: Vec<Vec<f32>>,
    pub(crate) taps: Vec<(Tap, Vec<f32>)>,
    pub(crate) routing: Vec<(usize, Vec<u32>, Vec<f32>)>,
    pub(crate) experts_took: Duration,
}

/// Working memory that passes reuse.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) operands: Vec<Operand>,
    pub(crate) heads: [Vec<f32>; 3],
    /// Values, where they are normed; the norm's weights, all 1.
    pub(crate) values: [Vec<f32>; 2],
    pub(crate) ranges: Vec<(usize, usize)>,
    pub(crate) attention: AttentionScratch,
    pub(crate) delta: DeltaScratch,
    pub(crate) ffn: FfnScratch,
    pub(crate) lists: Vec<Vec<u32>>,
    pub(crate) all_rows: Vec<u32>,
    pub(crate) pairs: Vec<f32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) places: Vec<u32>,
    pub(crate) routes: [Buf; 2],
}

impl Cpu {
    /// A device without weights.
    pub fn new(cores: Cores, activations: Activations, turboquant_kv: Option<TurboQuant>) -> Self {
        Cpu {
            cores,
            activations,
            turboquant_kv,
            stores: Stores::default(),
            resident_bytes: 0,
            experts: Experts::None,
            rows: Vec::new(),
            spans: Vec::new(),
            angles: Vec::new(),
            readback: Pending::default(),
            scratch: Scratch::default(),
            stands_in: false,
            compressing: Compressing::default(),
        }
    }

    pub(crate) fn standing_in(self) -> Self {
        Cpu { stands_in: true, ..self }
    }

    pub(crate) fn give(&mut self, experts: Experts) {
        self.experts = experts;
    }

    /// The place of a rotation in `angles`, filled for this pass.
    pub(crate) fn rotation(&mut self, spec: &RopeSpec) -> usize {
        let at = self.angles.iter().position(|a| a.spec == *spec).unwrap_or_else(|| {
            let rope = rope(spec);
            self.angles.push(Angles { spec: *spec, rope, angles: Vec::new(), fresh: false });
            self.angles.len() - 1
        });
        if let Some(rotation) = self.angles.get_mut(at).filter(|rotation| !rotation.fresh) {
            rotation.angles.clear();
            for span in &self.spans {
                for position in span.position..span.position + span.rows {
                    rotation.rope.angles(position, &mut rotation.angles);
                }
            }
            rotation.fresh = true;
        }
        at
    }

    /// Norms and rotates heads of `x`, `head_stride` apart, into scratch `to`.
    pub(crate) fn prepare_heads(
        &mut self,
        spec: &AttentionSpec,
        heads: usize,
        head_stride: usize,
        norm: Option<&Vec<f32>>,
        x: &Buf,
        to: usize,
    ) {
        let at = self.rotation(&spec.rope);
        let heads = Heads {
            heads,
            head_dim: spec.head_dim,
            head_stride,
            norm: norm.map(Vec::as_slice),
            eps: spec.qk_norm.unwrap_or(0.0),
            rotary_dim: spec.rope.rotary_dim,
        };
        let out = &mut self.scratch.heads[to];
        out.resize(x.rows() * heads.heads * heads.head_dim, 0.0);
        elementwise::prepare_heads(&mut self.cores, heads, &x.data, &self.angles[at].angles, out);
    }

    /// Norms the heads of values into scratch, if the layer does.
    pub(crate) fn prepare_values(&mut self, spec: &AttentionSpec, v: &Buf) {
        let Some(eps) = spec.v_norm else { return };
        let [values, ones] = &mut self.scratch.values;
        ones.resize(spec.head_dim, 1.0);
        values.resize(v.data.len(), 0.0);
        let ones = ones.get(..spec.head_dim).unwrap_or_default();
        elementwise::rms_norm(&mut self.cores, &v.data, ones, eps, values);
    }
}
