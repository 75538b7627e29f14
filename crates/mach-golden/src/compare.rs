//! Comparing rows of numbers.

/// The largest difference seen, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Extent {
    /// Largest absolute difference; NaN once a value was not a number.
    pub error: f32,
    /// Label of the place.
    pub place: String,
}

impl Default for Extent {
    fn default() -> Self {
        Self { error: 0.0, place: String::new() }
    }
}

impl Extent {
    /// Takes in another difference.
    pub fn add(&mut self, error: f32, place: impl FnOnce() -> String) {
        if !self.error.is_nan() && (error.is_nan() || error > self.error) {
            self.error = error;
            self.place = place();
        }
    }
}

/// Largest absolute difference and its index. Lists of different length, and values that are not numbers on either
/// side, give NaN, which passes no tolerance.
pub fn largest_difference(ours: &[f32], golden: &[f32]) -> (f32, usize) {
    if ours.len() != golden.len() {
        return (f32::NAN, ours.len().min(golden.len()));
    }
    let mut worst = (0.0, 0);
    for (i, (a, b)) in ours.iter().zip(golden).enumerate() {
        let difference = (a - b).abs();
        if difference.is_nan() {
            return (f32::NAN, i);
        }
        if difference > worst.0 {
            worst = (difference, i);
        }
    }
    worst
}

/// Index of the largest value; the lowest of equal ones.
pub(crate) fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in row.iter().enumerate() {
        if row.get(best).is_none_or(|b| v > b) {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_and_their_places() {
        assert_eq!(largest_difference(&[1.0, 2.0, 3.0], &[1.0, 2.5, 3.25]), (0.5, 1));
        assert!(largest_difference(&[1.0], &[1.0, 2.0]).0.is_nan());
        assert!(largest_difference(&[f32::NAN], &[1.0]).0.is_nan());
        assert!(largest_difference(&[f32::INFINITY], &[f32::INFINITY]).0.is_nan());
        let mut extent = Extent::default();
        extent.add(0.25, || "a".into());
        extent.add(0.125, || "b".into());
        assert_eq!((extent.error, extent.place.as_str()), (0.25, "a"));
        extent.add(f32::NAN, || "c".into());
        extent.add(9.0, || "d".into());
        assert!(extent.error.is_nan());
        assert_eq!(extent.place, "c");
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
    }
}
