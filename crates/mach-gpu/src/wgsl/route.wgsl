// Chooses experts: softmax over all (or over the chosen ones), the largest by falling value, ties to the lower index.
// `elementwise.rs` of `mach-kernels` is the twin. A workgroup has one row.
struct Params { experts: u32, k: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> bias: array<f32>;
@group(0) @binding(2) var<storage, read> expert_scale: array<f32>;
@group(0) @binding(3) var<storage, read> gates: array<f32>;
@group(0) @binding(4) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(5) var<storage, read_write> weights: array<f32>;
@group(0) @binding(6) var<storage, read_write> shared_weights: array<f32>;
var<workgroup> score: array<f32, 512>;
var<workgroup> best: array<f32, 64>;
var<workgroup> at: array<u32, 64>;
var<workgroup> partial: array<f32, 16>;
var<workgroup> kept: array<f32, 32>;
var<workgroup> kept_at: array<u32, 32>;

fn tree() -> f32 {
  var a: array<f32, 8>;
  for (var i = 0u; i < 8u; i++) { a[i] = partial[i] + partial[i + 8u]; }
  return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

// Over all lanes, into `best[0]` and `at[0]`; of equal values that of the lower index.
fn largest(li: u32) {
  for (var step = 32u; step > 0u; step /= 2u) {
    if (li < step) {
      let b = best[li + step];
      let i = at[li + step];
      if (b > best[li] || (b == best[li] && i < at[li])) { best[li] = b; at[li] = i; }
    }
    workgroupBarrier();
  }
}

@compute @workgroup_size(64)
fn run(@builtin(local_invocation_index) li: u32, @builtin(workgroup_id) wg: vec3<u32>) {
  let row = wg.x;
  let lowest = bitcast<f32>(LOWEST);
  var top = lowest;
  for (var e = li; e < p.experts; e += 64u) {
    var v = logits[row * p.experts + e];
    if (BIASED) { v = v + bias[e]; }
    score[e] = v;
    top = max_(v, top);
  }
  best[li] = top;
  at[li] = li;
  workgroupBarrier();
  largest(li);
  top = best[0];
  workgroupBarrier();
  if (OVER_ALL) {
    for (var e = li; e < p.experts; e += 64u) { score[e] = exp_(score[e] - top); }
    workgroupBarrier();
    if (li < 16u) {
      var sum = 0.0;
      for (var e = li; e < (p.experts + 15u) / 16u * 16u; e += 16u) {
        var v = 0.0;
        if (e < p.experts) { v = score[e]; }
        sum = sum + v;
      }
      partial[li] = sum;
    }
    workgroupBarrier();
    let total = tree();
    for (var e = li; e < p.experts; e += 64u) { score[e] = div_(score[e], total); }
    workgroupBarrier();
  }
  for (var rank = 0u; rank < p.k; rank++) {
    var b = lowest;
    var i = 0xffffffffu;
    for (var e = li; e < p.experts; e += 64u) {
      var taken = false;
      for (var r = 0u; r < rank; r++) { taken = taken || kept_at[r] == e; }
      if (!taken && (i == 0xffffffffu || score[e] > b)) { b = score[e]; i = e; }
    }
    best[li] = b;
    at[li] = i;
    workgroupBarrier();
    largest(li);
    if (li == 0u) { kept[rank] = best[0]; kept_at[rank] = at[0]; }
    workgroupBarrier();
  }
  if (li == 0u) {
    if (OVER_ALL) {
      var total = 1.0;
      if (NORMALISE) {
        total = 0.0;
        for (var r = 0u; r < p.k; r++) { total = total + kept[r]; }
      }
      for (var r = 0u; r < p.k; r++) { kept[r] = div_(kept[r], total); }
    } else {
      let first = kept[0];
      for (var r = 0u; r < 16u; r++) {
        var sum = 0.0;
        for (var i = r; i < (p.k + 15u) / 16u * 16u; i += 16u) {
          var v = 0.0;
          if (i < p.k) { v = exp_(kept[i] - first); kept[i] = v; }
          sum = sum + v;
        }
        partial[r] = sum;
      }
      let total = tree();
      for (var r = 0u; r < p.k; r++) { kept[r] = div_(kept[r], total); }
    }
    if (SCALED) {
      for (var r = 0u; r < p.k; r++) { kept[r] = kept[r] * expert_scale[kept_at[r]]; }
      // By falling weight; equal ones stay in their order.
      for (var r = 1u; r < p.k; r++) {
        let v = kept[r];
        let e = kept_at[r];
        var i = r;
        for (; i > 0u && kept[i - 1u] < v; i--) { kept[i] = kept[i - 1u]; kept_at[i] = kept_at[i - 1u]; }
        kept[i] = v;
        kept_at[i] = e;
      }
    }
    for (var r = 0u; r < p.k; r++) {
      chosen[row * p.k + r] = kept_at[r];
      weights[row * p.k + r] = kept[r];
    }
    if (GATED) { shared_weights[row] = 1.0 * sigmoid_(gates[row]); }
  }
}
