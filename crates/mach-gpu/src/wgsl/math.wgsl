// Functions of the CPU's `math.rs`, operation by operation. `fma_`, `fma4` and `div_` stand in front.

// Below the first `exp_` is 0; above the second it is that of the second.
const EXP_MIN: f32 = -64.0f;
const EXP_MAX: f32 = 87.0f;
const LOG2_E: f32 = 1.44269504f;

// By comparison: built-in minima and maxima may flush subnormals.
fn max_(a: f32, b: f32) -> f32 { return select(b, a, a > b); }
fn min_(a: f32, b: f32) -> f32 { return select(b, a, a < b); }

// 2^n for a normal result.
fn exp2_int(n: i32) -> f32 { return bitcast<f32>(u32(n + 127) << 23u); }

// To nearest even.
fn round_int(x: f32) -> i32 { return i32(round(x)); }

// Root of a significand in [1, 4): correctly rounded by two steps.
fn sqrt_significand(a: f32) -> f32 {
  let r = inverseSqrt(a);
  let s = a * r;
  let h = 0.5 * r;
  let e = fma_(-h, s, 0.5);
  let s1 = fma_(s, e, s);
  let h1 = fma_(h, e, h);
  return fma_(fma_(-s1, s1, a), h1, s1);
}

// Of 0, normal positive numbers and infinity.
fn sqrt_(a: f32) -> f32 {
  let u = bitcast<u32>(a);
  let biased = (u >> 23u) & 255u;
  if (biased == 0u || biased == 255u) { return a; }
  let e = i32(biased) - 127;
  let h = e >> 1u;
  let m = bitcast<f32>((u & 0x007fffffu) | (u32(e - 2 * h + 127) << 23u));
  return sqrt_significand(m) * exp2_int(h);
}

fn exp_(x: f32) -> f32 {
  let c = max_(min_(x, EXP_MAX), EXP_MIN);
  let n = round_int(c * LOG2_E);
  let nf = f32(n);
  var r = fma_(nf, -0.6933594f, c);
  r = fma_(nf, 2.1219444e-4f, r);
  var p = 1.9875691e-4f;
  p = fma_(p, r, 1.3981999e-3f);
  p = fma_(p, r, 8.333452e-3f);
  p = fma_(p, r, 4.1665796e-2f);
  p = fma_(p, r, 0.16666665f);
  p = fma_(p, r, 0.5f);
  p = fma_(p, r * r, r + 1.0f);
  return select(0.0f, p * exp2_int(n), x >= EXP_MIN);
}

fn sigmoid_(x: f32) -> f32 { return div_(1.0, 1.0 + exp_(0.0 - x)); }
fn silu_(x: f32) -> f32 { return div_(x, 1.0 + exp_(0.0 - x)); }
fn sloped_silu(x: f32, alpha: f32) -> f32 { return div_(x, 1.0 + exp_(0.0 - x * alpha)); }
fn gelu_tanh(x: f32) -> f32 {
  let cubic = fma_(x * x, 0.044715f, 1.0f);
  let z = (x * 1.595769f) * cubic;
  return div_(x, 1.0 + exp_(0.0 - z));
}

fn softplus_(x: f32) -> f32 {
  let t = exp_(0.0 - abs(x));
  let z = div_(t, t + 2.0f);
  let z2 = z * z;
  var p = 1.0f / 13.0f;
  p = fma_(p, z2, 1.0f / 11.0f);
  p = fma_(p, z2, 1.0f / 9.0f);
  p = fma_(p, z2, 1.0f / 7.0f);
  p = fma_(p, z2, 1.0f / 5.0f);
  p = fma_(p, z2, 1.0f / 3.0f);
  let twice = z + z;
  return max_(x, 0.0f) + fma_(twice * z2, p, twice);
}
fn tanh_(x: f32) -> f32 { return 1.0f - div_(2.0f, 1.0f + exp_(x + x)); }

// bfloat16 in the low half of a word, to nearest even; NaN stays NaN.
fn to_bf16(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) { return (u >> 16u) | 0x40u; }
  return (u + 0x7fffu + ((u >> 16u) & 1u)) >> 16u;
}
fn from_bf16(u: u32) -> f32 { return bitcast<f32>(u << 16u); }
// Of the two halves of a word, the low one first.
fn bf16_pair(u: u32) -> vec2<f32> { return vec2<f32>(bitcast<f32>(u << 16u), bitcast<f32>(u & 0xffff0000u)); }

// Four codes of -127 to 127 as bytes, the first one lowest.
fn pack_codes(c: vec4<i32>) -> u32 {
  return (u32(c.x) & 255u) | ((u32(c.y) & 255u) << 8u) | ((u32(c.z) & 255u) << 16u) | (u32(c.w) << 24u);
}
