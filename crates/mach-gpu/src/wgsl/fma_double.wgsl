// For adapters that round twice. The product of two f32 is exact in f64; the sum is rounded to odd there, after which
// rounding to f32 is that of the exact sum (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
fn fma_(a: f32, b: f32, c: f32) -> f32 {
  let p = f64(a) * f64(b);
  let d = f64(c);
  let s = p + d;
  let t = s - p;
  let e = (p - (s - t)) + (d - t);
  var u = bitcast<u64>(s);
  if (e != f64(0.0) && (u & 1lu) == 0lu) {
    if ((e > f64(0.0)) == (s > f64(0.0))) { u += 1lu; } else { u -= 1lu; }
  }
  return f32(bitcast<f64>(u));
}
fn fma4(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>) -> vec4<f32> {
  return vec4<f32>(fma_(a.x, b.x, c.x), fma_(a.y, b.y, c.y), fma_(a.z, b.z, c.z), fma_(a.w, b.w, c.w));
}
