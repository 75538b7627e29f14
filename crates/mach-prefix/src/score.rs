//! What a snapshot is worth: `(decayed hits + 1) * tokens / bytes`, times a factor for anchors.
//!
//! Time is counted in lookups, so nothing ages while nobody asks and a clock that jumps changes nothing.

/// Lookups after which a hit counts half.
pub const HALF_LIFE: f64 = 256.0;
/// How much more warmed and system prefixes are worth.
pub const ANCHOR: f64 = 64.0;

/// Hits that fade.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hits {
    value: f64,
    at: u64,
}

impl Hits {
    /// Being new counts as one hit.
    pub fn new(now: u64) -> Self {
        Hits { value: 1.0, at: now }
    }

    /// The count at `now`.
    pub fn at(&self, now: u64) -> f64 {
        self.value * (-(now.saturating_sub(self.at) as f64) / HALF_LIFE).exp2()
    }

    /// One more.
    pub fn hit(&mut self, now: u64) {
        *self = Hits { value: self.at(now) + 1.0, at: now };
    }
}

/// The worth of `bytes` bytes that save `tokens` tokens.
pub fn value(hits: f64, tokens: usize, bytes: usize, anchor: bool) -> f64 {
    (hits + 1.0) * tokens as f64 / bytes.max(1) as f64 * if anchor { ANCHOR } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_fade_by_half() {
        let mut hits = Hits::new(10);
        assert_eq!((hits.at(10), hits.at(10 + 256)), (1.0, 0.5));
        hits.hit(266);
        assert_eq!((hits.at(266), hits.at(3)), (1.5, 1.5));
        assert!(value(1.0, 100, 10, true) > value(20.0, 100, 10, false));
        assert!(value(0.0, 200, 10, false) > value(0.0, 100, 10, false));
    }
}
