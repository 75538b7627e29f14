// For each row by how much its largest value leads the second largest, from the two that `top_k` found.
struct Params { rows: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> two: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x < p.rows) { out[id.x] = two[2u * id.x] - two[2u * id.x + 1u]; }
}
