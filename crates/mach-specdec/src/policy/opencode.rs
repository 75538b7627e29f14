//! `opencode-sampled-v1`: small blocks while little is accepted.

use std::collections::VecDeque;

use super::{ALPHA_THRESHOLD, ALPHA_WINDOW, BlockPolicy, Cycle, DEFAULT_BLOCK, LOW_BLOCK};

/// Alpha is the mean of accepted / proposed over the last [`ALPHA_WINDOW`] cycles (as many as there were); below
/// [`ALPHA_THRESHOLD`] the next block has [`LOW_BLOCK`] rows, otherwise [`DEFAULT_BLOCK`].
#[derive(Debug)]
pub struct OpencodeSampledV1 {
    window: VecDeque<f64>,
    most: usize,
}

impl OpencodeSampledV1 {
    /// For a proposer whose blocks have at most `most` rows.
    pub fn new(most: usize) -> Self {
        Self { window: VecDeque::with_capacity(ALPHA_WINDOW), most }
    }
}

impl BlockPolicy for OpencodeSampledV1 {
    fn block(&mut self) -> usize {
        if self.low() { LOW_BLOCK.min(self.most) } else { DEFAULT_BLOCK.min(self.most) }
    }

    fn record(&mut self, cycle: &Cycle) {
        if cycle.proposed > 0 {
            if self.window.len() == ALPHA_WINDOW {
                self.window.pop_front();
            }
            self.window.push_back(cycle.accepted as f64 / cycle.proposed as f64);
        }
    }

    fn low(&self) -> bool {
        !self.window.is_empty()
            && self.window.iter().sum::<f64>() / (self.window.len() as f64) < ALPHA_THRESHOLD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_mean_of_four_cycles() {
        let mut policy = OpencodeSampledV1::new(32);
        let mut step = |proposed, accepted| {
            policy.record(&Cycle { proposed, accepted, ..Cycle::default() });
            policy.block()
        };
        assert_eq!(step(0, 0), 16, "plain cycles say nothing");
        assert_eq!(step(15, 15), 16);
        assert_eq!(step(15, 0), 16); // 0.5
        assert_eq!(step(15, 0), 4); // 0.33
        assert_eq!(step(3, 3), 16); // 0.5
        assert_eq!(step(15, 9), 16); // the first left the window: (0 + 0 + 1 + 0.6) / 4 = 0.4, not below
        assert_eq!(step(15, 0), 16); // (0 + 1 + 0.6 + 0) / 4
        assert_eq!(step(15, 0), 16); // (1 + 0.6 + 0 + 0) / 4
        assert_eq!(step(15, 0), 4); // 0.15
        assert_eq!(OpencodeSampledV1::new(8).block(), 8, "no more than the draft can fill");
    }
}
