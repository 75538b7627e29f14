// The value of the thread whose number differs in the bits of `mask`.
fn swap(v: vec4<f32>, mask: u32, t: u32) -> vec4<f32> { return subgroupShuffleXor(v, mask); }
