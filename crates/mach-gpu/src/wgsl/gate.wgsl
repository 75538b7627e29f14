// `gate = gated(gate, up)`, the outputs of up lying `up_at` elements behind those of gate.
struct Params { count: u32, up_at: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> gate: array<f32>;
@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.x + id.y * 65535u * 64u;
  if (i < p.count) { gate[i] = gated(gate[i], gate[p.up_at + i]); }
}
