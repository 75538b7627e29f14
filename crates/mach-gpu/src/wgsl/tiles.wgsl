// What products with tiles share.
fn four_bf16(u: vec2<u32>) -> vec4<f32> {
  return bitcast<vec4<f32>>(vec4<u32>(u.x << 16u, u.x & 0xffff0000u, u.y << 16u, u.y & 0xffff0000u));
}
fn four_e8m0(u: u32) -> vec4<f32> {
  return bitcast<vec4<f32>>(vec4<u32>((u & 255u) << 23u, (u & 0xff00u) << 15u, (u & 0xff0000u) << 7u, (u >> 24u) << 23u));
}
// Of four e2m1 codes in the bytes of a word: twice the value plus 12. Magnitudes are 0, 1, 2, 3 and, from the third bit
// on, (4 + 2 low) shifted by the middle bit.
fn e2m1_twice_plus_12(c: vec4<u32>) -> vec4<u32> {
  let ones = vec4<u32>(0x01010101u);
  let low = c & ones;
  let middle = (c >> vec4<u32>(1u)) & ones;
  let high = ((c >> vec4<u32>(2u)) & ones) * 255u;
  let sign = ((c >> vec4<u32>(3u)) & ones) * 255u;
  let large = vec4<u32>(0x04040404u) + (low << vec4<u32>(1u));
  let magnitude = ((large + (large & (middle * 255u))) & high) | ((low + (middle << vec4<u32>(1u))) & ~high);
  return (vec4<u32>(0x0c0c0c0cu) + magnitude) - ((magnitude & sign) << vec4<u32>(1u));
}
