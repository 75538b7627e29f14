// An element of a row-major matrix of floats `[_, p.cols]` that begins at word `base` of `w`.
fn weight(base: u32, row: u32, col: u32) -> f32 {
  let i = row * p.cols + col;
  if (BF16) {
    let word = w[base + i / 2u];
    return select(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u), (i & 1u) == 1u);
  }
  return bitcast<f32>(w[base + i]);
}
