//! Widths of rotated and quantized keys and values, after TurboQuant (Zandieh, Daliri, Hadian, Mirrokni,
//! arXiv:2504.19874); the arithmetic is a device's.

use std::fmt;
use std::str::FromStr;

/// Version of the codes and of the rotation: caches of another one hold other numbers.
pub const TURBOQUANT_VERSION: u32 = 1;

/// Bits of a coordinate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    /// 4 levels.
    Two,
    /// 8 levels.
    Three,
    /// 16 levels.
    Four,
    /// 255 levels.
    Eight,
}

impl Width {
    /// All of them.
    pub const ALL: [Width; 4] = [Width::Two, Width::Three, Width::Four, Width::Eight];

    /// As a number.
    pub fn bits(self) -> usize {
        match self {
            Width::Two => 2,
            Width::Three => 3,
            Width::Four => 4,
            Width::Eight => 8,
        }
    }

    fn from_digit(digit: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|width| width.bits().to_string() == digit)
    }
}

/// Widths of keys and values, written `k4v3`.
///
/// ```
/// use mach_quant::TurboQuant;
/// let same: TurboQuant = "3".parse().unwrap();
/// assert_eq!(same.to_string(), "k3v3");
/// assert!("k5v3".parse::<TurboQuant>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TurboQuant {
    /// Of keys.
    pub keys: Width,
    /// Of values.
    pub values: Width,
}

impl fmt::Display for TurboQuant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "k{}v{}", self.keys.bits(), self.values.bits())
    }
}

impl FromStr for TurboQuant {
    type Err = String;

    /// `3` for both, `k4v2` for keys and values apart.
    fn from_str(text: &str) -> Result<Self, String> {
        let apart = text.strip_prefix('k').and_then(|rest| rest.split_once('v'));
        let (keys, values) = apart.unwrap_or((text, text));
        match (Width::from_digit(keys), Width::from_digit(values)) {
            (Some(keys), Some(values)) => Ok(TurboQuant { keys, values }),
            _ => Err(format!("`{text}` is none of 2, 3, 4, 8 or kNvM with N and M out of them")),
        }
    }
}
