// Row `i` of `out` is row `list[i]` of `x`, `copies` times side by side.
struct Params { rows: u32, width: u32, copies: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read> list: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.x + id.y * 65535u * 64u;
  let wide = p.width * p.copies;
  if (i >= p.rows * wide) { return; }
  out[i] = x[list[i / wide] * p.width + i % p.width];
}
