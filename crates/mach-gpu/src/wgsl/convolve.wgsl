// A grouped dynamic convolution over the rows of a block; see `ConvolutionSpec`. Offsets ascend; nothing is fused.
struct Params { rows: u32, width: u32, kernel: u32, group: u32, which: u32, dynamic_width: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> base: array<f32>;
@group(0) @binding(1) var<storage, read> dynamic: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.x + id.y * 65535u * 64u;
  if (i >= p.rows * p.width) { return; }
  let row = i / p.width;
  let col = i % p.width;
  let groups = p.width / p.group;
  var sum = 0.0;
  for (var offset = 0u; offset < min(p.kernel, row + 1u); offset++) {
    let tap = p.which * p.kernel + offset;
    let factor = base[tap * p.width + col] + dynamic[row * p.dynamic_width + tap * groups + col / p.group];
    sum = sum + factor * x[(row - offset) * p.width + col];
  }
  out[i] = sum;
}
