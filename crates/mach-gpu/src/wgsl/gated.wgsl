// What combines the outputs of gate and up, element by element.
fn gated(gate: f32, up: f32) -> f32 {
  var g = gate;
  var u = up;
  if (CLAMPED) {
    let limit = bitcast<f32>(LIMIT);
    g = min_(limit, g);
    u = max_(-limit, min_(limit, u));
  }
  if (ACTIVATION == 0u) { return silu_(g) * u; }
  if (ACTIVATION == 1u) { return gelu_tanh(g) * u; }
  return sloped_silu(g, bitcast<f32>(ALPHA)) * (u + 1.0);
}
