// Causal convolution and silu of a token's channels; queries and keys are then divided by their lengths. A workgroup has
// one query or key head, or as many channels of the values, of one token.
struct Params { rows: u32, first_row: u32, channels: u32, taps: u32, normed_heads: u32, blocks: u32, query_scale: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> u: array<f32>;
@group(0) @binding(1) var<storage, read> before: array<f32>; // [taps - 1, channels]
@group(0) @binding(2) var<storage, read> w: array<f32>; // [taps, channels]
@group(0) @binding(3) var<storage, read_write> mixed: array<f32>; // [rows, channels]
var<workgroup> head: array<f32, KEY_DIM>;
const THREADS: u32 = 128u;

@compute @workgroup_size(128)
fn run(@builtin(local_invocation_index) t: u32, @builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) ng: vec3<u32>) {
  let n = g.x + g.y * ng.x;
  let row = n / p.blocks;
  if (row >= p.rows) { return; }
  let block = n % p.blocks;
  let normed = block < p.normed_heads;
  let first = block * KEY_DIM;
  let count = min(KEY_DIM, p.channels - first);
  for (var c = t; c < count; c += THREADS) {
    let channel = first + c;
    var acc = 0.0f;
    for (var tap = 0u; tap < p.taps; tap++) {
      // Row `row + tap` of the window followed by the new rows.
      let at = row + tap;
      var x = 0.0f;
      if (at + 1u >= p.taps) {
        x = u[(p.first_row + at + 1u - p.taps) * p.channels + channel];
      } else {
        x = before[at * p.channels + channel];
      }
      acc = fma_(w[tap * p.channels + channel], x, acc);
    }
    let y = silu_(acc);
    if (normed) { head[c] = y; } else { mixed[row * p.channels + channel] = y; }
  }
  if (!normed) { return; }
  workgroupBarrier();
  if (t < 16u) {
    var acc = 0.0f;
    for (var c = t; c < KEY_DIM; c += 16u) { acc = fma_(head[c], head[c], acc); }
    partials[t] = acc;
  }
  workgroupBarrier();
  // Queries come first.
  let scale = select(1.0f, p.query_scale, block * 2u < p.normed_heads);
  let factor = div_(scale, sqrt_(tree(0u) + 1e-6f));
  for (var c = t; c < KEY_DIM; c += THREADS) { mixed[row * p.channels + first + c] = head[c] * factor; }
}
