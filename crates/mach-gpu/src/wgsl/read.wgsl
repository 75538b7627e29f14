// Reads a buffer from end to end; what is written is a thousandth of it, and keeps the reads from being left out.
struct Params { count: u32, threads: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<u32>>;
@compute @workgroup_size(256)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  var all = vec4<u32>();
  var i = id.x;
  for (; i + 3u * p.threads < p.count; i += 4u * p.threads) {
    let a = words[i];
    let b = words[i + p.threads];
    let c = words[i + 2u * p.threads];
    let d = words[i + 3u * p.threads];
    all = all ^ (a ^ b) ^ (c ^ d);
  }
  for (; i < p.count; i += p.threads) { all = all ^ words[i]; }
  out[id.x] = all;
}
