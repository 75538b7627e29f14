//! Whether a checkpoint fits this machine, with all experts in memory and with a bank of some.

use mach_checkpoint::{Checkpoint, ExpertTensors};
use mach_models::StreamingSource;
use serde::Serialize;

use crate::Exit;
use crate::budget::Budget;
use crate::experts::IN_FLIGHT;
use crate::sizing::Sizing;

/// Whether it fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// With the whole context that was asked for, and room to spare.
    Fits,
    /// It starts, with a shorter context, a bank that is too small for what a token or two use, or the last bytes there are.
    Tight,
    /// The server would refuse it.
    WontFit,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Verdict::Fits => "fits",
            Verdict::Tight => "tight",
            Verdict::WontFit => "wont_fit",
        })
    }
}

/// Bytes by part, for one conversation of the context that was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Parts {
    /// Weights outside the experts.
    pub(crate) resident_weights: usize,
    /// Experts in memory: all, or the bank's.
    pub(crate) bank: usize,
    /// Where experts of prompts land.
    pub(crate) arena: usize,
    /// Keys, values and recurrent state of the conversation, its draft's context included.
    pub(crate) kv: usize,
    /// Weights of the draft.
    pub(crate) draft: usize,
    /// The prefix cache, if it was given a size; else it lives on what state does not need.
    pub(crate) prefix_cache: usize,
    /// Working memory of a pass.
    pub(crate) scratch: usize,
    /// Program, tokenizer, threads.
    pub(crate) process: usize,
    /// What a graphics card would hold of it, beside the host's; null where there is none that runs the model.
    pub(crate) vram: Option<usize>,
}

impl Parts {
    /// The peak that one conversation is expected to reach.
    pub(crate) fn total(&self) -> usize {
        let Parts { resident_weights, bank, arena, kv, draft, prefix_cache, scratch, process, vram: _ } =
            self;
        resident_weights + bank + arena + kv + draft + prefix_cache + scratch + process
    }
}

/// One way of keeping experts.
#[derive(Debug, Serialize)]
pub(crate) struct Fit {
    pub(crate) verdict: Verdict,
    /// Why it does not fit, or what makes it tight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Parts>,
    /// Sum of `memory`: what the process is expected to hold at its peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expected_peak_bytes: Option<usize>,
    /// What the server would announce and never exceed, requests of many clients included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budget_bytes: Option<usize>,
    /// Experts that the bank holds, of all there are.
    pub(crate) bank_experts: usize,
    pub(crate) experts: usize,
    /// Experts that one token uses.
    pub(crate) experts_per_token: usize,
    /// Bytes of an expert in memory.
    pub(crate) expert_bytes: usize,
    /// The longest conversation that there is room for.
    pub(crate) longest_context: usize,
}

impl Fit {
    fn refused(reason: String) -> Self {
        Fit {
            verdict: Verdict::WontFit,
            reason: Some(reason),
            memory: None,
            expected_peak_bytes: None,
            budget_bytes: None,
            bank_experts: 0,
            experts: 0,
            experts_per_token: 0,
            expert_bytes: 0,
            longest_context: 0,
        }
    }

    /// Counts what a graphics card would hold: weights, experts, states, the draft.
    pub(crate) fn on_card(&mut self) {
        if let Some(memory) = &mut self.memory {
            let Parts { resident_weights, bank, kv, draft, .. } = *memory;
            memory.vram = Some(resident_weights + bank + kv + draft);
        }
    }

    fn of(budget: &Budget, sizing: &Sizing<'_>, context: usize) -> Self {
        let needs = &budget.needs;
        let longest = longest(sizing, budget.state);
        let memory = Parts {
            resident_weights: needs.resident,
            bank: budget.bank(),
            arena: budget.arena(),
            kv: sizing.state_held(context.min(longest)),
            draft: needs.draft,
            prefix_cache: needs.prefix,
            scratch: needs.scratch,
            process: sizing.process(),
            vram: None,
        };
        let limit = sizing.bounds.limit(needs.base).map(|(limit, _)| limit);
        // Of the last tenth the system's own needs take their part.
        let last = limit.is_some_and(|limit| memory.total() > limit - limit / 10);
        let starved = budget.arena_slots > 0
            && budget.bank_slots > 0
            && budget.bank_slots < (2 * needs.working_set).min(needs.experts);
        let tight = if longest < context {
            Some(format!("memory has room for conversations of {longest} tokens, not {context}"))
        } else if starved {
            let (slots, used) = (budget.bank_slots, needs.working_set);
            Some(format!("the bank holds {slots} experts and every token uses {used}"))
        } else if last {
            Some("it takes the last tenth of the memory there is".to_owned())
        } else {
            None
        };
        Fit {
            verdict: if tight.is_some() { Verdict::Tight } else { Verdict::Fits },
            reason: tight,
            memory: Some(memory),
            expected_peak_bytes: Some(memory.total()),
            budget_bytes: Some(budget.total()),
            bank_experts: budget.bank_slots,
            experts: needs.experts,
            experts_per_token: needs.working_set,
            expert_bytes: needs.slot,
            longest_context: longest,
        }
    }
}

/// The longest conversation whose state takes `bytes` at most.
fn longest(sizing: &Sizing<'_>, bytes: usize) -> usize {
    let fits = |tokens: usize| sizing.state(tokens) <= bytes;
    if fits(sizing.context) {
        return sizing.context;
    }
    let (mut low, mut high) = (0, sizing.context);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}

fn settle(budget: Result<Result<Budget, String>, Exit>, sizing: &Sizing<'_>, context: usize) -> Fit {
    match budget {
        Ok(Ok(budget)) => Fit::of(&budget, sizing, context),
        Ok(Err(reason)) => Fit::refused(reason),
        Err(exit) => Fit::refused(exit.message),
    }
}

/// With all experts in memory.
pub(crate) fn resident(sizing: &Sizing<'_>, context: usize, supported: &Result<(), String>) -> Fit {
    match supported {
        Ok(()) => settle(sizing.resident(), sizing, context),
        Err(reason) => Fit::refused(reason.clone()),
    }
}

/// With a bank, from the sidecar; as it would be once the sidecar is there, if the checkpoint lacks one.
pub(crate) fn streaming(
    checkpoint: &Checkpoint,
    sizing: &Sizing<'_>,
    context: usize,
    supported: &Result<(), String>,
) -> Fit {
    match supported {
        Err(reason) => return Fit::refused(reason.clone()),
        Ok(()) if checkpoint.expert_tensors() == ExpertTensors::None => {
            return Fit::refused("there are no routed experts to stream".to_owned());
        }
        Ok(()) => {}
    }
    let sidecar = sizing.streaming(StreamingSource::Sidecar, IN_FLIGHT);
    // Without a sidecar, slices of the tensors have the size that its records would have.
    let budget = if sidecar.is_err() && checkpoint.expert_tensors() != ExpertTensors::Engine {
        sizing.streaming(StreamingSource::Diagnostic, IN_FLIGHT)
    } else {
        sidecar
    };
    settle(budget, sizing, context)
}
