// The parts that `attention` leaves for each page, merged ascending: a workgroup a row and query head.
struct Params { rows: u32, q_heads: u32, first_row: u32, ranges_at: u32, first_page: u32, gates_at: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> parts: array<f32>;
@group(0) @binding(1) var<storage, read> ranges: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> sinks: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read> gates: array<f32>;

@compute @workgroup_size(THREADS)
fn run(@builtin(local_invocation_index) t: u32, @builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) ng: vec3<u32>) {
  let place = g.x + g.y * ng.x;
  let row = place / p.q_heads;
  if (row >= p.rows) { return; }
  let range = ranges[p.ranges_at + row];
  let stride = p.rows * p.q_heads * (HEAD_DIM + 2u);
  let first = range.x / PAGE;
  let last = (range.y + PAGE - 1u) / PAGE;
  for (var d = t; d < HEAD_DIM; d += THREADS) {
    var at = (first - p.first_page) * stride + place * (HEAD_DIM + 2u);
    var top = parts[at];
    var total = parts[at + 1u];
    var sum = parts[at + 2u + d];
    for (var page = first + 1u; page < last; page++) {
      at += stride;
      let page_top = parts[at];
      let best = select(top, page_top, page_top > top);
      let a = exp_(top - best);
      let b = exp_(page_top - best);
      sum = fma_(parts[at + 2u + d], b, sum * a);
      total = (total * a) + (parts[at + 1u] * b);
      top = best;
    }
    let at_head = p.first_row * p.q_heads + place;
    var y = sum * inverse(total, top, sinks[select(0u, place % p.q_heads, SINKS)]);
    if (GATED) { y = y * sigmoid_(gates[p.gates_at + at_head * 2u * HEAD_DIM + HEAD_DIM + d]); }
    out[at_head * HEAD_DIM + d] = y;
  }
}
