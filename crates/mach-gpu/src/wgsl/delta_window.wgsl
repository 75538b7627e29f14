// The last `keep` rows of the window followed by the new rows become the window; a thread a channel.
struct Params { rows: u32, first_row: u32, channels: u32, keep: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> u: array<f32>;
@group(0) @binding(1) var<storage, read_write> window: array<f32>;

@compute @workgroup_size(64)
fn run(@builtin(global_invocation_id) id: vec3<u32>) {
  let c = id.x;
  if (c >= p.channels || p.rows == 0u) { return; }
  for (var i = 0u; i < p.keep; i++) {
    let row = i + p.rows;
    // Rows of the window that are read lie behind those that were written.
    if (row < p.keep) {
      window[i * p.channels + c] = window[row * p.channels + c];
    } else {
      window[i * p.channels + c] = u[(p.first_row + row - p.keep) * p.channels + c];
    }
  }
}
