//! What a kernel runs on: compute threads and the instruction set that they use.

use crate::{Isa, Pool};

/// Compute threads and their instruction set. Neither changes a bit of any result.
#[derive(Debug)]
pub struct Cores {
    pool: Pool,
    isa: Isa,
}

impl Cores {
    /// `threads` threads (0: as many as the machine offers this process) of one instruction set.
    pub fn new(threads: usize, isa: Isa) -> Self {
        Cores { pool: Pool::new(threads), isa }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads, the calling one included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `job(thread)` once on every thread and waits for all.
    ///
    /// # Panics
    /// If `job` panicked on any thread.
    pub fn run(&mut self, job: impl Fn(usize) + Sync) {
        self.pool.run(job);
    }
}
