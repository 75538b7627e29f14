//! One pass of the model over several sequences, as planned.

use std::ops::Range;
use std::time::Instant;

use mach_models::{LogitRows, Logits, Model, ModelError, Segment};
use mach_specdec::Taps;

use super::plan::Share;
use crate::EngineError;
use crate::sequence::Sequence;

/// What a pass brought.
pub(super) struct Ran {
    /// After the last row of each sequence that chooses a token, in their order.
    pub(super) logits: Logits,
    /// For each active sequence, its rows in the pass.
    pub(super) spans: Vec<Range<usize>>,
    /// When it began.
    pub(super) started: Instant,
}

/// Runs the sequences' shares. After an error the states that took part are unusable.
pub(super) fn run(
    model: &mut dyn Model,
    active: &mut [Sequence],
    shares: &[Share],
    taps: &mut Taps,
) -> Result<Ran, EngineError> {
    let started = Instant::now();
    let mut segments = Vec::with_capacity(active.len());
    let mut spans = Vec::with_capacity(active.len());
    let mut rows = 0;
    for (sequence, share) in active.iter_mut().zip(shares) {
        spans.push(rows..rows + share.rows);
        rows += share.rows;
        if share.rows == 0 {
            continue;
        }
        let start = sequence.state.position();
        sequence.state.copy_at(sequence.reuse.copies_after(start));
        let tokens = sequence.tokens.get(start..start + share.rows).unwrap_or_default();
        let logits = if share.chooses { LogitRows::Last } else { LogitRows::None };
        segments.push(Segment { state: &mut sequence.state, tokens, logits, purpose: share.purpose });
    }
    let logits = model.forward(&mut segments, taps).map_err(from_model)?;
    Ok(Ran { logits, spans, started })
}

pub(crate) fn from_model(error: ModelError) -> EngineError {
    match error {
        ModelError::Memory(reason) => EngineError::Memory(reason),
        other => EngineError::Model(other.to_string()),
    }
}
