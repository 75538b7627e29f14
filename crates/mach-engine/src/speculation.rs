//! Which proposers a sequence gets, and a cycle of one that decodes alone: propose, verify in one pass, keep what the sequence
//! itself chose.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mach_models::{Model, SequenceState};
use mach_specdec::policy::{Blocks, Cycle, DEFAULT_BLOCK, Experience, GuardSpec, PolicySpec};
use mach_specdec::{
    Choice, CopyProposer, Draft, LabelProposer, Lane, Proposal, Proposer, Speculator, Taps, VerifyError,
    verify,
};
use tracing::warn;

use crate::scheduler::from_model;
use crate::sequence::Sequence;
use crate::{EngineError, EngineStats, GenerateRequest, Preset, TextTokenizer};

/// Settings of speculation.
#[derive(Debug, Clone)]
pub struct Speculation {
    /// The draft, if there is one.
    pub draft: Option<Arc<dyn Draft>>,
    /// How much is tried. `off` switches the presets of requests off as well.
    pub policy: PolicySpec,
    /// What stands over it.
    pub guard: GuardSpec,
}

impl Default for Speculation {
    fn default() -> Self {
        Self { draft: None, policy: PolicySpec::OpencodeSampledV1, guard: GuardSpec::CostAware }
    }
}

impl Speculation {
    /// Bytes beside the state of a sequence that are needed to cut blocks short: recurrent state is kept twice.
    pub(crate) fn undo_bytes(&self, model: &dyn Model) -> usize {
        if self.policy == PolicySpec::Off { 0 } else { model.new_state().bytes() }
    }

    /// Bytes that the draft keeps of a sequence of `tokens` tokens.
    pub(crate) fn draft_bytes(&self, tokens: usize) -> usize {
        self.draft.as_ref().map_or(0, |draft| draft.context_bytes(tokens))
    }
}

/// Makes the proposers of sequences; what they have learned of blocks is shared.
#[derive(Debug)]
pub(crate) struct Proposers {
    settings: Speculation,
    experience: Arc<Mutex<Experience>>,
}

impl Proposers {
    pub(crate) fn new(settings: Speculation) -> Self {
        Proposers { settings, experience: Arc::default() }
    }

    /// Target layers that the draft wants to see.
    pub(crate) fn taps(&self) -> &[usize] {
        self.settings.draft.as_ref().map_or(&[], |draft| draft.taps())
    }

    /// The proposers of one choice: the preset's first, for it is silent unless it has something to go by. Choices that start
    /// from another's prompt have not shown it to a draft and do without.
    pub(crate) fn speculator(&self, request: &GenerateRequest, choice: u32) -> Speculator {
        let usual = Blocks { policy: self.settings.policy, guard: self.settings.guard };
        let blocks = match self.settings.policy {
            // The memory for cutting blocks short is not set aside.
            PolicySpec::Off => usual,
            _ => request.policy.unwrap_or(usual),
        };
        if blocks.policy == PolicySpec::Off || request.output.embedding {
            return Speculator::default();
        }
        let lane = |proposer: Box<dyn Proposer>, most| {
            let policy = blocks.policy.build(proposer.name(), most, blocks.guard, &self.experience);
            Lane::new(proposer, policy)
        };
        let mut lanes = Vec::new();
        match &request.preset {
            Preset::None => {}
            Preset::Summarization => lanes.push(lane(Box::new(CopyProposer::new()), DEFAULT_BLOCK)),
            Preset::Classification(answers) => {
                let answers = answers.iter().map(Vec::as_slice);
                lanes.push(lane(Box::new(LabelProposer::new(request.prompt.len(), answers)), DEFAULT_BLOCK));
            }
        }
        if let Some(draft) = self.settings.draft.as_ref().filter(|_| choice == 0) {
            let (proposer, most) = (Arc::clone(draft).proposer(), draft.block_size());
            // A gate of its own stands in the guard's place, and knows what every cycle cost.
            let guard = if draft.gate().is_some() { GuardSpec::Off } else { blocks.guard };
            let policy = blocks.policy.build(proposer.name(), most, guard, &self.experience);
            let policy = match draft.gate() {
                Some(gate) => gate.over(policy),
                None => policy,
            };
            lanes.push(Lane::new(proposer, policy));
        }
        Speculator::new(lanes)
    }
}

/// What a cycle brought.
pub(crate) struct Cycled {
    /// The last token was chosen.
    pub(crate) finished: bool,
    /// Tokens chosen.
    pub(crate) emitted: usize,
    proposal: Proposal,
    cycle: Cycle,
    took: Duration,
}

/// One pass over a sequence with whatever is proposed for it. `shown` says whether the draft is shown a sequence that ends,
/// because its state is kept. After an error the sequence's state is unusable.
pub(crate) fn cycle(
    model: &mut dyn Model,
    sequence: &mut Sequence,
    taps: &mut Taps,
    tokenizer: &TextTokenizer,
    shown: bool,
) -> Result<Option<Cycled>, EngineError> {
    let Some(&anchor) = sequence.tokens.last() else { return Ok(None) };
    let started = Instant::now();
    let proposal = sequence.propose(model);
    let verifying = Instant::now();
    let mut state = std::mem::replace(&mut sequence.state, SequenceState::without_layers());
    let mut expected = proposal.tokens.iter();
    let mut choose = |row: &mut [f32]| {
        let last = sequence.advance(row, expected.next().copied(), tokenizer)?;
        Ok(Choice { token: sequence.tokens.last().copied().unwrap_or_default(), last })
    };
    let verified = verify(model, &mut state, anchor, &proposal.tokens, taps, &mut choose);
    let verified = verified.map_err(|error| match error {
        VerifyError::Model(error) => from_model(error),
        VerifyError::Choose(error) => error,
    })?;
    let verify_time = verifying.elapsed();
    sequence.state = state;
    if !verified.finished || shown {
        sequence.observe(model, taps.rows(0..verified.emitted));
    }
    let cycle = sequence.speculator.record(&proposal, &verified, verify_time);
    sequence.stats.record(&cycle);
    if let Some(reason) = sequence.speculator.take_failure() {
        warn!(reason, "a proposer is given up for this request");
    }
    let (finished, emitted) = (verified.finished, verified.emitted);
    Ok(Some(Cycled { finished, emitted, proposal, cycle, took: started.elapsed() }))
}

impl Cycled {
    /// Counts it.
    pub(crate) fn count(&self, stats: &mut EngineStats) {
        let Proposal { proposer, low, held, .. } = &self.proposal;
        stats.specdec.record(*proposer, *low, *held, &self.cycle);
        stats.decoded(self.emitted, self.took);
    }
}
