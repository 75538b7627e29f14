//! Products with quantized tiles, as WGSL made for an encoding.
//!
//! A workgroup has a strip of 16 weight rows. A lane takes the codes of four of them in one tile at a time: integer dot
//! products, then the group's term; sixteen lanes an activation row chain the terms, groups ascending, as
//! `mach_kernels::linear` does. The integers have no order, the chain is the contract's.

use std::fmt::Write;

use mach_quant::{Codec, FloatType, MatrixLayout};

/// Groups whose terms lie in the workgroup's memory at once.
pub(crate) const CHUNK: usize = 64;

/// An encoding that the shaders know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tiles(Codec);

impl Tiles {
    /// The shaders' form of a layout in tiles; `None` for rows.
    pub(crate) fn of(layout: &MatrixLayout) -> Option<Tiles> {
        match (layout.order, layout.codec) {
            (mach_quant::Order::Tiles, codec @ (Codec::Affine { .. } | Codec::Mxfp4)) => Some(Tiles(codec)),
            _ => None,
        }
    }

    /// Columns of a group.
    pub(crate) fn group(self) -> usize {
        self.0.group().unwrap_or(32)
    }

    /// Lines of 64 bytes of a tile's codes.
    fn lines(self) -> usize {
        self.group() / 32 * self.0.bits()
    }

    /// 16-byte words of a tile.
    fn words(self) -> usize {
        4 * self.lines()
            + match self.0 {
                Codec::Affine { scales: FloatType::Bf16, .. } => 4,
                Codec::Affine { .. } => 8,
                _ => 1,
            }
    }

    fn unsigned_bytes(self) -> bool {
        self.0.bits() == 8
    }

    /// Statements that leave in `c` quad `k` of the chunk whose lines are `l0`, `l1` and so on.
    fn quad(self, out: &mut String, k: usize) {
        let planes = self.0.code_bits().map_or([(4, 0), (0, 0)], mach_quant::Bits::planes);
        let mut parts = Vec::new();
        let mut before = 0;
        for (width, to) in planes.into_iter().filter(|(width, _)| *width > 0) {
            let stacked = 8 / width;
            let line = before + k / stacked;
            before += width;
            let shift = width * (k % stacked);
            let mask = 0x0101_0101u32.wrapping_mul((1u32 << width).wrapping_sub(1) & 0xff);
            let mut part = format!("l{line}");
            if shift > 0 {
                part = format!("({part} >> vec4<u32>({shift}u))");
            }
            if width < 8 {
                part = format!("({part} & vec4<u32>({mask:#x}u))");
            }
            if to > 0 {
                part = format!("({part} << vec4<u32>({to}u))");
            }
            parts.push(part);
        }
        let codes = parts.join(" | ");
        let _ = match self.0 {
            // Signed bytes are 128 less; the group's sum of activations puts that right.
            _ if self.unsigned_bytes() => writeln!(out, "c = ({codes}) ^ vec4<u32>(0x80808080u);"),
            Codec::Mxfp4 => writeln!(out, "c = e2m1_twice_plus_12({codes});"),
            _ => writeln!(out, "c = {codes};"),
        };
    }

    /// Statements that leave the four rows' terms of tile `base` with activation rows `0..m` in `t0`, `t1` and so on;
    /// `a` begins at `at{i}` for row `i`, `xs` at `sum{i}`.
    fn terms(self, out: &mut String, m: usize) {
        let chunk_lines = self.0.bits();
        for i in 0..m {
            let _ = writeln!(out, "var d{i} = vec4<i32>(0);");
        }
        let _ = writeln!(out, "var c: vec4<u32>;");
        for chunk in 0..self.group() / 32 {
            let _ = writeln!(out, "{{");
            for line in 0..chunk_lines {
                let at = 4 * (chunk * chunk_lines + line);
                let _ = writeln!(out, "let l{line} = w[base + {at}u + quad];");
            }
            for i in 0..m {
                for half in 0..2 {
                    let at = 2 * chunk + half;
                    let _ = writeln!(out, "let a{i}{half} = a[at{i} + {at}u];");
                }
            }
            for k in 0..8 {
                self.quad(out, k);
                let word = ["x", "y", "z", "w"][k % 4];
                for i in 0..m {
                    let x = format!("a{i}{}.{word}", k / 4);
                    let _ = writeln!(
                        out,
                        "d{i} += vec4<i32>(dot4I8Packed(c.x, {x}), dot4I8Packed(c.y, {x}), \
                         dot4I8Packed(c.z, {x}), dot4I8Packed(c.w, {x}));"
                    );
                }
            }
            let _ = writeln!(out, "}}");
        }
        let tail = 4 * self.lines();
        let _ = match self.0 {
            Codec::Affine { scales: FloatType::Bf16, .. } => writeln!(
                out,
                "let sw = w[base + {tail}u + (quad >> 1u)];\n\
                 let bw = w[base + {}u + (quad >> 1u)];\n\
                 let odd = (quad & 1u) == 1u;\n\
                 let scale = four_bf16(select(sw.xy, sw.zw, odd));\n\
                 let bias = four_bf16(select(bw.xy, bw.zw, odd));",
                tail + 2
            ),
            Codec::Affine { .. } => writeln!(
                out,
                "let scale = bitcast<vec4<f32>>(w[base + {tail}u + quad]);\n\
                 let bias = bitcast<vec4<f32>>(w[base + {}u + quad]);",
                tail + 4
            ),
            _ => writeln!(out, "let scale = four_e8m0(w[base + {tail}u][quad]);"),
        };
        for i in 0..m {
            let _ = writeln!(out, "let s{i} = xs[sum{i}].y;");
            let sum = if self.unsigned_bytes() {
                format!("d{i} + vec4<i32>(128 * i32(s{i}))")
            } else {
                format!("d{i}")
            };
            let _ = writeln!(out, "let f{i} = vec4<f32>({sum});");
            let _ = match self.0 {
                Codec::Mxfp4 => writeln!(out, "let t{i} = scale * (f{i} - vec4<f32>(12.0 * s{i}));"),
                _ => writeln!(out, "let t{i} = fma4(scale, f{i}, bias * s{i});"),
            };
        }
    }

    /// What multiplies the activations' scale.
    fn factor(self) -> &'static str {
        if self.0 == Codec::Mxfp4 { "0.5 * " } else { "" }
    }

    /// The shader: `m` activation rows, `threads` lanes. `place` sets `strip` (first word of the workgroup's strip),
    /// `first_row` (its first weight row), `row` (first activation row), `rows` (how many of the `m` are there) and `to`
    /// (where output `(0, 0)` of the strip goes).
    pub(crate) fn shader(self, m: usize, threads: usize, place: &str) -> String {
        let lanes = threads / 4;
        let (group_words, words) = (self.group() / 16, self.words());
        let mut s = String::new();
        let _ = write!(
            s,
            "var<workgroup> terms: array<f32, {}>;\n\
             @compute @workgroup_size({threads})\n\
             fn run(@builtin(local_invocation_index) li: u32, @builtin(workgroup_id) wg: vec3<u32>) {{\n\
             let quad = li & 3u;\nlet groups = p.groups;\nvar strip: u32; var first_row: u32; var row: u32; var rows: u32; var to: u32;\n\
             {place}\n\
             let mine = li >> 4u;\nlet r = li & 15u;\nvar y = 0.0;\n\
             for (var first = 0u; first < groups; first += {CHUNK}u) {{\n\
             let last = min(first + {CHUNK}u, groups);\n\
             for (var g = first + (li >> 2u); g < last; g += {lanes}u) {{\n\
             let base = strip + g * {words}u;\n",
            CHUNK * 16 * m
        );
        for i in 0..m {
            // Rows that are not there repeat the last one; what comes of them is not stored.
            let _ = writeln!(
                s,
                "let x{i} = row + min({i}u, rows - 1u);\n\
                 let at{i} = (x{i} * groups + g) * {group_words}u;\nlet sum{i} = x{i} * groups + g;"
            );
        }
        self.terms(&mut s, m);
        for i in 0..m {
            let _ = writeln!(s, "let to{i} = ((g - first) * {m}u + {i}u) * 16u + quad * 4u;");
            for r in 0..4 {
                let _ = writeln!(s, "terms[to{i} + {r}u] = t{i}[{r}];");
            }
        }
        let _ = write!(
            s,
            "}}\nworkgroupBarrier();\n\
             if (mine < {m}u) {{\n\
             let begin = (row + min(mine, rows - 1u)) * groups;\n\
             for (var g = first; g < last; g++) {{\n\
             y = fma_(terms[((g - first) * {m}u + mine) * 16u + r], {}xs[begin + g].x, y);\n\
             }}\n}}\nworkgroupBarrier();\n}}\n\
             if (mine < rows && first_row + r < p.rows) {{ out[to + mine * p.stride + r] = y; }}\n}}\n",
            self.factor()
        );
        s
    }

    /// A function that decodes one element of a matrix of words `w` that begins at `p.base` and has `p.cols` columns.
    pub(crate) fn element(self) -> String {
        let (group, tile, lines) = (self.group(), 4 * self.words(), 16 * self.lines());
        let bits = self.0.bits();
        let mut s = format!(
            "fn element(row: u32, col: u32) -> f32 {{\n\
             let g = col / {group}u;\nlet c = col % {group}u;\nlet r = row % 16u;\n\
             let tile = p.base + (row / 16u * (p.cols / {group}u) + g) * {tile}u;\n\
             let k = c % 32u / 4u;\nlet byte = 8u * (c % 4u);\n\
             let chunk = tile + c / 32u * {}u + r;\nvar code = 0u;\n",
            16 * bits
        );
        let planes = self.0.code_bits().map_or([(4, 0), (0, 0)], mach_quant::Bits::planes);
        let mut before = 0;
        for (width, to) in planes.into_iter().filter(|(width, _)| *width > 0) {
            let stacked = 8 / width;
            let mask = (1u32 << width) - 1;
            let _ = writeln!(
                s,
                "code |= ((w[chunk + ({before}u + k / {stacked}u) * 16u] >> (byte + {width}u * (k % {stacked}u))) & {mask}u) << {to}u;"
            );
            before += width;
        }
        let half = "select(w[at + r / 2u] << 16u, w[at + r / 2u] & 0xffff0000u, (r & 1u) == 1u)";
        let _ = match self.0 {
            Codec::Affine { scales: FloatType::Bf16, .. } => write!(
                s,
                "var at = tile + {lines}u;\nlet scale = bitcast<f32>({half});\nat += 8u;\n\
                 let bias = bitcast<f32>({half});\nreturn fma_(f32(code), scale, bias);\n}}\n"
            ),
            Codec::Affine { .. } => write!(
                s,
                "return fma_(f32(code), bitcast<f32>(w[tile + {lines}u + r]), bitcast<f32>(w[tile + {}u + r]));\n}}\n",
                lines + 16
            ),
            _ => write!(
                s,
                "let twice = f32(i32(e2m1_twice_plus_12(vec4<u32>(code)).x & 255u) - 12);\n\
                 let e = (w[tile + {lines}u + r / 4u] >> (8u * (r % 4u))) & 255u;\n\
                 let value = (0.5 * abs(twice)) * bitcast<f32>(e << 23u);\n\
                 return bitcast<f32>(bitcast<u32>(value) | ((code & 8u) << 28u));\n}}\n"
            ),
        };
        s
    }
}
