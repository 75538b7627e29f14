// Gated outputs of the pairs' first two matrices, quantized as they come.
@group(0) @binding(0) var<storage, read> gate_up: array<f32>;
@group(0) @binding(1) var<storage, read_write> codes: array<u32>;
@group(0) @binding(2) var<storage, read_write> scales: array<vec2<f32>>;
fn one(i: u32) -> f32 { return gated(gate_up[i], gate_up[i + p.rows * p.stride]); }
fn values(row: u32, col: u32) -> vec4<f32> {
  let i = row * p.stride + col;
  return vec4<f32>(one(i), one(i + 1u), one(i + 2u), one(i + 3u));
}
