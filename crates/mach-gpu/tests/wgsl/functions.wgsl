@group(0) @binding(0) var<storage, read> xs: array<f32>;
@group(0) @binding(1) var<storage, read> ys: array<f32>;
@group(0) @binding(2) var<storage, read> zs: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;
var<immediate> count: u32;
@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>) {
  let i = id.x + id.y * n.x * 64u;
  if (i >= count) { return; }
  let x = xs[i];
  let y = ys[i];
  let z = zs[i];
  var r = 0.0f;
  switch OP {
    case 0u: { r = x + y; }
    case 1u: { r = x * y; }
    case 2u: { r = fma_(x, y, z); }
    case 3u: { r = (x * y) + z; }
    case 4u: { r = (x + y) - x; }
    case 5u: { r = div_(x, y); }
    case 6u: { r = sqrt_(abs(x)); }
    case 7u: { r = exp_(x); }
    case 8u: { r = sigmoid_(x); }
    case 9u: { r = silu_(x); }
    case 10u: { r = gelu_tanh(x); }
    case 11u: { r = sloped_silu(x, 1.702f); }
    case 12u: { r = max_(x, y); }
    case 13u: { r = min_(x, y); }
    case 14u: { r = f32(round_int(x)); }
    case 15u: { r = bitcast<f32>(to_bf16(x) << 16u); }
    case 16u: { r = from_bf16(bitcast<u32>(x) & 0xffffu); }
    case 17u: {
      let c = vec4<f32>(x, y, z, x);
      r = bitcast<f32>(pack_codes(vec4<i32>(round_int(c.x), round_int(c.y), round_int(c.z), round_int(c.w))));
    }
    case 18u: { r = fma4(vec4<f32>(x, y, z, x), vec4<f32>(y), vec4<f32>(z, x, y, z)).y; }
    case 19u: { r = (vec2<f32>(y, x) * z).y + y; }
    case 20u: { r = softplus_(x); }
    case 21u: { r = tanh_(x); }
    default: {}
  }
  out[i] = bitcast<u32>(r);
}
