// `h += sum over ranks, ascending, of weight * pair`, the shared expert's being the last rank.
struct Params { rows: u32, hidden: u32, ranks: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> pairs: array<f32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> shared_rows: array<f32>;
@group(0) @binding(3) var<storage, read> shared_weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> h: array<f32>;
@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.x + id.y * 65535u * 64u;
  if (i >= p.rows * p.hidden) { return; }
  let row = i / p.hidden;
  let col = i % p.hidden;
  var sum = 0.0;
  for (var rank = 0u; rank < p.ranks; rank++) {
    let pair = row * p.ranks + rank;
    sum = fma_(weights[pair], pairs[pair * p.hidden + col], sum);
  }
  if (SHARED == 1u) { sum = fma_(1.0, shared_rows[i], sum); }
  if (SHARED == 2u) { sum = fma_(shared_weights[row], shared_rows[i], sum); }
  h[i] = h[i] + sum;
}
