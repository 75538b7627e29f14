//! How often a drafted token is right, by how sure the draft was of it.

/// Margins, in logits, at which a bin ends.
const EDGES: [f32; 11] = [0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
/// How much an old token counts beside the next one of its bin.
const MEMORY: f64 = 0.99;
/// Tokens that the first guess counts for.
const PRIOR: f64 = 6.0;

/// Counts of verified tokens, and of those that the target chose, by the margin of the draft's best logit over its
/// second.
#[derive(Debug, Clone)]
pub(super) struct Calibration {
    bins: [(f64, f64); EDGES.len() + 1],
}

impl Default for Calibration {
    fn default() -> Self {
        let middle = |i: usize| {
            let low = if i == 0 { 0.0 } else { f64::from(EDGES[i - 1]) };
            let high = EDGES.get(i).copied().map_or(low, f64::from);
            (low + high) / 2.0
        };
        let guess = |i| 1.0 - 0.6 * (-0.4 * middle(i)).exp();
        Calibration { bins: std::array::from_fn(|i| (PRIOR, PRIOR * guess(i))) }
    }
}

fn bin(margin: f32) -> usize {
    EDGES.iter().take_while(|&&edge| margin >= edge).count()
}

impl Calibration {
    /// Takes in a token that was verified, all before it having been right.
    pub(super) fn record(&mut self, margin: f32, right: bool) {
        let (seen, hits) = &mut self.bins[bin(margin)];
        (*seen, *hits) = (*seen * MEMORY + 1.0, *hits * MEMORY + f64::from(u8::from(right)));
    }

    /// The chance that the target chooses a token.
    pub(super) fn chance(&self, margin: f32) -> f64 {
        let (seen, hits) = self.bins[bin(margin)];
        hits / seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learns_how_sure_is_sure() {
        let mut calibration = Calibration::default();
        let chances: Vec<f64> = [0.0, 0.7, 2.5, 7.0, 1e9].map(|m| calibration.chance(m)).into();
        assert!(chances.is_sorted() && chances[0] < 0.5 && chances[4] > 0.9, "{chances:?}");
        for i in 0..200 {
            calibration.record(0.1, i % 10 == 0);
            calibration.record(7.0, true);
        }
        assert!((calibration.chance(0.2) - 0.1).abs() < 0.05);
        assert!(calibration.chance(6.5) > 0.97);
        assert_eq!(calibration.chance(f32::NAN), calibration.chance(0.0));
    }
}
