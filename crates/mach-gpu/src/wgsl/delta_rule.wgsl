// The delta rule over some tokens, a workgroup for 32 columns of one value head's state, which it keeps in its memory.
// Thread `t` has column `t % 32` and the rows that are `t / 32` modulo 4: one of the four partial sums.
struct Params {
  rows: u32, out_row: u32, gates_row: u32, key_heads: u32, value_heads: u32, value_dim: u32, channels: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> mixed: array<f32>;
@group(0) @binding(1) var<storage, read> decays: array<f32>;
@group(0) @binding(2) var<storage, read> betas: array<f32>;
@group(0) @binding(3) var<storage, read_write> matrices: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
const COLUMNS: u32 = 32u;
const THREADS: u32 = 128u;
var<workgroup> state: array<f32, KEY_DIM * COLUMNS>;
var<workgroup> query: array<f32, KEY_DIM>;
var<workgroup> key: array<f32, KEY_DIM>;
var<workgroup> part: array<f32, THREADS>;
var<workgroup> part_out: array<f32, THREADS>;

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
    let token = row * p.channels;
    for (var i = t; i < KEY_DIM; i += THREADS) {
      query[i] = mixed[token + key_head * KEY_DIM + i];
      key[i] = mixed[token + (p.key_heads + key_head) * KEY_DIM + i];
    }
    let at = (p.gates_row + row) * p.value_heads + head;
    let decay = decays[at];
    let beta = betas[at];
    var v = 0.0f;
    if (c < columns) { v = mixed[token + 2u * p.key_heads * KEY_DIM + head * p.value_dim + first + c]; }
    workgroupBarrier();
    var m = 0.0f;
    for (var i = r; i < KEY_DIM; i += 4u) { m = fma_(key[i], state[i * COLUMNS + c], m); }
    part[t] = m;
    workgroupBarrier();
    let sum = (part[c] + part[COLUMNS + c]) + (part[2u * COLUMNS + c] + part[3u * COLUMNS + c]);
    let d = (v - decay * sum) * beta;
    var o = 0.0f;
    for (var i = r; i < KEY_DIM; i += 4u) {
      let updated = fma_(key[i], d, decay * state[i * COLUMNS + c]);
      state[i * COLUMNS + c] = updated;
      o = fma_(query[i], updated, o);
    }
    part_out[t] = o;
    workgroupBarrier();
    if (t < columns) {
      let sums = (part_out[c] + part_out[COLUMNS + c]) + (part_out[2u * COLUMNS + c] + part_out[3u * COLUMNS + c]);
      out[((p.out_row + row) * p.value_heads + head) * p.value_dim + first + c] = sums;
    }
  }
  workgroupBarrier();
  for (var i = t; i < KEY_DIM * columns; i += THREADS) {
    matrices[base + i] = state[(i / columns) * COLUMNS + i % columns];
  }
}
