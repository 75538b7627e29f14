//! Timing a model: a prompt, then single tokens, repeated.

use std::time::Instant;

use mach_models::{LogitRows, Model, ModelError, NoObserver, Segment};
use serde::Serialize;

/// What to time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TimingPlan {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens decoded after it.
    pub decode: usize,
    /// Prompt tokens of one forward pass.
    pub chunk: usize,
    /// Repeats that count, after one that does not.
    pub reps: usize,
    /// Seed of the token ids.
    pub seed: u64,
    /// The ids are below this.
    pub ids: usize,
}

impl TimingPlan {
    /// Tokens that are in the sequence when a token is decoded, on average.
    pub fn mean_decode_context(&self) -> usize {
        self.prompt + self.decode / 2
    }
}

/// Tokens a second of every repeat.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Samples {
    /// Prompt tokens.
    pub prefill: Vec<f64>,
    /// Decoded tokens.
    pub decode: Vec<f64>,
}

/// Times `plan.reps` repeats after one that does not count. Each is a new sequence with token ids of its own, so that
/// no two repeats route alike. Decoding feeds ids of the same source, not the model's choice: a model with random
/// weights would fall into a loop, and a loop touches few experts.
pub fn measure(model: &mut dyn Model, plan: &TimingPlan) -> Result<Samples, ModelError> {
    let mut samples = Samples::default();
    for rep in 0..=plan.reps {
        let ids = token_ids(plan.seed.wrapping_add(rep as u64), plan.prompt + plan.decode, plan.ids);
        let (prompt, decoded) = ids.split_at(plan.prompt);
        let mut state = model.new_state();
        let start = Instant::now();
        let chunks = prompt.chunks(plan.chunk.max(1));
        let last = chunks.len().saturating_sub(1);
        for (index, chunk) in chunks.enumerate() {
            let logits = if index == last { LogitRows::Last } else { LogitRows::None };
            step(model, Segment::prompt(&mut state, chunk, logits))?;
        }
        let prefill = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for id in decoded {
            step(model, Segment::decode(&mut state, std::slice::from_ref(id)))?;
        }
        let decode = start.elapsed().as_secs_f64();
        if rep > 0 {
            samples.prefill.push(prompt.len() as f64 / prefill.max(f64::MIN_POSITIVE));
            samples.decode.push(decoded.len() as f64 / decode.max(f64::MIN_POSITIVE));
        }
    }
    Ok(samples)
}

fn step(model: &mut dyn Model, segment: Segment<'_>) -> Result<(), ModelError> {
    let logits = model.forward(&mut [segment], &mut NoObserver)?;
    std::hint::black_box(logits);
    Ok(())
}

/// `count` token ids below `vocab`: SplitMix64 from `seed`, each word reduced modulo `vocab`. The comparison scripts
/// make the same ids, so that both engines see the same prompts.
pub fn token_ids(seed: u64, count: usize, vocab: usize) -> Vec<u32> {
    let vocab = vocab.max(1) as u64;
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % vocab) as u32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First words of SplitMix64 from seed 1234567, as its authors' reference program prints them.
    #[test]
    fn ids_are_splitmix64() {
        let words = [6457827717110365317u64, 3203168211198807973, 9817491932198370423];
        for vocab in [151_936u64, 1 << 32] {
            let ids = token_ids(1_234_567, 3, vocab as usize);
            let expected: Vec<u32> = words.iter().map(|w| (w % vocab) as u32).collect();
            assert_eq!(ids, expected);
        }
    }

    #[test]
    fn ids_stay_inside_the_vocabulary() {
        assert!(token_ids(3, 1000, 7).iter().all(|&id| id < 7));
        assert_eq!(token_ids(3, 4, 0), [0; 4]);
        assert_ne!(token_ids(3, 8, 1 << 20), token_ids(4, 8, 1 << 20));
    }
}
