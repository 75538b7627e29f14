// An element of a row-major matrix of codes `[_, p.cols]` that begins at word `base` of `w`: a row is its codes as one
// string of bits, its scales, its biases.
fn byte(at: u32) -> u32 { return (w[at / 4u] >> (8u * (at % 4u))) & 255u; }
fn half_word(at: u32) -> u32 { return byte(at) | (byte(at + 1u) << 8u); }
fn weight(base: u32, row: u32, col: u32) -> f32 {
  let groups = p.cols / GROUP;
  let begin = 4u * base + row * (p.cols * BITS / 8u + groups * SCALE_BYTES);
  let bit = col * BITS;
  var code = byte(begin + bit / 8u);
  if (bit % 8u + BITS > 8u) { code |= byte(begin + bit / 8u + 1u) << 8u; }
  code = (code >> (bit % 8u)) & ((1u << BITS) - 1u);
  let scales = begin + p.cols * BITS / 8u;
  let g = col / GROUP;
  if (MXFP4) {
    let magnitude = code & 7u;
    var twice = magnitude;
    if (magnitude >= 4u) { twice = (4u + 2u * (magnitude & 1u)) << ((magnitude >> 1u) & 1u); }
    let value = (0.5 * f32(twice)) * bitcast<f32>(byte(scales + g) << 23u);
    return bitcast<f32>(bitcast<u32>(value) | ((code & 8u) << 28u));
  }
  if (SCALE_BYTES == 4u) {
    let scale = bitcast<f32>(half_word(scales + 2u * g) << 16u);
    return fma_(f32(code), scale, bitcast<f32>(half_word(scales + 2u * (groups + g)) << 16u));
  }
  let scale = bitcast<f32>(half_word(scales + 4u * g) | (half_word(scales + 4u * g + 2u) << 16u));
  let at = scales + 4u * (groups + g);
  return fma_(f32(code), scale, bitcast<f32>(half_word(at) | (half_word(at + 2u) << 16u)));
}
