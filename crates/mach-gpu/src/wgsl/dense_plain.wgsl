struct Params { base: u32, rows: u32, cols: u32, stride: u32, out_at: u32 }
var<immediate> p: Params;
struct At { base: u32, first: u32, x: u32, out: u32 }
fn place(wg: vec3<u32>) -> At {
  return At(p.base, (wg.x + wg.z * 65535u) * 4u, wg.y * p.cols, p.out_at + wg.y * p.stride);
}
