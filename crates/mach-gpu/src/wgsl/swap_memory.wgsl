// The value of the thread whose number differs in the bits of `mask`, for devices without shuffles.
var<workgroup> exchange: array<vec4<f32>, 256>;
fn swap(v: vec4<f32>, mask: u32, t: u32) -> vec4<f32> {
  workgroupBarrier();
  exchange[t] = v;
  workgroupBarrier();
  return exchange[t ^ mask];
}
