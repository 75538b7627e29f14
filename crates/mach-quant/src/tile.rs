//! The tile layout (design section 3): 16 rows x one group of columns, codes laid out so that one 64-byte line feeds
//! 16 lanes of a byte dot product without horizontal sums.
//!
//! 4-bit codes: byte `4 r + c` of line `l` holds column `8 l + c` of row `r` in its low nibble and column `8 l + 4 + c`
//! in its high nibble. 8-bit codes: byte `4 r + c` of line `l` holds column `4 l + c`. After a tile's lines come its
//! 16 scales and (affine) 16 biases. Rows are padded to 16 with zeros.

use crate::codec::{Codec, FloatType};
use crate::source::Source;

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;

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

/// Spreads four nibbles of the low 16 bits over four bytes.
#[inline]
fn spread(x: u32) -> u32 {
    let x = (x | (x << 8)) & 0x00FF_00FF;
    (x | (x << 4)) & 0x0F0F_0F0F
}

/// Gathers the low nibbles of four bytes into 16 bits.
#[inline]
fn gather(x: u32) -> u32 {
    let x = (x | (x >> 4)) & 0x00FF_00FF;
    (x | (x >> 8)) & 0x0000_FFFF
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
    // This group's codes of each row, as words; none for rows that are padding.
    let group_bytes = columns * codec.bits() / 8;
    let codes: [&[[u8; 4]]; TILE_ROWS] = std::array::from_fn(|r| {
        let row = if r < rows { source.weight_row(first + r) } else { &[] };
        row.get(group * group_bytes..(group + 1) * group_bytes).unwrap_or_default().as_chunks().0
    });
    for (l, line) in lines.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let mut words = [0u32; TILE_ROWS];
        for (word, row) in words.iter_mut().zip(&codes) {
            *word = row.get(l).map_or(0, |&bytes| u32::from_le_bytes(bytes));
        }
        if codec.bits() == 4 {
            for word in &mut words {
                *word = spread(*word & 0xFFFF) | (spread(*word >> 16) << 4);
            }
        }
        for (out, word) in line.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *out = word.to_le_bytes();
        }
    }
    for r in 0..rows {
        match codec.stored() {
            Codec::Affine { scales, .. } => {
                write_scale(scales, tail, r, source.scale(first + r, group));
                write_scale(scales, tail, TILE_ROWS + r, source.bias(first + r, group));
            }
            Codec::Mxfp4 => tail[r] = source.scale_row(first + r)[group],
            Codec::Dense(_) => {}
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
    let words = codec.group().unwrap_or(1) * codec.bits() / 32;
    let mut packed = [0u8; 128];
    for (l, out) in packed.chunks_exact_mut(4).enumerate().take(words) {
        let w = word(lines, l * 16 + r);
        let original = if codec.bits() == 4 {
            gather(w & 0x0F0F_0F0F) | (gather((w >> 4) & 0x0F0F_0F0F) << 16)
        } else {
            w
        };
        out.copy_from_slice(&original.to_le_bytes());
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
        Codec::Dense(_) => {}
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
