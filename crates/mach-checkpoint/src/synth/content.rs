//! What fills a synthetic tensor: a function of the byte position, so that any part can be made by any thread.

use half::bf16;

/// A counter-based generator (SplitMix64): element `index` of stream `seed`.
pub(super) fn random(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The stream of a named tensor.
pub(super) fn stream(seed: u64, name: &str) -> u64 {
    let hash = blake3::Hasher::new().update(&seed.to_le_bytes()).update(name.as_bytes()).finalize();
    hash.as_bytes().first_chunk().map_or(seed, |b| u64::from_le_bytes(*b))
}

/// A standard normal value (Box-Muller).
pub(super) fn normal(seed: u64, index: u64) -> f32 {
    let unit = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let radius = (-2.0 * unit(random(seed, 2 * index)).ln()).sqrt();
    let angle = std::f64::consts::TAU * unit(random(seed, 2 * index + 1));
    (radius * angle.cos()) as f32
}

/// How scales and zero points vary along a matrix. Every scale is a power of two times at most four bits, so that
/// scale and zero point are exact in bf16 and in f16.
#[derive(Debug, Clone)]
pub(super) struct Grid {
    /// Stream of the variation.
    pub(super) seed: u64,
    /// Power of two of the scales.
    pub(super) exponent: i32,
    /// Whether the scale is multiplied by 8/8 .. 15/8 at random.
    pub(super) varied: bool,
    /// Rows of one matrix (of each, in a stack).
    pub(super) rows: usize,
    /// Groups of a row.
    pub(super) groups: usize,
    /// Leading rows of each matrix that are zero.
    pub(super) zero_rows: usize,
    /// Leading groups of each row that all have this one scale.
    pub(super) fixed: Option<(usize, f32)>,
    /// Rows from here on have [`SUPPRESSED_SCALE`] in their first group and zeros elsewhere.
    pub(super) suppressed_from: usize,
}

/// Scale in the first group of a suppressed head row.
pub(super) const SUPPRESSED_SCALE: f32 = 1.0;

impl Grid {
    /// Scale and zero point of group `index`, with `middle` the code that stands for zero.
    fn at(&self, index: usize, middle: f32) -> (f32, f32) {
        let row = index / self.groups;
        let group = index % self.groups;
        if row >= self.suppressed_from {
            // Codes 8 are zero here, code 0 is -8: only the constant columns, whose codes are 0, count.
            return if group == 0 { (SUPPRESSED_SCALE, -8.0 * SUPPRESSED_SCALE) } else { (0.0, 0.0) };
        }
        if row % self.rows < self.zero_rows {
            return (0.0, 0.0);
        }
        let scale = match self.fixed {
            Some((groups, scale)) if group < groups => scale,
            _ => {
                let step = if self.varied { 8 + (random(self.seed, index as u64) & 7) } else { 8 };
                step as f32 / 8.0 * 2f32.powi(self.exponent)
            }
        };
        (scale, -middle * scale)
    }
}

/// The contents of one tensor.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// Random bits: codes.
    Random(u64),
    /// Random 4-bit codes of rows of `words` u32; the first word of each row is `first`, and rows from `from` on are
    /// `first_after`, then 0x88888888.
    Rows { seed: u64, words: usize, first: Option<u32>, from: usize },
    /// Random 4-bit codes of matrices of so many rows of `words` u32, the leading rows of each zero.
    Codes { seed: u64, words: usize, rows: usize, zero_rows: usize },
    /// One byte over and over.
    Bytes(u8),
    /// bf16 scales.
    Scales(Grid),
    /// bf16 zero points, for codes whose zero is this.
    Biases(Grid, f32),
    /// Ready bytes, made when they are written.
    Made(Made),
}

/// A function that makes the bytes of a small tensor.
#[derive(Clone)]
pub(super) struct Made(pub(super) std::sync::Arc<dyn Fn() -> Vec<u8> + Send + Sync>);

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Made")
    }
}

impl Content {
    /// Fills `out` with the tensor's bytes from `offset` on; both are multiples of 8 except at the tensor's end.
    pub(super) fn fill(&self, offset: usize, out: &mut [u8]) {
        match self {
            Self::Random(seed) => {
                let first = (offset / 8) as u64;
                let (words, rest) = out.as_chunks_mut::<8>();
                for (word, index) in words.iter_mut().zip(first..) {
                    *word = random(*seed, index).to_le_bytes();
                }
                let tail = random(*seed, first + words.len() as u64).to_le_bytes();
                rest.copy_from_slice(&tail[..rest.len()]);
            }
            Self::Rows { seed, words, first, from } => {
                for (index, word) in (offset / 4..).zip(out.as_chunks_mut::<4>().0) {
                    let (row, column) = (index / words, index % words);
                    let value = match (row >= *from, column, first) {
                        (true, 0, _) => 0,
                        (true, ..) => 0x8888_8888,
                        (false, 0, Some(first)) => *first,
                        (false, ..) => random(*seed, index as u64) as u32,
                    };
                    *word = value.to_le_bytes();
                }
            }
            Self::Codes { seed, words, rows, zero_rows } => {
                for (index, word) in (offset / 4..).zip(out.as_chunks_mut::<4>().0) {
                    let zero = index / words % rows < *zero_rows;
                    let value = if zero { 0 } else { random(*seed, index as u64) as u32 };
                    *word = value.to_le_bytes();
                }
            }
            Self::Bytes(byte) => out.fill(*byte),
            Self::Scales(grid) => fill_halves(offset, out, |i| grid.at(i, 0.0).0),
            Self::Biases(grid, middle) => fill_halves(offset, out, |i| grid.at(i, *middle).1),
            Self::Made(made) => {
                let bytes = (made.0)();
                if let Some(part) = bytes.get(offset..offset + out.len()) {
                    out.copy_from_slice(part);
                }
            }
        }
    }
}

fn fill_halves(offset: usize, out: &mut [u8], value: impl Fn(usize) -> f32) {
    for (half, index) in out.as_chunks_mut::<2>().0.iter_mut().zip(offset / 2..) {
        *half = bf16::from_f32(value(index)).to_le_bytes();
    }
}

/// bf16 bytes of `values`.
pub(super) fn halves(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect()
}
