// Products of float rows: 16 partial sums by column modulo 16, each an ascending chain, then the fixed tree. Sixteen lanes
// have one output. `linear/float.rs` of `mach-kernels` is the twin.
// `place` says where a workgroup's matrix and rows are.
@group(0) @binding(0) var<storage, read> w: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
var<workgroup> partial: array<f32, 64>;
@compute @workgroup_size(64)
fn run(@builtin(local_invocation_index) li: u32, @builtin(workgroup_id) wg: vec3<u32>) {
  let lane = li & 15u;
  let at = place(wg);
  let row = at.first + (li >> 4u);
  let there = min(row, p.rows - 1u);
  var y = 0.0;
  for (var col = lane; col < p.cols; col += 16u) {
    y = fma_(weight(at.base, there, col), x[at.x + col], y);
  }
  // Columns that are not there count as products of zeros, which leave a sum as it is but for -0.
  if (p.cols % 16u != 0u && lane >= p.cols % 16u) { y = y + 0.0; }
  partial[li] = y;
  workgroupBarrier();
  if (lane == 0u && row < p.rows) { out[at.out + row] = tree(li); }
}
fn tree(begin: u32) -> f32 {
  var a: array<f32, 8>;
  for (var i = 0u; i < 8u; i++) { a[i] = partial[begin + i] + partial[begin + i + 8u]; }
  return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}
