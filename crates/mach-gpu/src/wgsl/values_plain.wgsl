@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> codes: array<u32>;
@group(0) @binding(2) var<storage, read_write> scales: array<vec2<f32>>;
fn values(row: u32, col: u32) -> vec4<f32> {
  let i = row * p.stride + col;
  return vec4<f32>(x[i], x[i + 1u], x[i + 2u], x[i + 3u]);
}
