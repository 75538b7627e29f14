// `x[at..] += y`, `y` being repeated every `period` elements.
struct Params { count: u32, period: u32, at: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.x + id.y * 65535u * 64u;
  if (i < p.count) { x[p.at + i] = x[p.at + i] + y[i % p.period]; }
}
