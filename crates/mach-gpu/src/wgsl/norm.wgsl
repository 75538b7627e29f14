// out = x * (1 / sqrt(mean(x^2) + eps)) * w, a workgroup a row. Rows pass through workgroup memory, so that the sixteen
// chains, each in one thread, wait for no other memory.
struct Params { rows: u32, n: u32, x_at: u32, x_stride: u32, out_at: u32, out_stride: u32, eps: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
const CHUNK: u32 = 4096u;
var<workgroup> chunk: array<f32, CHUNK>;

@compute @workgroup_size(256)
fn run(@builtin(local_invocation_index) t: u32, @builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) ng: vec3<u32>) {
  let row = g.x + g.y * ng.x;
  if (row >= p.rows) { return; }
  let source = p.x_at + row * p.x_stride;
  var acc = 0.0f;
  for (var first = 0u; first < p.n; first += CHUNK) {
    let count = min(CHUNK, p.n - first);
    workgroupBarrier();
    for (var i = t; i < count; i += 256u) { chunk[i] = x[source + first + i]; }
    workgroupBarrier();
    if (t < 16u) {
      for (var i = t; i < count; i += 16u) {
        let v = chunk[i];
        acc = fma_(v, v, acc);
      }
    }
  }
  if (t < 16u) { partials[t] = acc; }
  workgroupBarrier();
  let factor = norm_factor(tree(0u), p.n, p.eps);
  let to = p.out_at + row * p.out_stride;
  for (var i = t; i < p.n; i += 256u) { out[to + i] = (x[source + i] * factor) * w[i]; }
}
