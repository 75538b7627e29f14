// out *= sigmoid(gate); the gate of a head lies behind its query.
struct Params { elements: u32, q_at: u32, out_at: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn run(@builtin(local_invocation_index) t: u32, @builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) ng: vec3<u32>) {
  let i = (g.x + g.y * ng.x) * 256u + t;
  if (i >= p.elements) { return; }
  let gate = q[p.q_at + (i / HEAD_DIM) * 2u * HEAD_DIM + HEAD_DIM + i % HEAD_DIM];
  out[p.out_at + i] = out[p.out_at + i] * sigmoid_(gate);
}
