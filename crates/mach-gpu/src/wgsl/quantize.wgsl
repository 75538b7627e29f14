// Rows of activations to int8, group by group: symmetric, scale max |x| / 127, codes to nearest even. Beside each group
// its scale and the sum of its codes. `quantize.rs` of `mach-kernels` is the twin. A lane has four columns.
struct Params { rows: u32, cols: u32, groups: u32, stride: u32 }
var<immediate> p: Params;
var<workgroup> tops: array<f32, 64>;
var<workgroup> sums: array<i32, 64>;

fn quantize_four(value: vec4<f32>, li: u32, wg: u32) {
  let lane = li % LANES;
  let top = max_(max_(abs(value.x), abs(value.y)), max_(abs(value.z), abs(value.w)));
  tops[li] = top;
  workgroupBarrier();
  for (var step = LANES / 2u; step > 0u; step /= 2u) {
    var other = 0.0;
    if (lane < step) { other = tops[li + step]; }
    workgroupBarrier();
    if (lane < step) { tops[li] = max_(tops[li], other); }
    workgroupBarrier();
  }
  let amax = tops[li - lane];
  let usable = amax >= 1e-30;
  var inverse = 0.0;
  if (usable) { inverse = div_(127.0, amax); }
  let code = vec4<i32>(round_int(value.x * inverse), round_int(value.y * inverse),
    round_int(value.z * inverse), round_int(value.w * inverse));
  sums[li] = code.x + code.y + code.z + code.w;
  workgroupBarrier();
  for (var step = LANES / 2u; step > 0u; step /= 2u) {
    var other = 0;
    if (lane < step) { other = sums[li + step]; }
    workgroupBarrier();
    if (lane < step) { sums[li] += other; }
    workgroupBarrier();
  }
  let group = wg * (64u / LANES) + li / LANES;
  if (group < p.rows * p.groups) {
    codes[group * LANES + lane] = pack_codes(code);
    if (lane == 0u) {
      var scale = 0.0;
      if (usable) { scale = div_(amax, 127.0); }
      scales[group] = vec2<f32>(scale, f32(sums[li]));
    }
  }
}

@compute @workgroup_size(64)
fn run(@builtin(local_invocation_index) li: u32, @builtin(workgroup_id) at: vec3<u32>) {
  let wg = at.x + at.y * 65535u;
  let group = min(wg * (64u / LANES) + li / LANES, p.rows * p.groups - 1u);
  let row = group / p.groups;
  let col = (group % p.groups) * 4u * LANES + 4u * (li % LANES);
  quantize_four(values(row, col), li, wg);
}
