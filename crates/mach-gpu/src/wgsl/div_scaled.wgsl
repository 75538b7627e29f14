// Correctly rounded for operands in [1, 2): a Newton step for the reciprocal, then the residual of the quotient.
fn div_significands(a: f32, b: f32) -> f32 {
  let r0 = 1.0 / b;
  let r = fma_(fma_(-b, r0, 1.0), r0, r0);
  let q0 = a * r;
  let q1 = fma_(fma_(-b, q0, a), r, q0);
  return fma_(fma_(-b, q1, a), r, q1);
}
// Correctly rounded for normal operands and quotients: exponents are taken off and put back by exact factors.
fn div_(a: f32, b: f32) -> f32 {
  let ua = bitcast<u32>(a);
  let ub = bitcast<u32>(b);
  let ea = (ua >> 23u) & 255u;
  let eb = (ub >> 23u) & 255u;
  if (ea == 0u || eb == 0u || ea == 255u || eb == 255u) { return a / b; }
  let ma = bitcast<f32>((ua & 0x807fffffu) | 0x3f800000u);
  let mb = bitcast<f32>((ub & 0x807fffffu) | 0x3f800000u);
  let e = i32(ea) - i32(eb);
  let h = e / 2;
  return (div_significands(ma, mb) * exp2_int(h)) * exp2_int(e - h);
}
