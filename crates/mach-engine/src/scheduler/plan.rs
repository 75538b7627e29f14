//! What to do next: a pure function of what waits and what is active.
//!
//! Memory is charged for the tokens that a sequence has, not for those that it may come to have: an answer without a limit
//! could fill the whole context, and few do. When what runs grows beyond the budget, the youngest gives up its state and
//! computes it again later, to the same bits. The oldest always fits, so something always goes on.

use mach_models::Purpose;

/// Tokens of growth that a sequence must find room for before it starts, so that it does not have to give way at once.
const AHEAD: usize = 256;

/// Settings that decide.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Prompt tokens of a pass.
    pub(crate) chunk: usize,
    /// Prompt tokens of a pass that decoding sequences wait for.
    pub(crate) interleave: usize,
    /// Sequences that run together.
    pub(crate) batch: usize,
    /// Whether requests share passes.
    pub(crate) continuous: bool,
    /// Bytes that the state of all active sequences may take.
    pub(crate) budget: Option<usize>,
}

/// A sequence that runs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Active {
    /// Number of its request: the lower, the older.
    pub(crate) request: u64,
    /// Which of the request's choices.
    pub(crate) choice: u32,
    /// Tokens of prompt and answer.
    pub(crate) tokens: usize,
    /// Tokens that the model has not seen.
    pub(crate) unseen: usize,
    /// Length at which it ends.
    pub(crate) limit: usize,
    /// Whether its first token was chosen and one token is left to be seen.
    pub(crate) decoding: bool,
    /// Whether it computes its prompt alone.
    pub(crate) warm: bool,
    /// Whether it was in a pass that failed and has to show alone that it was not at fault.
    pub(crate) suspect: bool,
}

/// A sequence that gave up its state.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Paused {
    /// Tokens of prompt and answer.
    pub(crate) tokens: usize,
    /// Length at which it ends.
    pub(crate) limit: usize,
}

/// A request with choices that have not started.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pending {
    /// Number of the request: the lower, the older.
    pub(crate) request: u64,
    /// Whether its first choice has started.
    pub(crate) started: bool,
    /// Whether the first choice has read the prompt, so that the others can start from its end.
    pub(crate) prompt_read: bool,
    /// Whether the beginning of its prompt is on its way from disk.
    pub(crate) reading: bool,
    /// Tokens of the prompt.
    pub(crate) tokens: usize,
    /// Length at which a choice ends.
    pub(crate) limit: usize,
}

/// All that decides.
pub(crate) struct View<'a> {
    pub(crate) limits: Limits,
    /// In the order in which they joined.
    pub(crate) active: &'a [Active],
    /// Oldest first.
    pub(crate) paused: &'a [Paused],
    /// In the order of the queue.
    pub(crate) pending: &'a [Pending],
    /// Whether the queue holds more.
    pub(crate) queued: bool,
    /// Bytes of the state of a sequence with so many tokens.
    pub(crate) bytes: &'a dyn Fn(usize) -> usize,
}

/// A sequence's part in a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Its next tokens; 0 if it sits this pass out.
    pub(crate) rows: usize,
    /// What they are.
    pub(crate) purpose: Purpose,
    /// Whether a token is to be chosen after the last of them.
    pub(crate) chooses: bool,
}

/// One pass of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pass {
    /// The only sequence, with whatever is proposed for it.
    Cycle,
    /// One share for each active sequence.
    Batch(Vec<Share>),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The active sequence at this place gives up its state.
    Pause(usize),
    /// The paused sequence that has waited longest computes its state again.
    Resume,
    /// A request leaves the queue.
    Take,
    /// The pending request at this place starts its next choice.
    Start(usize),
    /// The model runs.
    Run(Pass),
    /// There is nothing to do.
    Sleep,
}

/// The next step.
pub(crate) fn plan(view: &View<'_>) -> Step {
    if let Some(youngest) = gives_way(view) {
        return Step::Pause(youngest);
    }
    if let Some(first) = view.paused.first() {
        let free = view.active.len() < view.limits.batch && fits(view, first.tokens, first.limit);
        if view.active.is_empty() || free {
            return Step::Resume;
        }
    }
    if view.queued && takes_more(view) {
        return Step::Take;
    }
    if let Some(index) = starts(view) {
        return Step::Start(index);
    }
    if view.active.is_empty() { Step::Sleep } else { Step::Run(pass(view)) }
}

/// Bytes that a sequence will soon need.
fn soon(view: &View<'_>, tokens: usize, limit: usize) -> usize {
    (view.bytes)((tokens + AHEAD).min(limit))
}

/// Whether one more sequence of `tokens` tokens, which may grow to `limit`, can join.
fn fits(view: &View<'_>, tokens: usize, limit: usize) -> bool {
    let Some(budget) = view.limits.budget else { return true };
    let held: usize = view.active.iter().map(|s| soon(view, s.tokens, s.limit)).sum();
    held + soon(view, tokens, limit) <= budget
}

/// The youngest sequence, if the next pass of all would not fit.
fn gives_way(view: &View<'_>) -> Option<usize> {
    let budget = view.limits.budget.filter(|_| view.active.len() > 1)?;
    let needed: usize = view.active.iter().map(|s| (view.bytes)(s.tokens + 1)).sum();
    let ages = view.active.iter().enumerate().map(|(index, s)| ((s.request, s.choice), index));
    ages.max().map(|(_, index)| index).filter(|_| needed > budget)
}

/// Whether a request out of the queue could start at once.
fn takes_more(view: &View<'_>) -> bool {
    let idle = view.active.is_empty() && view.paused.is_empty() && view.pending.is_empty();
    let place = view.limits.continuous && view.active.len() < view.limits.batch;
    let nobody_waits = view.paused.is_empty() && view.pending.iter().all(|p| p.started);
    idle || place && nobody_waits
}

/// A choice of the request that has the fewest at work, if there is room. Nobody overtakes a request that waits for memory or
/// for the drive; a drive is waited for idly if nobody is at work.
fn starts(view: &View<'_>) -> Option<usize> {
    let at_work = |request| view.active.iter().filter(|s| s.request == request).count();
    let able = view.pending.iter().enumerate().filter(|(_, p)| !p.started || p.prompt_read);
    let (.., index) = able.map(|(index, p)| (at_work(p.request), p.request, index)).min()?;
    let next = view.pending.get(index)?;
    let free = view.paused.is_empty()
        && view.active.len() < view.limits.batch
        && fits(view, next.tokens, next.limit);
    (view.active.is_empty() || free && !next.reading).then_some(index)
}

/// One pass over all active sequences.
fn pass(view: &View<'_>) -> Pass {
    // Choices that wait for the end of a prompt wait for passes that keep it.
    let awaited = |s: &Active| view.pending.iter().any(|p| p.started && p.request == s.request);
    if let [only] = view.active
        && only.decoding
        && !awaited(only)
    {
        return Pass::Cycle;
    }
    let alone = view.active.iter().position(|s| s.suspect);
    let mut prompt_rows = prompt_rows(view, alone);
    let share = |(index, s): (usize, &Active)| {
        let unseen = if alone.is_none_or(|only| only == index) { s.unseen } else { 0 };
        // A decoding sequence always gets its one token; prompts share the chunk.
        let rows = if unseen > 1 { unseen.min(prompt_rows) } else { unseen };
        if unseen > 1 {
            prompt_rows -= rows;
        }
        let purpose = if s.decoding { Purpose::Decode } else { Purpose::Prompt };
        Share { rows, purpose, chooses: rows == unseen && rows > 0 && !s.warm }
    };
    Pass::Batch(view.active.iter().enumerate().map(share).collect())
}

/// Prompt tokens that the next pass takes: fewer while others wait for their next token.
fn prompt_rows(view: &View<'_>, alone: Option<usize>) -> usize {
    let decoding = view.active.iter().filter(|s| s.decoding).count();
    let Limits { chunk, interleave, .. } = view.limits;
    if decoding == 0 || alone.is_some() {
        chunk.max(1)
    } else {
        interleave.min(chunk.saturating_sub(decoding)).max(1)
    }
}

#[cfg(test)]
mod tests;
