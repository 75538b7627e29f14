// `wg.y` is a pair of row and expert. Rows of `x` are those of pairs, or shared by `share` pairs.
struct Params { base: u32, rows: u32, cols: u32, stride: u32, record: u32, share: u32, out_at: u32 }
var<immediate> p: Params;
struct At { base: u32, first: u32, x: u32, out: u32 }
@group(0) @binding(3) var<storage, read> chosen: array<u32>;
fn place(wg: vec3<u32>) -> At {
  return At(chosen[wg.y] * p.record + p.base, (wg.x + wg.z * 65535u) * 4u, wg.y / p.share * p.cols, p.out_at + wg.y * p.stride);
}
