//! Numbers with all their digits.

use std::cmp::Ordering;

use serde_json::Number;

/// Digits beyond which a number is not written out.
const LONGEST: usize = 400;

/// A decimal number, exact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decimal {
    pub(super) negative: bool,
    /// Digits before the point, without zeros in front: none for zero.
    pub(super) whole: Vec<u8>,
    /// Digits behind the point, without zeros at the end.
    pub(super) part: Vec<u8>,
}

impl Decimal {
    pub(super) fn zero() -> Self {
        Self { negative: false, whole: Vec::new(), part: Vec::new() }
    }

    /// A number as JSON has it; `None` if it has too many digits.
    pub(super) fn of(number: &Number) -> Option<Self> {
        Self::parse(&number.to_string())
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (text, 0),
        };
        let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits: Vec<u8> = whole.bytes().chain(part.bytes()).collect();
        if digits.len() > LONGEST || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let point = exponent.checked_add(i64::try_from(whole.len()).ok()?)?;
        if point.unsigned_abs() > LONGEST as u64 {
            return None;
        }
        let (mut whole, mut part) = if point < 0 {
            let zeros = vec![b'0'; point.unsigned_abs() as usize];
            (Vec::new(), [zeros, digits].concat())
        } else {
            let mut digits = digits;
            let point = point as usize;
            if digits.len() < point {
                digits.resize(point, b'0');
            }
            let part = digits.split_off(point);
            (digits, part)
        };
        let zeros = whole.iter().take_while(|&&d| d == b'0').count();
        whole.drain(..zeros);
        while part.last() == Some(&b'0') {
            part.pop();
        }
        let negative = negative && !(whole.is_empty() && part.is_empty());
        Some(Self { negative, whole, part })
    }

    /// A whole number of these digits.
    pub(super) fn whole(negative: bool, digits: &str) -> Self {
        let whole = digits.bytes().skip_while(|&d| d == b'0').collect();
        Self { negative, whole, part: Vec::new() }
    }

    pub(super) fn is_zero(&self) -> bool {
        self.whole.is_empty() && self.part.is_empty()
    }

    pub(super) fn is_whole(&self) -> bool {
        self.part.is_empty()
    }

    pub(super) fn negated(mut self) -> Self {
        self.negative = !self.negative && !self.is_zero();
        self
    }

    fn compare_size(&self, other: &Self) -> Ordering {
        let whole = self.whole.len().cmp(&other.whole.len()).then_with(|| self.whole.cmp(&other.whole));
        whole.then_with(|| self.part.cmp(&other.part))
    }

    /// The whole number at or below it if it is positive, at or above it if it is negative.
    pub(super) fn truncated(&self) -> Self {
        let negative = self.negative && !self.whole.is_empty();
        Self { negative, whole: self.whole.clone(), part: Vec::new() }
    }

    /// One more, away from zero.
    pub(super) fn further(&self) -> Self {
        let mut whole = self.whole.clone();
        for digit in whole.iter_mut().rev() {
            if *digit < b'9' {
                *digit += 1;
                return Self { negative: self.negative, whole, part: Vec::new() };
            }
            *digit = b'0';
        }
        whole.insert(0, b'1');
        Self { negative: self.negative, whole, part: Vec::new() }
    }

    /// One less, towards zero.
    pub(super) fn nearer(&self) -> Self {
        let mut whole = self.whole.clone();
        for digit in whole.iter_mut().rev() {
            if *digit > b'0' {
                *digit -= 1;
                break;
            }
            *digit = b'9';
        }
        let zeros = whole.iter().take_while(|&&d| d == b'0').count();
        whole.drain(..zeros);
        Self { negative: self.negative && !whole.is_empty(), whole, part: Vec::new() }
    }

    /// Whether it is a whole multiple of another; `None` if that takes too many digits.
    pub(super) fn is_multiple_of(&self, other: &Self) -> Option<bool> {
        let places = self.part.len().max(other.part.len());
        let (own, other) = (self.scaled(places)?, other.scaled(places)?);
        Some(other != 0 && own % other == 0)
    }

    /// The number times a power of ten.
    pub(super) fn scaled(&self, places: usize) -> Option<i128> {
        let zeros = places.checked_sub(self.part.len())?;
        let whole = [&self.whole[..], &self.part[..], &vec![b'0'; zeros][..]].concat();
        Self { negative: self.negative, whole, part: Vec::new() }.to_i128()
    }

    /// As a number of the machine, if it is one.
    pub(super) fn to_i128(&self) -> Option<i128> {
        if !self.is_whole() || self.whole.len() > 38 {
            return None;
        }
        let size = self
            .whole
            .iter()
            .try_fold(0i128, |all, d| all.checked_mul(10)?.checked_add(i128::from(d - b'0')))?;
        Some(if self.negative { -size } else { size })
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.negative, other.negative) {
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => self.compare_size(other),
            (true, true) => other.compare_size(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_with_all_digits() {
        let of = |text: &str| Decimal::parse(text).unwrap();
        assert_eq!(of("1234567890123456789").to_i128(), Some(1_234_567_890_123_456_789));
        assert_eq!(of("-9223372036854775808").to_i128(), Some(i128::from(i64::MIN)));
        assert_eq!((of("1e3"), of("1.50")), (of("1000"), of("1.5")));
        assert_eq!((of("-0.0"), of("2.0").is_whole()), (Decimal::zero(), true));
        assert_eq!(of("1.5e-3"), of("0.0015"));
        assert!(of("-2") < of("-1.5") && of("0.1") < of("0.11") && of("9") < of("10"));
        assert_eq!(
            (of("99").further(), of("100").nearer(), of("1").nearer()),
            (of("100"), of("99"), of("0"))
        );
        assert_eq!(Decimal::parse("1e9999"), None);
    }
}
