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
  var col = lane;
  // Eight at a time: loads wait for no sum.
  for (; col < p.cols / 128u * 128u; col += 128u) {
    let c = at.x + col;
    let w0 = weight(at.base, there, col);
    let w1 = weight(at.base, there, col + 16u);
    let w2 = weight(at.base, there, col + 32u);
    let w3 = weight(at.base, there, col + 48u);
    let w4 = weight(at.base, there, col + 64u);
    let w5 = weight(at.base, there, col + 80u);
    let w6 = weight(at.base, there, col + 96u);
    let w7 = weight(at.base, there, col + 112u);
    let x0 = x[c];
    let x1 = x[c + 16u];
    let x2 = x[c + 32u];
    let x3 = x[c + 48u];
    let x4 = x[c + 64u];
    let x5 = x[c + 80u];
    let x6 = x[c + 96u];
    let x7 = x[c + 112u];
    y = fma_(w0, x0, y);
    y = fma_(w1, x1, y);
    y = fma_(w2, x2, y);
    y = fma_(w3, x3, y);
    y = fma_(w4, x4, y);
    y = fma_(w5, x5, y);
    y = fma_(w6, x6, y);
    y = fma_(w7, x7, y);
  }
  for (; col < p.cols; col += 16u) {
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
