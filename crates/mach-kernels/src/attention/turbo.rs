//! Rotated and quantized keys and values, after TurboQuant (Zandieh, Daliri, Hadian, Mirrokni, arXiv:2504.19874).
//!
//! A vector is turned by a fixed random rotation, after which its coordinates are close to independent normal variables whatever
//! it was, so that one codebook serves all: the Lloyd-Max codebook of the normal distribution, scaled by one number for each
//! vector. Scores are products with the query rotated likewise; sums of values are rotated back once for each query.
//!
//! **Rotation.** Two rounds of random signs and a Hadamard transform, over blocks of powers of two if the head's width is none. One
//! round leaves a vector with a single large coordinate with two values only. Signs come from a counter-based generator.
//!
//! **Scale.** With `x` the rotated vector and `c` its codes' levels, the scale is `|x|^2 / <x, c>`: the reconstruction is then `x`
//! plus something orthogonal to it, so that products with it have no bias over rotations and no residual is stored.
//!
//! **Codes.** 2, 3 and 4 bits: a sign and a magnitude of the codebook. 8 bits: multiples of a 127th of the largest
//! coordinate, whose error is that of the Lloyd-Max codebook of 256 levels, without a table.
//!
//! **Row.** The scale as f32, then for every 64 coordinates, lane `i` of vector `v` being coordinate `16 v + i`: groups of 16 nibbles (8
//! bytes, the low nibble first). 2 bits: two groups, each lane `code(2 g) | code(2 g + 1) << 2`. 3 bits: the same with
//! the magnitudes, then a group with the sign of vector `v` in bit `v`. 4 bits: one group a vector. 8 bits: bytes, plus 128.

pub use mach_quant::{TurboQuant, Width};

use crate::simd::Simd;

/// Coordinates of a chunk.
pub(crate) const CHUNK: usize = 64;

/// Heads narrower than this are not worth it: the scales would take much of what the codes save.
pub const LEAST_HEAD_DIM: usize = 64;

const ROUNDS: usize = 2;
const SEED: u64 = 0x6d61_6368_2d74_7131;

/// 32-bit words of a row of keys and of a row of values.
pub(crate) fn row_words(widths: TurboQuant, head_dim: usize) -> [usize; 2] {
    [widths.keys, widths.values].map(|width| 1 + padded(head_dim) * width.bits() / 32)
}

/// Coordinates of a row with what fills its last chunk.
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(CHUNK)
}

/// Non-negative levels of the codebook that has the least mean squared error on standard normal variables: each the mean of
/// those that are nearest to it (Lloyd's condition, solved by iteration; the test below checks it).
const LEVELS_2: [f32; 2] = [0.452_780_04, 1.510_417_6];
const LEVELS_3: [f32; 4] = [0.245_094_18, 0.756_005_3, 1.343_909_3, 2.151_945_7];
const LEVELS_4: [f32; 8] = [
    0.128_395_03,
    0.388_048_3,
    0.656_759_1,
    0.942_340_46,
    1.256_231_2,
    1.618_046_4,
    2.069_017_2,
    2.732_589_6,
];

/// The rotation of a head's width.
#[derive(Debug)]
pub(crate) struct Rotation {
    dim: usize,
    /// For each round the signs, divided by the root of their block's width.
    factors: Vec<f32>,
}

impl Rotation {
    pub(crate) fn new(dim: usize) -> Self {
        let mut factors = Vec::with_capacity(ROUNDS * dim);
        for round in 0..ROUNDS {
            for (start, len) in blocks(dim) {
                let factor = 1.0 / (len as f32).sqrt();
                factors.extend((start..start + len).map(|i| {
                    let counter = (dim as u64) << 32 | (round as u64) << 24 | i as u64;
                    if mix(SEED.wrapping_add(counter)) >> 63 == 0 { factor } else { -factor }
                }));
            }
        }
        Rotation { dim, factors }
    }

    /// Rotates the first `dim` values of `x`; the others become 0.
    #[inline(always)]
    pub(crate) fn forward(&self, x: &mut [f32]) {
        let (x, rest) = x.split_at_mut(self.dim);
        for factors in self.factors.chunks_exact(self.dim) {
            x.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
            hadamard(x);
        }
        rest.fill(0.0);
    }

    /// Undoes [`forward`](Self::forward).
    #[inline(always)]
    pub(crate) fn backward(&self, x: &mut [f32]) {
        let x = &mut x[..self.dim];
        for factors in self.factors.chunks_exact(self.dim).rev() {
            hadamard(x);
            x.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
        }
    }
}

/// Powers of two that add up to `dim`: starts and lengths.
fn blocks(dim: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let len = 1usize.checked_shl((dim - start).checked_ilog2()?)?;
        start += len;
        Some((start - len, len))
    })
}

/// Steele, Lea and Flood's splitmix64.
fn mix(counter: u64) -> u64 {
    let z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Hadamard transform of each block. Every result of a step is one sum or difference, so no instruction set can differ.
#[inline(always)]
fn hadamard(x: &mut [f32]) {
    for (start, len) in blocks(x.len()) {
        let block = &mut x[start..start + len];
        let mut half = 1;
        while half < len {
            for pair in block.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
    }
}

/// Sum in the canonical shape: 16 partial sums by index modulo 16, then the tree of [`Simd::reduce_add`].
#[inline(always)]
fn sum16(terms: impl Fn(usize) -> f32, n: usize) -> f32 {
    let mut sums = [0.0f32; 16];
    for i in 0..n / 16 {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += terms(16 * i + lane);
        }
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}

/// Quantizes a rotated vector of `dim` coordinates (padded with zeros to whole chunks) into a row.
#[inline(always)]
pub(crate) fn encode(width: Width, x: &[f32], dim: usize, row: &mut [u32]) {
    let norm = sum16(|i| x[i] * x[i], x.len());
    let (first, codes) = row.split_at_mut(1);
    codes.fill(0);
    if norm == 0.0 || !norm.is_finite() {
        // Nothing stays nothing; what is no number stays none.
        first[0] = if norm == 0.0 { 0 } else { f32::NAN.to_bits() };
        return;
    }
    let levels: &[f32] = match width {
        Width::Two => &LEVELS_2,
        Width::Three => &LEVELS_3,
        Width::Four => &LEVELS_4,
        Width::Eight => &[],
    };
    let unit = match width {
        Width::Eight => 127.0 / x.iter().fold(0.0f32, |most, x| most.max(x.abs())),
        _ => (dim as f32 / norm).sqrt(),
    };
    let code = |x: f32| -> (u32, f32) {
        let u = x * unit;
        if width == Width::Eight {
            let level = u.round_ties_even();
            return ((level as i32 + 128) as u32, level);
        }
        let above = |pair: &[f32]| u32::from(u.abs() > 0.5 * (pair[0] + pair[1]));
        let magnitude: u32 = levels.windows(2).map(above).sum();
        let level = levels[magnitude as usize];
        match u < 0.0 {
            true => (magnitude | levels.len() as u32, -level),
            false => (magnitude, level),
        }
    };
    let product = sum16(|i| x[i] * code(x[i]).1, x.len());
    first[0] = (norm / product).to_bits();
    let bits = width.bits();
    for (chunk, out) in x.chunks_exact(CHUNK).zip(codes.chunks_exact_mut(CHUNK * bits / 32)) {
        for (i, &x) in chunk.iter().enumerate() {
            let (code, (vector, lane)) = (code(x).0, (i / 16, i % 16));
            let mut nibble = |group: usize, value: u32| {
                out[2 * group + lane / 8] |= value << (4 * (lane % 8));
            };
            match width {
                Width::Two => nibble(vector / 2, code << (2 * (vector % 2))),
                Width::Three => {
                    nibble(vector / 2, (code & 3) << (2 * (vector % 2)));
                    nibble(2, (code >> 2) << vector);
                }
                Width::Four => nibble(vector, code),
                Width::Eight => out[i / 4] |= code << (8 * (i % 4)),
            }
        }
    }
}

/// Values of 16 nibbles each.
struct Tables {
    /// The code in the low two bits, and in the high two.
    pairs: [[f32; 16]; 2],
    /// Signs by bit.
    signs: [[f32; 16]; 4],
    /// The whole nibble.
    four: [f32; 16],
}

const fn pair(levels: &[f32], shift: usize) -> [f32; 16] {
    let mut out = [0.0; 16];
    let mut n = 0;
    while n < 16 {
        let code = (n >> shift) & 3;
        // Two magnitudes and a sign, or four magnitudes.
        out[n] = match (levels.len(), code < 2) {
            (2, false) => -levels[code - 2],
            _ => levels[code],
        };
        n += 1;
    }
    out
}

const fn sign(bit: usize) -> [f32; 16] {
    let mut out = [1.0; 16];
    let mut n = 0;
    while n < 16 {
        if (n >> bit) & 1 == 1 {
            out[n] = -1.0;
        }
        n += 1;
    }
    out
}

const fn tables(levels: &[f32]) -> Tables {
    let mut four = [0.0; 16];
    let mut n = 0;
    while n < 16 {
        four[n] = if n < 8 { LEVELS_4[n] } else { -LEVELS_4[n - 8] };
        n += 1;
    }
    Tables { pairs: [pair(levels, 0), pair(levels, 2)], signs: [sign(0), sign(1), sign(2), sign(3)], four }
}

static TABLES_2: Tables = tables(&LEVELS_2);
static TABLES_3: Tables = tables(&LEVELS_3);

/// The scale of a row.
///
/// # Safety
/// `row` points to a row.
#[inline(always)]
pub(crate) unsafe fn scale(row: *const u32) -> f32 {
    // SAFETY: rows begin with their scale.
    f32::from_bits(unsafe { row.read() })
}

/// Levels of the 64 coordinates of a chunk.
///
/// # Safety
/// `row` points to a row of `BITS` bits that has this chunk.
#[inline(always)]
pub(crate) unsafe fn decode<S: Simd, const BITS: usize>(s: S, row: *const u32, chunk: usize) -> [S::F; 4] {
    // SAFETY: the chunk's bytes follow the scale and the chunks before it.
    unsafe {
        let at = row.add(1).cast::<u8>().add(chunk * (CHUNK * BITS / 8));
        match BITS {
            2 => {
                let (a, b) = (s.load_nibbles(at), s.load_nibbles(at.add(8)));
                let [low, high] = &TABLES_2.pairs;
                [s.lookup(low, a), s.lookup(high, a), s.lookup(low, b), s.lookup(high, b)]
            }
            3 => {
                let (a, b, c) = (s.load_nibbles(at), s.load_nibbles(at.add(8)), s.load_nibbles(at.add(16)));
                let ([low, high], signs) = (&TABLES_3.pairs, &TABLES_3.signs);
                [
                    s.mul(s.lookup(low, a), s.lookup(&signs[0], c)),
                    s.mul(s.lookup(high, a), s.lookup(&signs[1], c)),
                    s.mul(s.lookup(low, b), s.lookup(&signs[2], c)),
                    s.mul(s.lookup(high, b), s.lookup(&signs[3], c)),
                ]
            }
            4 => {
                let four = &TABLES_2.four;
                let mut out = [s.splat(0.0); 4];
                for v in 0..4 {
                    out[v] = s.lookup(four, s.load_nibbles(at.add(8 * v)));
                }
                out
            }
            _ => {
                let mut out = [s.splat(0.0); 4];
                for v in 0..4 {
                    out[v] = s.sub(s.to_float(s.load_u8(at.add(16 * v))), s.splat(128.0));
                }
                out
            }
        }
    }
}

#[cfg(test)]
mod tests;
