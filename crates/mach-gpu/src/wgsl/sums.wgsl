// Sixteen partial sums for each of TEAMS sums, and the CPU's tree over them.
var<workgroup> partials: array<f32, 16u * TEAMS>;
fn tree(team: u32) -> f32 {
  let p = team * 16u;
  let a0 = partials[p] + partials[p + 8u];
  let a1 = partials[p + 1u] + partials[p + 9u];
  let a2 = partials[p + 2u] + partials[p + 10u];
  let a3 = partials[p + 3u] + partials[p + 11u];
  let a4 = partials[p + 4u] + partials[p + 12u];
  let a5 = partials[p + 5u] + partials[p + 13u];
  let a6 = partials[p + 6u] + partials[p + 14u];
  let a7 = partials[p + 7u] + partials[p + 15u];
  return ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7));
}
// What an RMS norm multiplies by.
fn norm_factor(sum: f32, n: u32, eps: f32) -> f32 { return div_(1.0f, sqrt_(div_(sum, f32(n)) + eps)); }
