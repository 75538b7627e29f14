//! Always the same block.

use super::{BlockPolicy, Cycle};

/// This many rows; below 2 is plain decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixed(pub usize);

impl BlockPolicy for Fixed {
    fn block(&mut self) -> usize {
        self.0
    }

    fn record(&mut self, _cycle: &Cycle) {}
}
