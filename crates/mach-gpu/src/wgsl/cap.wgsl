// `x = cap * tanh(scale * x / cap)`; without a cap, `x = scale * x`.
struct Params { count: u32, scale: f32, cap: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.x + id.y * 65535u * 64u;
  if (i >= p.count) { return; }
  var v = x[i];
  if (p.scale != 1.0) { v = v * p.scale; }
  if (p.cap > 0.0) { v = p.cap * tanh_(div_(v, p.cap)); }
  x[i] = v;
}
