//! A bank that holds every expert beside experts that are in memory as a matter of course.

use anyhow::Result;
use mach_checkpoint::Checkpoint;
use mach_experts::EvictionPolicy;
use mach_models::{ExpertMode, LoadOptions, Purpose, StreamingOptions, StreamingSource};

use super::{Cached, StreamPlan, phase};
use crate::token_ids;

/// Decodes with two models in turn: all experts in memory, and streamed through a bank with room for all.
pub fn measure_cached(
    checkpoint: &Checkpoint,
    load: &LoadOptions,
    eviction: EvictionPolicy,
    plan: &StreamPlan,
) -> Result<Cached> {
    let size = mach_cpu::footprint(checkpoint, load.activations, Some(StreamingSource::Sidecar))?;
    let streaming = StreamingOptions {
        bank_slots: size.experts,
        arena_slots: size.arena_slots(0),
        eviction,
        ..StreamingOptions::default()
    };
    let model = |experts| {
        let options = LoadOptions { experts, ..load.clone() };
        mach_cpu::load(checkpoint, &options, &mut |_| ())
    };
    let mut models = [model(ExpertMode::Resident)?, model(ExpertMode::Streaming(streaming))?];
    let mut rates = [Vec::new(), Vec::new()];
    // The first repeats fill the bank; after a prompt of this length nothing is missing.
    for rep in 0..=plan.reps {
        let ids = token_ids(plan.seed.wrapping_add(rep as u64), plan.prompt + plan.decode, plan.ids);
        let (prompt, decoded) = ids.split_at(plan.prompt);
        for (model, rates) in models.iter_mut().zip(&mut rates) {
            let mut state = model.new_state();
            phase(model.as_mut(), &mut state, prompt, plan.chunk, Purpose::Prompt)?;
            let decode = phase(model.as_mut(), &mut state, decoded, 1, Purpose::Decode)?;
            if rep > 0 {
                rates.push(decode.rate());
            }
        }
    }
    let [resident, streaming] = rates;
    Ok(Cached { resident, streaming })
}
