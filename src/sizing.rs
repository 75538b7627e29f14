//! How much a checkpoint needs under the operator's settings, from its headers alone: the same for a server that starts and for
//! `mach check`.

use mach_checkpoint::Checkpoint;
use mach_cpu::{Footprint, footprint, scratch_bytes, state_bytes};
use mach_models::{DraftNeeds, StreamingSource};
use mach_specdec::policy::PolicySpec;

use crate::Exit;
use crate::args::ModelConfig;
use crate::budget::{self, Bounds, Budget, Clients, Needs, Requests};

/// Threads, connections, the allocator's slack: what the process takes beside what it has when it is measured.
const OVERHEAD: usize = 48 << 20;

/// Tokens that a sequence must be able to have for a budget to make sense.
const LEAST_TOKENS: usize = 1024;

/// Threads' stacks, queues and sockets of a server that nobody has asked anything yet.
const STARTED: usize = 3 << 20;

/// How often the features that a draft wants of a pass lie in memory beside those that wait: as they are tapped and read back.
const FEATURE_COPIES: usize = 2;

/// What the rest of the server needs memory for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Beside {
    /// Sequences that may run at one time.
    pub(crate) sequences: usize,
    /// The draft, if there is one that is used.
    pub(crate) draft: DraftNeeds,
    /// Bytes of the prefix cache, if they were asked for.
    pub(crate) prefix: usize,
    /// Bytes of prefixes that wait to be saved.
    pub(crate) saves: usize,
    /// Who asks, if anybody but the operator does.
    pub(crate) clients: Option<Clients>,
}

impl Beside {
    /// One sequence, and nothing else.
    pub(crate) fn alone() -> Self {
        Self { sequences: 1, ..Self::default() }
    }
}

/// A checkpoint, the settings, and what the machine has.
#[derive(Debug)]
pub(crate) struct Sizing<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    beside: Beside,
    /// What bounds memory.
    pub(crate) bounds: Bounds,
    /// Longest context that the settings allow.
    pub(crate) context: usize,
}

impl<'a> Sizing<'a> {
    /// Asks the machine.
    pub(crate) fn new(checkpoint: &'a Checkpoint, config: &'a ModelConfig, beside: Beside) -> Self {
        let args = &config.experts;
        let bounds = Bounds {
            memory: args.memory_gb.map(|g| g.bytes),
            bank: args.expert_cache_gb.map(|g| g.bytes),
            wired: args.wired_gb.map(|g| g.bytes),
            available: crate::memory::available(),
        };
        let own = checkpoint.config().max_position_embeddings;
        let context = config.max_context.unwrap_or(usize::MAX).min(own);
        Self { checkpoint, config, beside, bounds, context }
    }

    /// Bytes that a sequence of `tokens` tokens keeps: keys, values and recurrent state, that state once more to cut blocks short,
    /// and what is kept for its draft.
    pub(crate) fn state(&self, tokens: usize) -> usize {
        let load = &self.config.load;
        let model = state_bytes(self.checkpoint.config(), load.activations, load.turboquant_kv, tokens);
        model + self.undo() + self.beside.draft.sequence(tokens)
    }

    /// What of that a sequence has at its peak: features wait for the end of their pass, not for as long as they may.
    pub(crate) fn state_held(&self, tokens: usize) -> usize {
        let draft = &self.beside.draft;
        let rows = self.chunk().min(DraftNeeds::WAITING);
        self.state(tokens) - draft.sequence(tokens) + draft.context(tokens) + draft.features(rows)
    }

    /// Rows of a pass over a prompt.
    fn chunk(&self) -> usize {
        self.config.prefill_chunk.min(self.context)
    }

    /// Compute threads.
    pub(crate) fn threads(&self) -> usize {
        match self.config.load.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }

    /// Working memory of a pass over a chunk of a prompt.
    pub(crate) fn scratch(&self) -> usize {
        let rows = self.chunk();
        let features = FEATURE_COPIES * self.beside.draft.features(rows);
        scratch_bytes(self.checkpoint.config(), rows, self.threads()) + features
    }

    /// Sizes of weights where experts come from `source`, or are all in memory.
    pub(crate) fn footprint(&self, source: Option<StreamingSource>) -> Result<Footprint, Exit> {
        footprint(self.checkpoint, self.config.load.activations, source).map_err(Exit::input)
    }

    fn needs(&self, size: &Footprint, depth: usize) -> Needs {
        let base = crate::memory::resident().unwrap_or(0) + OVERHEAD;
        let limit = self.bounds.limit(base).map(|(bytes, _)| bytes);
        let Beside { sequences, draft, prefix, saves, clients } = self.beside;
        let requests = |clients| Requests::of(clients, limit, self.context, sequences);
        Needs {
            base,
            requests: clients.map(requests).unwrap_or_default(),
            resident: size.resident_bytes,
            draft: draft.weights,
            prefix,
            saves,
            scratch: self.scratch(),
            slot: size.slot_bytes,
            experts: size.experts,
            working_set: size.working_set,
            arena_slots: size.arena_slots(depth),
            least_state: self.state(self.context.min(LEAST_TOKENS)),
            most_state: self.state(self.context).saturating_mul(sequences.max(1)),
        }
    }

    /// All experts in memory, or why not.
    pub(crate) fn resident(&self) -> Result<Result<Budget, String>, Exit> {
        Ok(budget::resident(self.needs(&self.footprint(None)?, 0), self.bounds))
    }

    /// A bank of some experts, with a drive that takes `depth` reads at a time; or why not.
    pub(crate) fn streaming(
        &self,
        source: StreamingSource,
        depth: usize,
    ) -> Result<Result<Budget, String>, Exit> {
        Ok(budget::streaming(self.needs(&self.footprint(Some(source))?, depth), self.bounds))
    }
}

/// What one process is expected to hold, beyond what it promises never to exceed.
impl Sizing<'_> {
    /// Recurrent state that is kept twice, to cut blocks short.
    fn undo(&self) -> usize {
        let load = &self.config.load;
        match self.config.policy {
            PolicySpec::Off => 0,
            _ => state_bytes(self.checkpoint.config(), load.activations, load.turboquant_kv, 0),
        }
    }

    /// Program, tokenizer and threads: what the process has now, and what a server takes on top before it is asked anything.
    pub(crate) fn process(&self) -> usize {
        crate::memory::resident().unwrap_or(0) + STARTED
    }
}
