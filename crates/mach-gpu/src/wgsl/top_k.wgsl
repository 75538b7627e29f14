// The `k` largest of each row by falling value, ties to the lower index: places and values. A workgroup has one row; what
// a lane has given up is told by the last choice, which all others lie behind.
struct Params { width: u32, k: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> places: array<u32>;
@group(0) @binding(2) var<storage, read_write> values: array<f32>;
var<workgroup> best: array<f32, 256>;
var<workgroup> at: array<u32, 256>;
@compute @workgroup_size(256)
fn run(@builtin(local_invocation_index) li: u32, @builtin(workgroup_id) wg: vec3<u32>) {
  let begin = wg.x * p.width;
  var last = 0.0;
  var last_at = 0u;
  for (var rank = 0u; rank < p.k; rank++) {
    var b = 0.0;
    var i = 0xffffffffu;
    for (var c = li; c < p.width; c += 256u) {
      let v = x[begin + c];
      let behind = rank == 0u || v < last || (v == last && c > last_at);
      if (behind && (i == 0xffffffffu || v > b)) { b = v; i = c; }
    }
    best[li] = b;
    at[li] = i;
    workgroupBarrier();
    for (var step = 128u; step > 0u; step /= 2u) {
      if (li < step) {
        let j = at[li + step];
        let v = best[li + step];
        if (j != 0xffffffffu && (at[li] == 0xffffffffu || v > best[li] || (v == best[li] && j < at[li]))) {
          best[li] = v;
          at[li] = j;
        }
      }
      workgroupBarrier();
    }
    last = best[0];
    last_at = at[0];
    if (li == 0u) {
      places[wg.x * p.k + rank] = last_at;
      values[wg.x * p.k + rank] = last;
    }
    workgroupBarrier();
  }
}
