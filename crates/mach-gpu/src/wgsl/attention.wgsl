// Attention of up to QUERIES queries of one key/value head over pages of 256 positions, in the CPU's order: inside a page
// scores, their maximum, exponentials, their sum, the weighted sum of values; pages merged ascending.
//
// Query `i` of a head is row `i / group` of its sequence, query head `head * group + i % group`. With BATCHED a workgroup
// finds in `blocks` which sequence it works for; without, all rows are of one. With SPLIT a workgroup has one page and
// leaves its part for `merge`; without, it goes through all pages and merges as it goes.
struct Params {
  heads: u32, group: u32, rows: u32, first_row: u32, table_at: u32, ranges_at: u32, first_page: u32, pages: u32,
  blocks: u32, scale: f32, gates_at: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> cache: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> table: array<u32>;
@group(0) @binding(3) var<storage, read> ranges: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> sinks: array<f32>;
// With SPLIT, parts: for each page, row and query head the maximum, the sum and head_dim sums of values.
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

// First row of the sequence, first query, how many, where the pages begin in `table`.
@group(0) @binding(6) var<storage, read> blocks: array<vec4<u32>>;
// With GATED, for each row and query head the query, then the gate of the output.
@group(0) @binding(7) var<storage, read> gates: array<f32>;

const ROW: u32 = HEAD_DIM / 2u; // words of a position
const THREADS: u32 = 256u;
const LANES: u32 = 16u;
// Keys that are worked on at once, four threads each.
const KEYS: u32 = 64u;
// A thread sums two elements for PAIRED queries at once.
const PAIRED: u32 = 2u;
const ITEMS: u32 = (QUERIES / PAIRED) * ROW;

var<workgroup> query: array<vec4<f32>, QUERIES * HEAD_DIM / 4u>;
var<workgroup> score: array<f32, QUERIES * PAGE>;
var<workgroup> sums: array<f32, SUMS>;
var<workgroup> top: array<f32, QUERIES>;
var<workgroup> total: array<f32, QUERIES>;
// Factors of a merge: of what is there, of the page; whether there is anything yet.
var<workgroup> old_factor: array<f32, QUERIES>;
var<workgroup> new_factor: array<f32, QUERIES>;
var<workgroup> begun: array<u32, QUERIES>;

fn wide(w: vec2<u32>) -> vec4<f32> {
  return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
}

@compute @workgroup_size(256)
fn run(@builtin(local_invocation_index) t: u32, @builtin(workgroup_id) g: vec3<u32>) {
  let head = g.y;
  // Later queries see more: they begin first.
  let block = p.blocks - 1u - g.x;
  var of_block = vec4<u32>(p.first_row, block * QUERIES, QUERIES, p.table_at);
  if (BATCHED) { of_block = blocks[block]; }
  // The row that ranges and parts are counted from.
  let origin = select(0u, of_block.x, BATCHED);
  let first_row = of_block.x;
  let first = of_block.y;
  let count = min(of_block.z, select(p.rows * p.group - first, QUERIES, BATCHED));
  let q_heads = p.heads * p.group;

  for (var i = t; i < QUERIES * HEAD_DIM / 4u; i += THREADS) {
    // Unused places repeat the last query; their results are dropped.
    let n = first + min(i / (HEAD_DIM / 4u), count - 1u);
    let at = ((first_row + n / p.group) * q_heads + head * p.group + n % p.group) * HEAD_DIM + (i % (HEAD_DIM / 4u)) * 4u;
    query[i] = vec4<f32>(q[at], q[at + 1u], q[at + 2u], q[at + 3u]);
  }
  // The query that this thread turns scores into weights for.
  let mine = t / LANES;
  let lane = t % LANES;
  let range = ranges[p.ranges_at + origin + (first + min(mine, count - 1u)) / p.group];
  if (t < QUERIES) { begun[t] = 0u; }
  // Of the four threads that share a key this is the one of elements 4 `quarter` and following of each sixteen.
  let quarter = t % 4u;
  // Rows ascend, and so do both ends of their ranges, but for those of a window that sees no end.
  var page = p.first_page;
  var end = p.first_page + p.pages;
  if (SPLIT) {
    page += g.z;
    end = page + 1u;
  }
  for (; page < end; page++) {
    // Whether any query sees anything here, and the most positions that one sees.
    var most = 0u;
    var seen_from = PAGE;
    for (var i = 0u; i < count; i++) {
      let s = seen(ranges[p.ranges_at + origin + (first + i) / p.group], page);
      most = max(most, s.here);
      if (s.here > 0u) { seen_from = min(seen_from, s.skipped); }
    }
    if (most == 0u) { continue; }
    let base = table[of_block.w + page] * (p.heads * PAGE * ROW);
    workgroupBarrier();

    for (var first_key = seen_from / KEYS * KEYS; first_key < most; first_key += KEYS) {
      let position = first_key + t / 4u;
      let inside = position < most && position >= seen_from;
      let key = base + (head * PAGE + position) * (ROW / 2u) + quarter;
      products(key, inside, quarter, t, position);
    }
    workgroupBarrier();

    // Sixteen threads a query: lane `l` has the positions `l` modulo 16.
    let here = seen(range, page);
    let weighs = mine < QUERIES;
    var best = -3.4028234663852886e38f;
    if (weighs) {
      for (var j = lane; j < here.here; j += LANES) {
        if (j >= here.skipped) { best = max_(score[mine * PAGE + j], best); }
      }
      partials[t] = best;
    }
    workgroupBarrier();
    var acc = 0.0f;
    if (weighs) {
      best = partials[mine * LANES];
      for (var i = 1u; i < LANES; i++) { best = max_(partials[mine * LANES + i], best); }
    }
    workgroupBarrier();
    if (weighs) {
      for (var j = lane; j < here.here; j += LANES) {
        var weight = 0.0f;
        if (j >= here.skipped) { weight = exp_(score[mine * PAGE + j] - best); }
        score[mine * PAGE + j] = weight;
        acc = acc + weight;
      }
      // What other queries see and this one does not.
      for (var j = here.here + (lane + LANES - here.here % LANES) % LANES; j < most; j += LANES) {
        score[mine * PAGE + j] = 0.0f;
      }
      partials[t] = acc;
    }
    workgroupBarrier();
    if (weighs && lane == 0u && here.here > 0u) {
      let sum = tree(mine);
      if (begun[mine] == 0u) {
        begun[mine] = 1u;
        top[mine] = best;
        total[mine] = sum;
        old_factor[mine] = 0.0f;
        new_factor[mine] = 1.0f;
      } else {
        begun[mine] = 2u;
        let most_of_both = select(top[mine], best, best > top[mine]);
        let a = exp_(top[mine] - most_of_both);
        let b = exp_(best - most_of_both);
        total[mine] = (total[mine] * a) + (sum * b);
        top[mine] = most_of_both;
        old_factor[mine] = a;
        new_factor[mine] = b;
      }
    }
    workgroupBarrier();

    let values = base + p.heads * PAGE * (ROW / 2u) + head * PAGE * (ROW / 2u);
    for (var item = t; item < ITEMS; item += THREADS) {
      let i = (item / ROW) * PAIRED;
      let word = item % ROW;
      let column = values + word / 2u;
      let half = word & 1u;
      var x = vec2<f32>();
      var y = vec2<f32>();
      let sx = i * PAGE;
      let sy = sx + PAGE;
      // What lies before the first position that any query sees has weight 0.
      var j = seen_from / 4u * 4u;
      for (; j + 4u <= most; j += 4u) {
        let at = column + j * (ROW / 2u);
        let v0 = bf16_pair(cache[at][half]);
        let v1 = bf16_pair(cache[at + ROW / 2u][half]);
        let v2 = bf16_pair(cache[at + 2u * (ROW / 2u)][half]);
        let v3 = bf16_pair(cache[at + 3u * (ROW / 2u)][half]);
        let wx = vec4<f32>(score[sx + j], score[sx + j + 1u], score[sx + j + 2u], score[sx + j + 3u]);
        let wy = vec4<f32>(score[sy + j], score[sy + j + 1u], score[sy + j + 2u], score[sy + j + 3u]);
        x = vec2<f32>(fma_(wx.x, v0.x, x.x), fma_(wx.x, v0.y, x.y));
        y = vec2<f32>(fma_(wy.x, v0.x, y.x), fma_(wy.x, v0.y, y.y));
        x = vec2<f32>(fma_(wx.y, v1.x, x.x), fma_(wx.y, v1.y, x.y));
        y = vec2<f32>(fma_(wy.y, v1.x, y.x), fma_(wy.y, v1.y, y.y));
        x = vec2<f32>(fma_(wx.z, v2.x, x.x), fma_(wx.z, v2.y, x.y));
        y = vec2<f32>(fma_(wy.z, v2.x, y.x), fma_(wy.z, v2.y, y.y));
        x = vec2<f32>(fma_(wx.w, v3.x, x.x), fma_(wx.w, v3.y, x.y));
        y = vec2<f32>(fma_(wy.w, v3.x, y.x), fma_(wy.w, v3.y, y.y));
      }
      for (; j < most; j++) {
        let v = bf16_pair(cache[column + j * (ROW / 2u)][half]);
        let wx = score[sx + j];
        let wy = score[sy + j];
        x = vec2<f32>(fma_(wx, v.x, x.x), fma_(wx, v.y, x.y));
        y = vec2<f32>(fma_(wy, v.x, y.x), fma_(wy, v.y, y.y));
      }
      leave(i, word, x, page, origin, first, count, head);
      leave(i + 1u, word, y, page, origin, first, count, head);
    }
  }
  if (SPLIT) { return; }
  workgroupBarrier();
  for (var i = t; i < count * HEAD_DIM; i += THREADS) {
    let place = i / HEAD_DIM;
    let n = first + place;
    let q_head = head * p.group + n % p.group;
    let at_head = (first_row + n / p.group) * q_heads + q_head;
    let d = i % HEAD_DIM;
    var y = sums[i] * inverse(total[place], top[place], sinks[select(0u, q_head, SINKS)]);
    if (GATED) { y = y * sigmoid_(gates[p.gates_at + at_head * 2u * HEAD_DIM + HEAD_DIM + d]); }
    out[at_head * HEAD_DIM + d] = y;
  }
}

// Puts the sums of a page over two elements where they belong.
fn leave(i: u32, word: u32, part: vec2<f32>, page: u32, origin: u32, first: u32, count: u32, head: u32) {
  if (i >= count) { return; }
  let n = first + i;
  if (seen(ranges[p.ranges_at + origin + n / p.group], page).here == 0u) { return; }
  if (SPLIT) {
    let place = ((page - p.first_page) * p.rows + origin + n / p.group) * (p.heads * p.group) + head * p.group + n % p.group;
    let at = place * (HEAD_DIM + 2u);
    if (word == 0u) {
      out[at] = top[i];
      out[at + 1u] = total[i];
    }
    out[at + 2u + 2u * word] = part.x;
    out[at + 3u + 2u * word] = part.y;
  } else {
    let at = i * HEAD_DIM + 2u * word;
    if (begun[i] == 1u) {
      sums[at] = part.x;
      sums[at + 1u] = part.y;
    } else {
      sums[at] = fma_(part.x, new_factor[i], sums[at] * old_factor[i]);
      sums[at + 1u] = fma_(part.y, new_factor[i], sums[at + 1u] * old_factor[i]);
    }
  }
}
