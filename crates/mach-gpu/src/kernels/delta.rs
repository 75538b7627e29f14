//! Gated DeltaNet, as `mach_kernels::delta`: the token-by-token recurrence on every path.

use super::{SUMS, grid};
use crate::{GpuError, Pipelines, Recorder, Shader, Slice};

/// Sizes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta {
    /// Query/key heads.
    pub key_heads: u32,
    /// Value heads, a multiple of `key_heads`.
    pub value_heads: u32,
    /// Width of a query/key head, a multiple of 16, at most 192.
    pub key_dim: u32,
    /// Width of a value head, a multiple of 16.
    pub value_dim: u32,
    /// Taps of the convolution.
    pub taps: u32,
}

/// Some rows of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// How many.
    pub rows: u32,
    /// The first of them in the inputs and in `out`.
    pub first: u32,
    /// The first of them in `decay` and `beta`.
    pub gates: u32,
}

impl Delta {
    /// Channels of the convolution: queries, keys, values.
    pub fn channels(&self) -> u32 {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    fn check(&self) -> Result<(), GpuError> {
        let Delta { key_heads, value_heads, key_dim, value_dim, taps } = *self;
        let fits =
            key_dim.is_multiple_of(16) && value_dim.is_multiple_of(16) && key_dim <= 192 && key_dim > 0;
        if fits && key_heads > 0 && value_heads.is_multiple_of(key_heads) && taps > 0 {
            return Ok(());
        }
        Err(GpuError::Invalid(format!("{self:?}")))
    }
}

/// Shader of the gates.
pub fn gates_shader() -> Shader {
    Shader::new("delta gates", include_str!("../wgsl/delta_gates.wgsl"))
}

/// Shader of the convolution.
pub fn convolution_shader(key_dim: u32) -> Shader {
    Shader::new("delta convolution", include_str!("../wgsl/delta_conv.wgsl"))
        .after(SUMS)
        .with("TEAMS", 1)
        .with("KEY_DIM", key_dim)
}

/// `start_at`: the matrices before the first row, at binding `at`, or where they are changed.
fn start(at: u32, in_place: bool) -> String {
    if in_place {
        "fn start_at(i: u32) -> f32 { return matrices[i]; }".to_owned()
    } else {
        format!(
            "@group(0) @binding({at}) var<storage, read> start: array<f32>;\n\
             fn start_at(i: u32) -> f32 {{ return start[i]; }}"
        )
    }
}

/// Shader of the recurrence; `in_place` where the matrices are where it starts from.
pub fn rule_shader(key_dim: u32, in_place: bool) -> Shader {
    Shader::new("delta rule", include_str!("../wgsl/delta_rule.wgsl"))
        .after_generated(start(5, in_place))
        .with("KEY_DIM", key_dim)
}

/// Shader of gates, convolution and recurrence in one.
pub fn step_shader(key_dim: u32, in_place: bool) -> Shader {
    Shader::new("delta step", include_str!("../wgsl/delta_step.wgsl"))
        .after(SUMS)
        .after_generated(start(11, in_place))
        .with("TEAMS", 2)
        .with("KEY_DIM", key_dim)
}

/// Shader of the gated norm.
pub fn norm_shader(value_dim: u32) -> Shader {
    Shader::new("delta norm", include_str!("../wgsl/delta_norm.wgsl"))
        .after(SUMS)
        .with("TEAMS", 8)
        .with("VALUE_DIM", value_dim)
}

/// Shader of the convolution's window.
pub fn window_shader() -> Shader {
    Shader::new("delta window", include_str!("../wgsl/delta_window.wgsl"))
}

/// Inputs and results of [`gates`].
#[derive(Debug, Clone, Copy)]
pub struct Gates<'a> {
    /// Before the softplus, `[_, value_heads]`.
    pub a: Slice<'a>,
    /// Before the sigmoid, `[_, value_heads]`.
    pub b: Slice<'a>,
    /// `[value_heads]`.
    pub dt_bias: Slice<'a>,
    /// `[value_heads]`.
    pub neg_exp_a: Slice<'a>,
    /// Decay factors `[_, value_heads]`.
    pub decay: Slice<'a>,
    /// Update rates `[_, value_heads]`.
    pub beta: Slice<'a>,
}

/// Decay factors and update rates of rows. They stay where they are, so that a block can be run again.
pub fn gates(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    shape: &Delta,
    rows: &Rows,
    buffers: &Gates<'_>,
) -> Result<(), GpuError> {
    let Gates { a, b, dt_bias, neg_exp_a, decay, beta } = *buffers;
    let words = [rows.rows, shape.value_heads, rows.first, rows.gates];
    let groups = grid((rows.rows * shape.value_heads).div_ceil(64));
    let buffers = [a, b, dt_bias, neg_exp_a, decay, beta];
    let pipeline = pipelines.keyed(("delta gates", [0; 4]), gates_shader)?;
    recorder.dispatch(&pipeline, &buffers, &words, groups)
}

/// State and results of [`steps`].
#[derive(Debug, Clone, Copy)]
pub struct Steps<'a> {
    /// Projected queries, keys and values, `[_, channels]`.
    pub u: Slice<'a>,
    /// The convolution's window before the first row, `[taps - 1, channels]`.
    pub before: Slice<'a>,
    /// Convolution `[taps, channels]`.
    pub conv: Slice<'a>,
    /// Working memory, `[rows, channels]`.
    pub mixed: Slice<'a>,
    /// Of [`gates`].
    pub decay: Slice<'a>,
    /// Of [`gates`].
    pub beta: Slice<'a>,
    /// The matrices before the first row, if they are not in `matrices`; another buffer.
    pub start: Option<Slice<'a>>,
    /// The matrices after the last row, in the CPU's layout (`DeltaState::state`).
    pub matrices: Slice<'a>,
    /// `[_, value_heads * value_dim]`, neither normed nor gated.
    pub out: Slice<'a>,
}

/// Convolution and recurrence. The window stays as it is until [`shift`].
pub fn steps(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    shape: &Delta,
    rows: &Rows,
    buffers: &Steps<'_>,
) -> Result<(), GpuError> {
    shape.check()?;
    let Delta { key_heads, value_heads, key_dim, value_dim, taps } = *shape;
    let Steps { u, before, conv, mixed, decay, beta, start, matrices, out } = *buffers;
    if rows.rows == 0 {
        return Ok(());
    }
    let (channels, normed) = (shape.channels(), 2 * key_heads);
    let blocks = normed + (value_heads * value_dim).div_ceil(key_dim);
    let scale = 1.0 / (key_dim as f32).sqrt();
    let words = [rows.rows, rows.first, channels, taps, normed, blocks, scale.to_bits()];
    let pipeline =
        pipelines.keyed(("delta convolution", [key_dim, 0, 0, 0]), || convolution_shader(key_dim))?;
    recorder.dispatch(&pipeline, &[u, before, conv, mixed], &words, grid(rows.rows * blocks))?;

    let words = [rows.rows, rows.first, rows.gates, key_heads, value_heads, value_dim, channels];
    let key = ("delta rule", [key_dim, u32::from(start.is_none()), 0, 0]);
    let pipeline = pipelines.keyed(key, || rule_shader(key_dim, start.is_none()))?;
    let mut all = vec![mixed, decay, beta, matrices, out];
    all.extend(start);
    recorder.dispatch(&pipeline, &all, &words, [value_dim.div_ceil(32), value_heads, 1])
}

/// [`gates`] and [`steps`] in one dispatch, which pays for few rows: a workgroup convolves alone what several share.
/// `mixed` is not looked at.
pub fn step(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    shape: &Delta,
    rows: &Rows,
    gates: &Gates<'_>,
    buffers: &Steps<'_>,
) -> Result<(), GpuError> {
    shape.check()?;
    let Delta { key_heads, value_heads, key_dim, value_dim, taps } = *shape;
    let Gates { a, b, dt_bias, neg_exp_a, decay, beta } = *gates;
    let Steps { u, before, conv, start, matrices, out, .. } = *buffers;
    if rows.rows == 0 {
        return Ok(());
    }
    let scale = 1.0 / (key_dim as f32).sqrt();
    let words = [
        rows.rows,
        rows.first,
        rows.gates,
        key_heads,
        value_heads,
        value_dim,
        shape.channels(),
        taps,
        scale.to_bits(),
    ];
    let key = ("delta step", [key_dim, u32::from(start.is_none()), 0, 0]);
    let pipeline = pipelines.keyed(key, || step_shader(key_dim, start.is_none()))?;
    let mut all = vec![u, before, conv, a, b, dt_bias, neg_exp_a, decay, beta, matrices, out];
    all.extend(start);
    recorder.dispatch(&pipeline, &all, &words, [value_dim.div_ceil(32), value_heads, 1])
}

/// `x = norm(x) * silu(z)` of each value head of rows; `x` is `out` of [`steps`].
#[allow(clippy::too_many_arguments)]
pub fn norm(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    shape: &Delta,
    rows: &Rows,
    eps: f32,
    z: Slice<'_>,
    weight: Slice<'_>,
    x: Slice<'_>,
) -> Result<(), GpuError> {
    let (count, at) = (rows.rows * shape.value_heads, rows.first * shape.value_heads * shape.value_dim);
    let words = [count, at, at, eps.to_bits()];
    let key = ("delta norm", [shape.value_dim, 0, 0, 0]);
    let pipeline = pipelines.keyed(key, || norm_shader(shape.value_dim))?;
    recorder.dispatch(&pipeline, &[z, weight, x], &words, grid(count.div_ceil(8)))
}

/// Shifts rows of `u` into the convolution's window.
pub fn shift(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    shape: &Delta,
    rows: &Rows,
    u: Slice<'_>,
    window: Slice<'_>,
) -> Result<(), GpuError> {
    let channels = shape.channels();
    if shape.taps < 2 {
        return Ok(());
    }
    let words = [rows.rows, rows.first, channels, shape.taps - 1];
    let pipeline = pipelines.keyed(("delta window", [0; 4]), window_shader)?;
    recorder.dispatch(&pipeline, &[u, window], &words, [channels.div_ceil(64), 1, 1])
}
