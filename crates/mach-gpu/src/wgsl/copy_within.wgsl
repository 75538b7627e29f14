// Copies words inside a buffer, which commands of their own cannot.
struct Params { begin: u32, to: u32, count: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.x + id.y * 65535u * 64u;
  if (i < p.count) { words[p.to + i] = words[p.begin + i]; }
}
