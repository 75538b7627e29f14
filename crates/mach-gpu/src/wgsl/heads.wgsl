// Norms (if NORM) and rotates heads, sixteen threads a head: thread `l` has the elements `l` modulo 16.
struct Params {
  heads: u32, head_stride: u32, rotary_dim: u32, x_at: u32, count: u32, angles_at: u32, out_at: u32, eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> angles: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
var<workgroup> normed: array<f32, HEAD_DIM * TEAMS>;

@compute @workgroup_size(16u * TEAMS)
fn run(@builtin(local_invocation_index) t: u32, @builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) ng: vec3<u32>) {
  let team = t / 16u;
  let l = t % 16u;
  let head = (g.x + g.y * ng.x) * TEAMS + team;
  let there = head < p.count;
  let source = p.x_at + head * p.head_stride;
  let mine = team * HEAD_DIM;
  var acc = 0.0f;
  if (there) {
    for (var i = l; i < HEAD_DIM; i += 16u) {
      let v = x[source + i];
      normed[mine + i] = v;
      acc = fma_(v, v, acc);
    }
  }
  if (NORM) {
    partials[t] = acc;
    workgroupBarrier();
    if (there) {
      let factor = norm_factor(tree(team), HEAD_DIM, p.eps);
      for (var i = l; i < HEAD_DIM; i += 16u) { normed[mine + i] = (normed[mine + i] * factor) * w[i]; }
    }
  }
  workgroupBarrier();
  if (!there) { return; }
  let half = p.rotary_dim / 2u;
  let angle = p.angles_at + (head / p.heads) * p.rotary_dim;
  let to = p.out_at + head * HEAD_DIM;
  for (var i = l; i < half; i += 16u) {
    let a = normed[mine + i];
    let b = normed[mine + half + i];
    let cos = angles[angle + i];
    let sin = angles[angle + half + i];
    out[to + i] = fma_(a, cos, 0.0f - b * sin);
    out[to + half + i] = fma_(b, cos, a * sin);
  }
  for (var i = p.rotary_dim + l; i < HEAD_DIM; i += 16u) { out[to + i] = normed[mine + i]; }
}
