//! Widths of affine codes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bits of an affine code: those that MLX quantizes to, and no others. In JSON the number itself.
///
/// ```
/// use mach_quant::Bits;
/// assert_eq!(Bits::of(6), Some(Bits::B6));
/// assert_eq!(Bits::of(7), None, "no such width falls through to another");
/// assert_eq!("5".parse::<Bits>().map(Bits::get).ok(), Some(5));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub enum Bits {
    /// 4 levels.
    B2,
    /// 8 levels.
    B3,
    /// 16 levels.
    B4,
    /// 32 levels.
    B5,
    /// 64 levels.
    B6,
    /// 256 levels.
    B8,
}

/// A number of bits that no affine code has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} bits a code; known are 2, 3, 4, 5, 6 and 8")]
pub struct UnknownBits(pub u64);

impl Bits {
    /// All of them, ascending.
    pub const ALL: [Bits; 6] = [Bits::B2, Bits::B3, Bits::B4, Bits::B5, Bits::B6, Bits::B8];

    /// As a number.
    pub const fn get(self) -> usize {
        match self {
            Bits::B2 => 2,
            Bits::B3 => 3,
            Bits::B4 => 4,
            Bits::B5 => 5,
            Bits::B6 => 6,
            Bits::B8 => 8,
        }
    }

    /// The width of `bits` bits.
    pub const fn of(bits: usize) -> Option<Bits> {
        match bits {
            2 => Some(Bits::B2),
            3 => Some(Bits::B3),
            4 => Some(Bits::B4),
            5 => Some(Bits::B5),
            6 => Some(Bits::B6),
            8 => Some(Bits::B8),
            _ => None,
        }
    }

    /// The planes that tiles keep a code in: width and first bit of each. Widths are 1, 2, 4 or 8; the second plane is 0
    /// wide where one holds the whole code.
    pub const fn planes(self) -> [(usize, usize); 2] {
        match self {
            Bits::B2 => [(2, 0), (0, 2)],
            Bits::B3 => [(2, 0), (1, 2)],
            Bits::B4 => [(4, 0), (0, 4)],
            Bits::B5 => [(4, 0), (1, 4)],
            Bits::B6 => [(4, 0), (2, 4)],
            Bits::B8 => [(8, 0), (0, 8)],
        }
    }

    /// The largest code.
    pub const fn max_code(self) -> u32 {
        (1 << self.get()) - 1
    }
}

impl TryFrom<u64> for Bits {
    type Error = UnknownBits;

    fn try_from(bits: u64) -> Result<Self, UnknownBits> {
        usize::try_from(bits).ok().and_then(Bits::of).ok_or(UnknownBits(bits))
    }
}

impl FromStr for Bits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: u64 = text.parse().map_err(|e| format!("`{text}`: {e}"))?;
        Bits::try_from(number).map_err(|e| e.to_string())
    }
}

impl From<Bits> for u64 {
    fn from(bits: Bits) -> u64 {
        bits.get() as u64
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}
