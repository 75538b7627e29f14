@group(0) @binding(5) var<storage, read> start: array<f32>;
fn start_at(i: u32) -> f32 { return start[i]; }
