// Rows of a table in tiles or in plain floats, decoded and scaled. A lane has one element.
struct Params { base: u32, cols: u32, count: u32, scale: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<u32>;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.x + id.y * 65535u * 64u;
  if (i >= p.count) { return; }
  var v = element(ids[i / p.cols], i % p.cols);
  if (p.scale != 1.0) { v = v * p.scale; }
  out[i] = v;
}
