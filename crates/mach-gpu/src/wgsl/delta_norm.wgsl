// x = norm(x) * silu(z) of each value head, sixteen threads a head.
struct Params { count: u32, x_at: u32, z_at: u32, eps: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> z: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(16u * TEAMS)
fn run(@builtin(local_invocation_index) t: u32, @builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) ng: vec3<u32>) {
  let team = t / 16u;
  let l = t % 16u;
  let head = (g.x + g.y * ng.x) * TEAMS + team;
  let there = head < p.count;
  let at = p.x_at + head * VALUE_DIM;
  var acc = 0.0f;
  if (there) {
    for (var i = l; i < VALUE_DIM; i += 16u) {
      let v = x[at + i];
      acc = fma_(v, v, acc);
    }
  }
  partials[t] = acc;
  workgroupBarrier();
  if (!there) { return; }
  let factor = norm_factor(tree(team), VALUE_DIM, p.eps);
  for (var i = l; i < VALUE_DIM; i += 16u) {
    x[at + i] = ((x[at + i] * factor) * w[i]) * silu_(z[p.z_at + head * VALUE_DIM + i]);
  }
}
