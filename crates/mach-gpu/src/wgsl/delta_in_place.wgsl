fn start_at(i: u32) -> f32 { return matrices[i]; }
