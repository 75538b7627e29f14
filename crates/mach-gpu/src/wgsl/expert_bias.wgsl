// Adds to each pair's outputs the bias of its expert, which lies in the expert's record.
struct Params { pairs: u32, width: u32, record: u32, at: u32, out_at: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<u32>;
@group(0) @binding(1) var<storage, read> chosen: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.x + id.y * 65535u * 64u;
  if (i >= p.pairs * p.width) { return; }
  let begin = chosen[i / p.width] * p.record + p.at;
  let c = i % p.width;
  var bias: f32;
  if (BF16) {
    let word = w[begin + c / 2u];
    bias = select(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u), (c & 1u) == 1u);
  } else {
    bias = bitcast<f32>(w[begin + c]);
  }
  out[p.out_at + i] = out[p.out_at + i] + bias;
}
