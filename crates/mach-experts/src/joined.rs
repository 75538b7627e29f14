//! The CRC32C of a whole from those of its parts.
//!
//! A checksum is a polynomial over two elements, reduced by one of degree 32. Bytes that follow multiply it by a power of `x`, for
//! parts of one length always by the same: a table made once, and eight looks into it for each part.

/// The polynomial of CRC32C, its lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `x` to the power of eight times two to the power of the place: what 1, 2, 4... bytes multiply by.
const BYTES: [u32; 64] = {
    // x to the eighth.
    let mut powers = [1 << (31 - 8); 64];
    let mut at = 1;
    while at < 64 {
        powers[at] = product(powers[at - 1], powers[at - 1]);
        at += 1;
    }
    powers
};

const fn times_x(a: u32) -> u32 {
    (a >> 1) ^ if a & 1 == 1 { POLYNOMIAL } else { 0 }
}

const fn product(a: u32, b: u32) -> u32 {
    let (mut out, mut shifted, mut bit) = (0, b, 1u32 << 31);
    while bit != 0 {
        if a & bit != 0 {
            out ^= shifted;
        }
        shifted = times_x(shifted);
        bit >>= 1;
    }
    out
}

/// Joins the checksum of some bytes with that of `len` more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    len: usize,
    /// What each four bits of a checksum become.
    tables: [[u32; 16]; 8],
}

impl Join {
    /// For second parts of `len` bytes.
    pub fn new(len: usize) -> Self {
        let bits = BYTES.iter().enumerate().filter(|(at, _)| len >> at & 1 == 1);
        // In this notation the highest bit is the number one.
        let mut power = bits.fold(1 << 31, |all, (_, &power)| product(all, power));
        let mut tables = [[0; 16]; 8];
        for table in tables.iter_mut().rev() {
            for bit in (0..4).rev() {
                for (value, out) in table.iter_mut().enumerate() {
                    *out ^= if value >> bit & 1 == 1 { power } else { 0 };
                }
                power = times_x(power);
            }
        }
        Self { len, tables }
    }

    /// The length of second parts.
    pub fn second(&self) -> usize {
        self.len
    }

    /// The checksum of both parts.
    pub fn join(&self, first: u32, second: u32) -> u32 {
        let tables = self.tables.iter().enumerate();
        tables.fold(second, |all, (at, table)| all ^ table[(first >> (4 * at) & 15) as usize])
    }
}

/// The checksum of a whole that was cut into parts of `part` bytes, the last of which may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    part: usize,
    whole: usize,
    full: Join,
    last: Join,
}

impl Parts {
    /// For `whole` bytes in parts of `part`, which is not 0.
    pub fn new(whole: usize, part: usize) -> Self {
        let rest = match whole % part.max(1) {
            0 => part,
            rest => rest,
        };
        let full = Join::new(part);
        let last = if rest == part { full.clone() } else { Join::new(rest) };
        Self { part, whole, full, last }
    }

    /// Whether it is for such wholes in such parts.
    pub fn fits(&self, whole: usize, part: usize) -> bool {
        (self.whole, self.part) == (whole, part)
    }

    /// The checksum of the whole, from those of its parts in their order.
    pub fn whole(&self, sums: impl Iterator<Item = u32>) -> u32 {
        let count = self.whole.div_ceil(self.part.max(1));
        let join = |at: usize| if at + 1 == count { &self.last } else { &self.full };
        sums.take(count).enumerate().fold(0, |all, (at, sum)| join(at).join(all, sum))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(bytes: &[u8], part: usize) -> u32 {
        let sums: Vec<u32> = bytes.chunks(part).map(crc32c::crc32c).collect();
        Parts::new(bytes.len(), part).whole(sums.into_iter())
    }

    #[test]
    fn parts_have_the_checksum_of_the_whole() {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| ((i * i) >> 3) as u8).collect();
        for part in [1, 7, 625, 4096, 9_999, 10_000, 20_000] {
            assert_eq!(whole(&bytes, part), crc32c::crc32c(&bytes), "{part}");
        }
        assert_eq!((whole(&[], 8), Join::new(4096).second()), (0, 4096));
        for len in [0, 1, 4096, 1 << 20, 123_456_789] {
            let combined = crc32c::crc32c_combine(0x1234_5678, 0x9abc_def0, len);
            // The library says that nothing is joined with nothing.
            let expected = if len == 0 { 0x1234_5678 ^ 0x9abc_def0 } else { combined };
            assert_eq!(Join::new(len).join(0x1234_5678, 0x9abc_def0), expected, "{len}");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_seen() {
        let mut bytes = vec![0x5au8; 1024];
        let good = whole(&bytes, 100);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(whole(&bytes, 100), good, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(whole(&bytes, 100), good);
    }

    proptest! {
        #[test]
        fn any_cut_is_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..3000), part in 1usize..400) {
            prop_assert_eq!(whole(&bytes, part), crc32c::crc32c(&bytes));
        }
    }
}
