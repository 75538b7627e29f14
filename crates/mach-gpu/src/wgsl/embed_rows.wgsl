fn element(row: u32, col: u32) -> f32 { return weight(p.base, row, col); }
