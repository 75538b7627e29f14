//! Which proposers a sequence gets.

use std::sync::{Arc, Mutex};

use mach_models::Model;
use mach_specdec::policy::{Blocks, DEFAULT_BLOCK, Experience, GuardSpec, PolicySpec};
use mach_specdec::{CopyProposer, Draft, LabelProposer, Lane, Proposer, Speculator};

use crate::{GenerateRequest, Preset};

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
}

/// What the sequences of an engine share.
#[derive(Debug)]
pub(crate) struct Shared {
    settings: Speculation,
    experience: Arc<Mutex<Experience>>,
}

impl Shared {
    pub(crate) fn new(settings: Speculation) -> Self {
        Shared { settings, experience: Arc::default() }
    }

    /// Target layers that the draft wants to see.
    pub(crate) fn taps(&self) -> &[usize] {
        self.settings.draft.as_ref().map_or(&[], |draft| draft.taps())
    }

    pub(crate) fn undo_bytes(&self, model: &dyn Model) -> usize {
        self.settings.undo_bytes(model)
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
        if blocks.policy == PolicySpec::Off {
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
            let most = draft.block_size();
            lanes.push(lane(Arc::clone(draft).proposer(), most));
        }
        Speculator::new(lanes)
    }
}
