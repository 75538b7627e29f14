// decay = e^(rate softplus(a + bias)), beta = sigmoid(b), for each row and value head.
struct Params { rows: u32, heads: u32, first_row: u32, to_row: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> rates: array<f32>;
@group(0) @binding(4) var<storage, read_write> decay: array<f32>;
@group(0) @binding(5) var<storage, read_write> beta: array<f32>;

@compute @workgroup_size(64)
fn run(@builtin(local_invocation_index) t: u32, @builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) ng: vec3<u32>) {
  let i = (g.x + g.y * ng.x) * 64u + t;
  if (i >= p.rows * p.heads) { return; }
  let at = p.first_row * p.heads + i;
  let to = p.to_row * p.heads + i;
  let h = i % p.heads;
  decay[to] = exp_(rates[h] * softplus_(a[at] + bias[h]));
  beta[to] = sigmoid_(b[at]);
}
