//! The tile layout (design section 3): 16 rows x one group of columns, codes laid out so that one 64-byte line feeds
//! 16 lanes of a byte dot product without horizontal sums.
//!
//! A tile's columns go in chunks of 32, of which each has as many lines as a code has bits. A chunk is eight quads, quad
//! `k` its columns `4 k..4 k + 4`. Codes of 2, 4 and 8 bits are one plane, others two, the low bits first:
//!
//! | bits | planes | | bits | planes |
//! |---|---|---|---|---|
//! | 2 | 2 | | 5 | 4, 1 |
//! | 3 | 2, 1 | | 6 | 4, 2 |
//! | 4 | 4 | | 8 | 8 |
//!
//! A plane of `w` bits is `w` lines, and a line holds `8 / w` quads one above the other: byte `4 r + c` of line `l` of the
//! plane has column `c` of quad `8 / w * l + q` of row `r` in its bits `w q..w q + w`. So a 4-bit code of column `8 l + c`
//! is the low nibble of a byte, that of column `8 l + 4 + c` the high one, and an 8-bit code is byte `c` of line `k`.
//!
//! After a tile's lines come its 16 scales and (affine) 16 biases. Rows are padded to 16 with zeros.

use crate::bits::Bits;
use crate::codec::{Codec, FloatType};
use crate::source::Source;

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;

/// Columns of a chunk, and its quads of four columns.
const CHUNK: usize = 32;
const QUADS: usize = CHUNK / 4;

/// Bytes of a line.
const LINE: usize = 4 * TILE_ROWS;

/// The planes of codes of `BITS` bits.
const fn planes<const BITS: usize>() -> [(usize, usize); 2] {
    match Bits::of(BITS) {
        Some(bits) => bits.planes(),
        None => panic!("no such width"),
    }
}

/// Bytes of the code lines of one tile.
pub(crate) const fn code_bytes(bits: usize, group: usize) -> usize {
    TILE_ROWS * group * bits / 8
}

/// Bytes of one tile.
pub(crate) const fn tile_bytes(codec: Codec) -> usize {
    match codec.group() {
        Some(group) => code_bytes(codec.bits(), group) + TILE_ROWS * codec.scale_bytes(),
        None => 0,
    }
}

/// Four bytes, each `1`: times a byte, that byte in all four.
const EACH: u32 = 0x0101_0101;

/// Spreads four codes of the low bits over four bytes.
#[inline]
fn spread<const BITS: usize>(x: u64) -> u32 {
    match BITS {
        4 => {
            let x = x as u32 & 0xFFFF;
            let x = (x | (x << 8)) & 0x00FF_00FF;
            (x | (x << 4)) & 0x0F0F_0F0F
        }
        8 => x as u32,
        _ => (0..4).fold(0, |all, i| all | (((x >> (BITS * i)) as u32 & ((1 << BITS) - 1)) << (8 * i))),
    }
}

/// The reverse of [`spread`].
#[inline]
fn gather<const BITS: usize>(x: u32) -> u64 {
    match BITS {
        4 => {
            let x = (x | (x >> 4)) & 0x00FF_00FF;
            u64::from((x | (x >> 8)) & 0xFFFF)
        }
        8 => u64::from(x),
        _ => (0..4).fold(0, |all, i| all | (u64::from((x >> (8 * i)) & 0xFF) << (BITS * i))),
    }
}

/// The eight quads of a row in a chunk, a byte a code, out of `4 * BITS` bytes of its packed codes; zeros if there are
/// none.
#[inline]
fn unpack<const BITS: usize>(packed: &[u8]) -> [u32; QUADS] {
    let mut quads = [0; QUADS];
    for (two, eight) in quads.chunks_exact_mut(2).zip(packed.chunks_exact(BITS)) {
        let mut bytes = [0u8; 8];
        bytes[..BITS].copy_from_slice(eight);
        let word = u64::from_le_bytes(bytes);
        two[0] = spread::<BITS>(word);
        two[1] = spread::<BITS>(word >> (4 * BITS));
    }
    quads
}

/// The reverse of [`unpack`].
#[inline]
fn pack<const BITS: usize>(quads: &[u32; QUADS], packed: &mut [u8]) {
    for (two, eight) in quads.chunks_exact(2).zip(packed.chunks_exact_mut(BITS)) {
        let word = gather::<BITS>(two[0]) | (gather::<BITS>(two[1]) << (4 * BITS));
        eight.copy_from_slice(&word.to_le_bytes()[..BITS]);
    }
}

/// Lays out the lines of a tile; each row's packed codes of this group, none for rows that are padding.
fn write_lines<const BITS: usize>(rows: &[&[u8]; TILE_ROWS], lines: &mut [u8]) {
    for (chunk, lines) in lines.chunks_exact_mut(BITS * LINE).enumerate() {
        for (r, row) in rows.iter().enumerate() {
            let at = chunk * 4 * BITS;
            let quads = unpack::<BITS>(row.get(at..at + 4 * BITS).unwrap_or_default());
            let mut line = 0;
            for (width, first) in const { planes::<BITS>() } {
                for quads in (0..width).map(|l| &quads[8 / width * l..8 / width * (l + 1)]) {
                    let mask = EACH * ((1u32 << width) - 1);
                    let word =
                        quads.iter().rev().fold(0, |all, q| (all << (width % 8)) | ((q >> first) & mask));
                    let at = line * LINE + 4 * r;
                    lines[at..at + 4].copy_from_slice(&word.to_le_bytes());
                    line += 1;
                }
            }
        }
    }
}

/// The reverse of [`write_lines`] for row `r`.
fn read_lines<const BITS: usize>(lines: &[u8], r: usize, packed: &mut [u8]) {
    for (lines, packed) in lines.chunks_exact(BITS * LINE).zip(packed.chunks_exact_mut(4 * BITS)) {
        let mut quads = [0u32; QUADS];
        let mut words = lines.chunks_exact(LINE).map(|line| word(line, r));
        for (width, first) in const { planes::<BITS>() } {
            for l in 0..width {
                let mask = EACH * ((1u32 << width) - 1);
                let word = words.next().unwrap_or(0);
                for q in 0..8 / width {
                    quads[8 / width * l + q] |= ((word >> (width * q)) & mask) << first;
                }
            }
        }
        pack::<BITS>(&quads, packed);
    }
}

fn word(bytes: &[u8], i: usize) -> u32 {
    match bytes.get(4 * i..4 * i + 4) {
        Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// Packs the tile of `row_tile` and `group` into `out`, which has `tile_bytes` bytes and is overwritten whole.
pub(crate) fn pack_tile(source: &Source<'_>, row_tile: usize, group: usize, out: &mut [u8]) {
    let codec = source.codec();
    let columns = codec.group().unwrap_or(1);
    let (lines, tail) = out.split_at_mut(code_bytes(codec.bits(), columns));
    let first = row_tile * TILE_ROWS;
    let rows = TILE_ROWS.min(source.rows().saturating_sub(first));
    if rows < TILE_ROWS {
        tail.fill(0);
    }
    // This group's codes of each row; none for rows that are padding.
    let group_bytes = columns * codec.bits() / 8;
    let codes: [&[u8]; TILE_ROWS] = std::array::from_fn(|r| {
        let row = if r < rows { source.weight_row(first + r) } else { &[] };
        row.get(group * group_bytes..(group + 1) * group_bytes).unwrap_or_default()
    });
    match codec.code_bits() {
        None => {}
        Some(Bits::B2) => write_lines::<2>(&codes, lines),
        Some(Bits::B3) => write_lines::<3>(&codes, lines),
        Some(Bits::B4) => write_lines::<4>(&codes, lines),
        Some(Bits::B5) => write_lines::<5>(&codes, lines),
        Some(Bits::B6) => write_lines::<6>(&codes, lines),
        Some(Bits::B8) => write_lines::<8>(&codes, lines),
    }
    for r in 0..rows {
        match codec.stored() {
            Codec::Affine { scales, .. } => {
                write_scale(scales, tail, r, source.scale(first + r, group));
                write_scale(scales, tail, TILE_ROWS + r, source.bias(first + r, group));
            }
            Codec::Mxfp4 => tail[r] = source.scale_row(first + r)[group],
            _ => {}
        }
    }
}

/// Writes element `i`; a bf16 value passes through f32 unchanged.
fn write_scale(float: FloatType, out: &mut [u8], i: usize, value: f32) {
    match float {
        FloatType::Bf16 => {
            out[2 * i..2 * i + 2].copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
        }
        FloatType::F32 | FloatType::F16 => out[4 * i..4 * i + 4].copy_from_slice(&value.to_le_bytes()),
    }
}

/// The codes of row `r` of a tile as one packed bit string, in the first `group * bits / 8` bytes.
fn row_codes(codec: Codec, lines: &[u8], r: usize) -> [u8; 128] {
    let mut packed = [0u8; 128];
    match codec.code_bits() {
        None => {}
        Some(Bits::B2) => read_lines::<2>(lines, r, &mut packed),
        Some(Bits::B3) => read_lines::<3>(lines, r, &mut packed),
        Some(Bits::B4) => read_lines::<4>(lines, r, &mut packed),
        Some(Bits::B5) => read_lines::<5>(lines, r, &mut packed),
        Some(Bits::B6) => read_lines::<6>(lines, r, &mut packed),
        Some(Bits::B8) => read_lines::<8>(lines, r, &mut packed),
    }
    packed
}

/// The scale of row `r`, as stored, and for affine codes its bias, from what follows a tile's lines.
fn row_scales(codec: Codec, tail: &[u8], r: usize) -> (&[u8], &[u8]) {
    match codec {
        Codec::Affine { scales, .. } => {
            let n = scales.size();
            (&tail[r * n..(r + 1) * n], &tail[(TILE_ROWS + r) * n..(TILE_ROWS + r + 1) * n])
        }
        _ => (&tail[r..r + 1], &[]),
    }
}

/// Decodes row `r` (0..16) of a tile into `out` (one group of columns).
pub(crate) fn decode_tile_row(codec: Codec, tile: &[u8], r: usize, out: &mut [f32]) {
    let (lines, tail) = tile.split_at(code_bytes(codec.bits(), codec.group().unwrap_or(1)));
    let packed = row_codes(codec, lines, r);
    let (s, b) = row_scales(codec, tail, r);
    match codec {
        Codec::Affine { bits, group, scales } => {
            crate::decode::affine_row(bits, group, scales, &packed, s, b, out);
        }
        Codec::Mxfp4 => crate::decode::mxfp4_row(&packed, s, out),
        _ => {}
    }
}

/// Writes row `r` of a row of tiles in row-major order: codes, then scales, then biases.
pub(crate) fn untile_row(codec: Codec, tiles: &[u8], r: usize, out: &mut [u8]) {
    let Some(group) = codec.group() else { return };
    let code_len = group * codec.bits() / 8;
    let groups = tiles.len() / tile_bytes(codec);
    let (weight, rest) = out.split_at_mut(groups * code_len);
    for (g, tile) in tiles.chunks_exact(tile_bytes(codec)).enumerate() {
        let (lines, tail) = tile.split_at(code_bytes(codec.bits(), group));
        weight[g * code_len..(g + 1) * code_len].copy_from_slice(&row_codes(codec, lines, r)[..code_len]);
        let (s, b) = row_scales(codec, tail, r);
        rest[g * s.len()..(g + 1) * s.len()].copy_from_slice(s);
        let biases = groups * s.len();
        rest[biases + g * b.len()..biases + (g + 1) * b.len()].copy_from_slice(b);
    }
}
