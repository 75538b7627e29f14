// Queries, keys and values of all rows of a pass in one: heads are normed and rotated, keys and values go into the pages
// of their sequences. Sixteen threads a head; thread `l` has the elements `l` modulo 16.
struct Params {
  rows: u32, q_heads: u32, kv_heads: u32, q_stride: u32, rotary_dim: u32, angles_at: u32, places_at: u32, eps: f32,
  v_eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read> q_weight: array<f32>;
@group(0) @binding(4) var<storage, read> k_weight: array<f32>;
@group(0) @binding(5) var<storage, read> angles: array<f32>;
@group(0) @binding(6) var<storage, read> places: array<vec2<u32>>; // position, where the pages begin in `table`
@group(0) @binding(7) var<storage, read> table: array<u32>;
@group(0) @binding(8) var<storage, read_write> queries: array<f32>;
@group(0) @binding(9) var<storage, read_write> pages: array<u32>;
const WORDS: u32 = HEAD_DIM / 2u;
var<workgroup> x: array<f32, HEAD_DIM * TEAMS>;

@compute @workgroup_size(16u * TEAMS)
fn run(@builtin(local_invocation_index) t: u32, @builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) ng: vec3<u32>) {
  let team = t / 16u;
  let l = t % 16u;
  let unit = (g.x + g.y * ng.x) * TEAMS + team;
  let heads = p.q_heads + 2u * p.kv_heads;
  let row = unit / heads;
  let there = row < p.rows;
  let n = unit % heads;
  let is_query = n < p.q_heads;
  let is_key = !is_query && n < p.q_heads + p.kv_heads;
  let mine = team * HEAD_DIM;
  var acc = 0.0f;
  if (there) {
    for (var i = l; i < HEAD_DIM; i += 16u) {
      var y = 0.0f;
      if (is_query) {
        y = q[(row * p.q_heads + n) * p.q_stride + i];
      } else if (is_key) {
        y = k[(row * p.kv_heads + n - p.q_heads) * HEAD_DIM + i];
      } else {
        y = v[(row * p.kv_heads + n - p.q_heads - p.kv_heads) * HEAD_DIM + i];
      }
      x[mine + i] = y;
      acc = fma_(y, y, acc);
    }
  }
  if (Q_NORM || K_NORM || V_NORM) {
    partials[t] = acc;
    workgroupBarrier();
    let factor = norm_factor(tree(team), HEAD_DIM, select(p.v_eps, p.eps, is_query || is_key));
    if (there) {
      for (var i = l; i < HEAD_DIM; i += 16u) {
        let y = x[mine + i];
        if (is_query) {
          if (Q_NORM) { x[mine + i] = (y * factor) * q_weight[i]; }
        } else if (is_key) {
          if (K_NORM) { x[mine + i] = (y * factor) * k_weight[i]; }
        } else if (V_NORM) {
          x[mine + i] = y * factor;
        }
      }
    }
  }
  workgroupBarrier();
  if (there && (is_query || is_key)) {
    let half = p.rotary_dim / 2u;
    let angle = p.angles_at + row * p.rotary_dim;
    for (var i = l; i < half; i += 16u) {
      let a = x[mine + i];
      let b = x[mine + half + i];
      let cosine = angles[angle + i];
      let sine = angles[angle + half + i];
      x[mine + i] = fma_(a, cosine, 0.0f - b * sine);
      x[mine + half + i] = fma_(b, cosine, a * sine);
    }
  }
  workgroupBarrier();
  if (!there) { return; }
  if (is_query) {
    let to = (row * p.q_heads + n) * HEAD_DIM;
    for (var i = l; i < HEAD_DIM; i += 16u) { queries[to + i] = x[mine + i]; }
    return;
  }
  // A page: keys [heads, 256, head_dim / 2 words], then values likewise.
  let place = places[p.places_at + row];
  let page = table[place.y + place.x / 256u] * (2u * p.kv_heads * 256u * WORDS);
  let at = page + ((n - p.q_heads) * 256u + place.x % 256u) * WORDS;
  for (var i = l; i < WORDS; i += 16u) {
    pages[at + i] = to_bf16(x[mine + 2u * i]) | (to_bf16(x[mine + 2u * i + 1u]) << 16u);
  }
}
