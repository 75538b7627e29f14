// Gates, convolution and delta rule in one, for few tokens: each workgroup convolves what it needs itself, and the
// dispatches before it are saved. A workgroup has 32 columns of one value head's state, as in `delta_rule`.
struct Params {
  rows: u32, first_row: u32, gates_row: u32, key_heads: u32, value_heads: u32, value_dim: u32, channels: u32, taps: u32,
  query_scale: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> u: array<f32>;
@group(0) @binding(1) var<storage, read> before: array<f32>; // [taps - 1, channels]
@group(0) @binding(2) var<storage, read> w: array<f32>; // [taps, channels]
@group(0) @binding(3) var<storage, read> a: array<f32>;
@group(0) @binding(4) var<storage, read> b: array<f32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read> rates: array<f32>;
@group(0) @binding(7) var<storage, read_write> decays: array<f32>;
@group(0) @binding(8) var<storage, read_write> betas: array<f32>;
@group(0) @binding(9) var<storage, read_write> matrices: array<f32>;
@group(0) @binding(10) var<storage, read_write> out: array<f32>;
const COLUMNS: u32 = 32u;
const THREADS: u32 = 128u;
var<workgroup> state: array<f32, KEY_DIM * COLUMNS>;
// Query, key, values.
var<workgroup> mixed: array<f32, 2u * KEY_DIM + COLUMNS>;
var<workgroup> part: array<f32, THREADS>;
var<workgroup> part_out: array<f32, THREADS>;

// Convolution and silu of a channel of row `row`.
fn convolved(channel: u32, row: u32) -> f32 {
  var acc = 0.0f;
  for (var tap = 0u; tap < p.taps; tap++) {
    let at = row + tap;
    var x = 0.0f;
    if (at + 1u >= p.taps) {
      x = u[(p.first_row + at + 1u - p.taps) * p.channels + channel];
    } else {
      x = before[at * p.channels + channel];
    }
    acc = fma_(w[tap * p.channels + channel], x, acc);
  }
  return silu_(acc);
}

@compute @workgroup_size(128)
fn run(@builtin(local_invocation_index) t: u32, @builtin(workgroup_id) g: vec3<u32>) {
  let head = g.y;
  let first = g.x * COLUMNS;
  let columns = min(COLUMNS, p.value_dim - first);
  let c = t % COLUMNS;
  let r = t / COLUMNS;
  let key_head = head / (p.value_heads / p.key_heads);
  let base = (head * p.value_dim + first) * KEY_DIM;
  for (var i = t; i < KEY_DIM * columns; i += THREADS) {
    state[(i / columns) * COLUMNS + i % columns] = start_at(base + i);
  }
  for (var row = 0u; row < p.rows; row++) {
    for (var i = t; i < 2u * KEY_DIM + columns; i += THREADS) {
      var channel = key_head * KEY_DIM + i;
      if (i >= 2u * KEY_DIM) {
        channel = 2u * p.key_heads * KEY_DIM + head * p.value_dim + first + i - 2u * KEY_DIM;
      } else if (i >= KEY_DIM) {
        channel = (p.key_heads + key_head) * KEY_DIM + i - KEY_DIM;
      }
      mixed[i] = convolved(channel, row);
    }
    workgroupBarrier();
    // Lengths of query and key, sixteen threads each.
    if (t < 32u) {
      let part_of = (t / 16u) * KEY_DIM;
      var acc = 0.0f;
      for (var i = t % 16u; i < KEY_DIM; i += 16u) { acc = fma_(mixed[part_of + i], mixed[part_of + i], acc); }
      partials[t] = acc;
    }
    workgroupBarrier();
    let query_factor = div_(p.query_scale, sqrt_(tree(0u) + 1e-6f));
    let key_factor = div_(1.0f, sqrt_(tree(1u) + 1e-6f));
    for (var i = t; i < 2u * KEY_DIM; i += THREADS) {
      mixed[i] = mixed[i] * select(key_factor, query_factor, i < KEY_DIM);
    }
    let at = (p.first_row + row) * p.value_heads + head;
    let decay = exp_(rates[head] * softplus_(a[at] + bias[head]));
    let beta = sigmoid_(b[at]);
    if (g.x == 0u && t == 0u) {
      decays[(p.gates_row + row) * p.value_heads + head] = decay;
      betas[(p.gates_row + row) * p.value_heads + head] = beta;
    }
    workgroupBarrier();
    var v = 0.0f;
    if (c < columns) { v = mixed[2u * KEY_DIM + c]; }
    var m = 0.0f;
    for (var i = r; i < KEY_DIM; i += 4u) { m = fma_(mixed[KEY_DIM + i], state[i * COLUMNS + c], m); }
    part[t] = m;
    workgroupBarrier();
    let sum = (part[c] + part[COLUMNS + c]) + (part[2u * COLUMNS + c] + part[3u * COLUMNS + c]);
    let d = (v - decay * sum) * beta;
    var o = 0.0f;
    for (var i = r; i < KEY_DIM; i += 4u) {
      let updated = fma_(mixed[KEY_DIM + i], d, decay * state[i * COLUMNS + c]);
      state[i * COLUMNS + c] = updated;
      o = fma_(mixed[i], updated, o);
    }
    part_out[t] = o;
    workgroupBarrier();
    if (t < columns) {
      let sums = (part_out[c] + part_out[COLUMNS + c]) + (part_out[2u * COLUMNS + c] + part_out[3u * COLUMNS + c]);
      out[((p.first_row + row) * p.value_heads + head) * p.value_dim + first + c] = sums;
    }
  }
  workgroupBarrier();
  for (var i = t; i < KEY_DIM * columns; i += THREADS) {
    matrices[base + i] = state[(i / columns) * COLUMNS + i % columns];
  }
}
