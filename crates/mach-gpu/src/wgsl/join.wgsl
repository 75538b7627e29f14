// `out[row] = [left[row], right[row]]`.
struct Params { rows: u32, left: u32, right: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> left: array<u32>;
@group(0) @binding(1) var<storage, read> right: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.x + id.y * 65535u * 64u;
  let wide = p.left + p.right;
  if (i >= p.rows * wide) { return; }
  let row = i / wide;
  let col = i % wide;
  if (col < p.left) {
    out[i] = left[row * p.left + col];
  } else {
    out[i] = right[row * p.right + col - p.left];
  }
}
