//! The prefix cache at work: where a sequence starts, which states are kept on the way, when they are saved.

use std::sync::Arc;
use std::thread::JoinHandle;

use mach_models::{Model, SequenceState};
use mach_prefix::{Image, Kind, PrefixCache, SessionTurn, Snapshot};
use mach_specdec::Speculator;

use crate::GenerateRequest;
use crate::sequence::Sequence;

/// Boundaries closer to an earlier snapshot than this are not worth one of their own.
const GAP: usize = 64;
/// A prompt that ends this close behind its last boundary is saved to disk up to the boundary: the same conversation
/// may go on from there in other words (templates drop reasoning from earlier turns).
const NEAR: usize = 32;

/// What a sequence has to do with the cache.
#[derive(Debug, Default)]
pub(crate) struct Reuse {
    /// Where the hashes of its tokens begin.
    pub(crate) root: [u8; 32],
    /// Tokens that were not computed.
    pub(crate) cached: usize,
    /// It computes its prompt alone.
    pub(crate) warm: bool,
    prompt: Arc<[u32]>,
    turn: Option<SessionTurn>,
    /// Positions of the copies to be kept, ascending, and what they are.
    copies: Vec<usize>,
    kinds: Vec<Kind>,
    to_save: Vec<[u8; 32]>,
    /// Position of the last snapshot inside the answer.
    kept: usize,
}

impl Reuse {
    /// Of a choice that starts at the end of another's prompt.
    pub(crate) fn of_choice(root: [u8; 32], cached: usize) -> Self {
        Reuse { root, cached, ..Reuse::default() }
    }

    /// Copies that are still to come.
    pub(crate) fn copies_after(&self, position: usize) -> &[usize] {
        let first = self.copies.partition_point(|&copy| copy <= position);
        self.copies.get(first..).unwrap_or_default()
    }
}

/// Where a sequence starts.
pub(crate) struct Start {
    pub(crate) state: SequenceState,
    /// After the whole prompt, if nothing is left to compute.
    pub(crate) logits: Option<Vec<f32>>,
    pub(crate) reuse: Reuse,
}

impl Start {
    pub(crate) fn cold(model: &dyn Model) -> Self {
        Start { state: model.new_state(), logits: None, reuse: Reuse::default() }
    }
}

/// The cache of an engine.
#[derive(Debug)]
pub(crate) struct Prefix {
    cache: Arc<PrefixCache>,
    /// One snapshot at the end serves every position before it.
    can_be_cut: bool,
    drafting: bool,
}

impl Prefix {
    pub(crate) fn new(cache: Arc<PrefixCache>, model: &dyn Model, drafting: bool) -> Self {
        let state = model.new_state();
        Prefix { cache, can_be_cut: state.can_be_cut() && !state.forgets() && !drafting, drafting }
    }

    pub(crate) fn close(&self) {
        self.cache.close();
    }

    /// The longest known beginning of the prompt, and what is to be kept of the rest.
    pub(crate) fn start(
        &self,
        request: &GenerateRequest,
        model: &mut dyn Model,
        speculator: &mut Speculator,
    ) -> Start {
        let root = self.cache.root(request.cache.salt.as_deref());
        let mut start = Start::cold(model);
        let found = self.cache.lookup(&root, &request.prompt);
        // A prompt that is to be pinned and is there already is not looked for here.
        let found = found.filter(|f| !request.warm || f.image.position() < request.prompt.len());
        if let Some(found) = found {
            speculator.restore(found.image.draft.as_ref());
            let mut state = found.image.state;
            state.count_uses(&start.state, found.image.hot.as_deref());
            start.state = state;
            if let Some(hot) = found.image.hot.as_ref().filter(|_| self.cache.config().bring_experts) {
                model.bring_experts(hot);
            }
            let whole = start.state.position() == request.prompt.len();
            start.logits = found.image.logits.filter(|_| whole).map(|logits| logits.to_vec());
        }
        let cached = start.state.position();
        let (copies, kinds) = self.plan(request, cached).into_iter().unzip();
        let prompt = request.prompt.as_slice().into();
        let turn = request.cache.session.map(|session| self.cache.turn(session));
        start.reuse =
            Reuse { root, cached, warm: request.warm, prompt, turn, copies, kinds, ..Reuse::default() };
        start
    }

    /// The longest known beginning of what a sequence has, its last token left to be computed.
    pub(crate) fn resume(
        &self,
        sequence: &Sequence,
        model: &dyn Model,
    ) -> (SequenceState, Option<SequenceState>) {
        let known = sequence.tokens.len().saturating_sub(1);
        let known = sequence.tokens.get(..known).unwrap_or_default();
        match self.cache.lookup(&sequence.reuse.root, known) {
            Some(found) => {
                let mut state = found.image.state;
                state.count_uses(&model.new_state(), found.image.hot.as_deref());
                (state, found.image.draft)
            }
            None => (model.new_state(), None),
        }
    }

    fn plan(&self, request: &GenerateRequest, cached: usize) -> Vec<(usize, Kind)> {
        let (end, hints) = (request.prompt.len(), &request.cache);
        let mut plan: Vec<(usize, Kind)> = Vec::new();
        plan.extend(hints.system.map(|at| (at, Kind::System)));
        if !self.can_be_cut {
            plan.extend(hints.boundaries.iter().map(|&at| (at, Kind::Boundary)));
            let stride = self.cache.config().stride.max(1);
            plan.extend((stride..end).step_by(stride).map(|at| (at, Kind::Stride)));
        }
        plan.retain(|&(at, _)| cached < at && at < end);
        plan.sort_by_key(|&(at, kind)| (at, std::cmp::Reverse(kind)));
        plan.dedup_by_key(|(at, _)| *at);
        let last = hints.boundaries.last().copied();
        let mut before = cached;
        plan.retain(|&(at, kind)| {
            let keep = at - before >= GAP || kind == Kind::System || Some(at) == last;
            before = if keep { at } else { before };
            keep
        });
        plan
    }

    fn insert(
        &self,
        model: &mut dyn Model,
        sequence: &mut Sequence,
        mut state: SequenceState,
        logits: Option<&[f32]>,
        (tokens, kind): (Arc<[u32]>, Kind),
    ) -> Option<[u8; 32]> {
        let draft = sequence.speculator.save(model, &sequence.tokens);
        if self.drafting && draft.as_ref().is_none_or(|draft| draft.position() != state.position()) {
            // Going on from it would mean to go on without the draft.
            return None;
        }
        let hot = state.take_hot().map(Arc::new);
        let image = Image { state, draft, logits: logits.map(Into::into), hot };
        let snapshot = Snapshot { root: sequence.reuse.root, tokens, image, kind };
        Some(self.cache.insert_of(snapshot, sequence.reuse.turn))
    }

    /// Keeps a copy that was taken inside a pass.
    pub(crate) fn keep_copy(&self, model: &mut dyn Model, sequence: &mut Sequence, copy: SequenceState) {
        let position = copy.position();
        let place = sequence.reuse.copies.iter().position(|&at| at == position);
        let kind = place.and_then(|i| sequence.reuse.kinds.get(i)).copied().unwrap_or(Kind::Stride);
        let prompt = Arc::clone(&sequence.reuse.prompt);
        let key = self.insert(model, sequence, copy, None, (prompt, kind));
        let near_end = kind == Kind::Boundary && sequence.prompt_len() - position <= NEAR;
        if kind == Kind::System || near_end {
            sequence.reuse.to_save.extend(key);
        }
    }

    /// Keeps the state at the end of the prompt.
    pub(crate) fn keep_end(&self, model: &mut dyn Model, sequence: &mut Sequence, logits: Option<&[f32]>) {
        let boundary = sequence.reuse.copies.last().zip(sequence.reuse.kinds.last());
        let near =
            boundary.is_some_and(|(&at, &kind)| kind == Kind::Boundary && sequence.prompt_len() - at <= NEAR);
        let prompt = Arc::clone(&sequence.reuse.prompt);
        let kind = if sequence.reuse.warm { Kind::Warmed } else { Kind::PromptEnd };
        let state = sequence.state.clone();
        let key = self.insert(model, sequence, state, logits, (prompt, kind));
        if !near && !sequence.reuse.warm {
            sequence.reuse.to_save.extend(key);
        }
    }

    /// Saves what was kept of the prompt. To be called when the first token is out.
    pub(crate) fn save(&self, sequence: &mut Sequence) {
        for key in std::mem::take(&mut sequence.reuse.to_save) {
            self.cache.save(&key);
        }
    }

    /// Keeps the state inside a long answer every so often: one that is cut off need not be computed again from its beginning.
    pub(crate) fn keep_progress(&self, model: &mut dyn Model, sequence: &mut Sequence) {
        let position = sequence.state.position();
        let stride = self.cache.config().stride.max(1);
        let last = sequence.reuse.kept.max(sequence.prompt_len());
        if position <= last || position / stride == last / stride {
            return;
        }
        sequence.reuse.kept = position;
        let tokens: Arc<[u32]> = sequence.tokens.as_slice().into();
        let state = sequence.state.clone();
        self.insert(model, sequence, state, None, (tokens, Kind::Stride));
    }

    /// Begins to bring the beginning of a prompt from disk into memory on another thread, if that is where it is.
    pub(crate) fn read_aside(&self, request: &GenerateRequest) -> Option<JoinHandle<()>> {
        let root = self.cache.root(request.cache.salt.as_deref());
        if !self.cache.reads_disk(&root, &request.prompt) {
            return None;
        }
        let (cache, prompt) = (Arc::clone(&self.cache), request.prompt.clone());
        let read = move || cache.preload(&root, &prompt);
        // Without a thread it is read when it is needed.
        std::thread::Builder::new().name("mach-restore".into()).spawn(read).ok()
    }

    /// Keeps the state at the end of an answer, which the next prompt of the conversation begins with.
    pub(crate) fn keep_turn(&self, model: &mut dyn Model, sequence: &mut Sequence) {
        let position = sequence.state.position();
        if sequence.reuse.warm || position <= sequence.prompt_len() {
            return;
        }
        let tokens: Arc<[u32]> = sequence.tokens.as_slice().into();
        let state = std::mem::replace(&mut sequence.state, SequenceState::without_layers());
        self.insert(model, sequence, state, None, (tokens, Kind::TurnEnd));
    }
}

#[cfg(test)]
mod tests {
    use mach_prefix::{Blank, PrefixConfig};

    use super::*;
    use crate::{CacheHints, OutputControl, Preset, SamplingParams};

    fn planned(system: Option<usize>, boundaries: &[usize], cached: usize, can_be_cut: bool) -> Vec<usize> {
        let config = PrefixConfig { stride: 1000, directory: None, ..PrefixConfig::default() };
        let cache = Arc::new(PrefixCache::open(
            config,
            Blank { state: SequenceState::without_layers(), draft: None },
        ));
        let prefix = Prefix { cache, can_be_cut, drafting: false };
        let request = GenerateRequest {
            prompt: vec![1; 2500],
            choices: 1,
            max_tokens: None,
            sampling: SamplingParams::greedy(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            logprobs: None,
            preset: Preset::None,
            cache: CacheHints { system, boundaries: boundaries.to_vec(), ..CacheHints::default() },
            warm: false,
            output: OutputControl::default(),
            policy: None,
        };
        prefix.plan(&request, cached).into_iter().map(|(at, _)| at).collect()
    }

    /// Copies are kept where a message ends and every stride, not closer together than is worth it; a system prompt and the last
    /// boundary always.
    #[test]
    fn copies_stand_apart() {
        assert_eq!(planned(None, &[100, 130, 164, 2400], 0, false), [100, 164, 1000, 2000, 2400]);
        assert_eq!(planned(Some(110), &[100, 130, 2400], 0, false), [100, 110, 1000, 2000, 2400]);
        // What is known already is no distance away from itself.
        assert_eq!(planned(None, &[100, 130, 2400], 90, false), [1000, 2000, 2400]);
        assert_eq!(
            planned(None, &[100, 154], 90, false),
            [154, 1000, 2000],
            "the last boundary, and what is far enough"
        );
        assert_eq!(planned(None, &[2490, 2500, 2600], 0, false), [1000, 2000, 2490], "the end is none");
        assert_eq!(planned(Some(50), &[100, 2400], 0, true), [50], "the rest can be cut from the end");
    }
}
