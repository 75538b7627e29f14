//! A block of the model's own that predicts the token after the next: one more layer with its own experts, which borrows
//! the model's embedding and head. Two forms are known (architectures.md sections 2.8 and 6.10).
//!
//! Row `t` takes what the model made of position `t` and the token at `t + 1`, and predicts the one at `t + 2`. What the
//! block itself makes of a row can stand for what the model would make of the next position, so that it can go on by
//! itself from the token that it predicted.

mod forward;
mod weights;

pub(crate) use weights::{MtpWeights, place};
pub use weights::{check_block, present};

use crate::{DraftNeeds, LogitRows, Logits, ModelError, SequenceState};

/// What is known of a block, or of a head ([`crate::eagle3`]), that a model has loaded; shared by all sequences. The weights are the model's.
#[derive(Debug)]
pub struct Mtp {
    name: &'static str,
    empty: SequenceState,
    width: usize,
    window: Option<usize>,
    taps: Vec<usize>,
    /// How many residual streams a feature is the mean of, and the width of one.
    mean_of: (usize, usize),
    needs: DraftNeeds,
}

impl Mtp {
    /// An EAGLE-3 head.
    pub(crate) fn of_head(
        empty: SequenceState,
        width: usize,
        taps: Vec<usize>,
        mean_of: (usize, usize),
        needs: DraftNeeds,
    ) -> Self {
        Mtp { name: "eagle3", empty, width, window: None, taps, mean_of, needs }
    }

    /// What it is called in statistics: `mtp`, or `eagle3` for a head that came with files of its own.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Appends the outputs of the tapped layers, `[rows, taps, streams, hidden]`, as features.
    pub fn take(&self, outputs: &[f32], features: &mut Vec<f32>) {
        let (streams, hidden) = self.mean_of;
        if streams <= 1 {
            return features.extend_from_slice(outputs);
        }
        let share = 1.0 / streams as f32;
        for streams in outputs.chunks_exact((streams * hidden).max(1)) {
            let first = features.len();
            features.extend(streams.iter().take(hidden));
            let mean = features.get_mut(first..).unwrap_or_default();
            for stream in streams.chunks_exact(hidden).skip(1) {
                mean.iter_mut().zip(stream).for_each(|(sum, value)| *sum += value);
            }
            mean.iter_mut().for_each(|sum| *sum *= share);
        }
    }

    /// The state of a sequence of which nothing was taken in.
    pub fn new_context(&self) -> SequenceState {
        self.empty.clone()
    }

    /// Values of a row of features: for a block of the model's own the output of the last layer, all its residual streams.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows back that a prediction depends on, its own included; `None` if it depends on all.
    pub fn window(&self) -> Option<usize> {
        self.window
    }

    /// The layers whose outputs it takes: a block of the model's own that of the last.
    pub fn taps(&self) -> &[usize] {
        &self.taps
    }

    /// Bytes of its matrices.
    pub fn weight_bytes(&self) -> usize {
        self.needs.weights
    }

    /// What it takes of memory.
    pub fn needs(&self) -> DraftNeeds {
        self.needs
    }

    /// A context of `len` positions to be imported into.
    pub fn blank_context(&self, len: usize) -> SequenceState {
        self.empty.blank(len)
    }

    /// What [`rewind`](Self::rewind) goes back to.
    pub fn mark(&self, context: &SequenceState) -> Mark {
        match self.window {
            // What a window hides is forgotten.
            Some(_) => Mark::Copy(Box::new(context.clone())),
            None => Mark::Position(context.position()),
        }
    }

    /// Undoes all rows that were taken in since the mark.
    pub fn rewind(&self, context: &mut SequenceState, mark: Mark) {
        match mark {
            Mark::Copy(copy) => *context = *copy,
            Mark::Position(position) => context.truncate(position),
        }
    }
}

/// A state of a block's context to go back to.
#[derive(Debug)]
pub enum Mark {
    /// Nothing is forgotten: cutting off what came behind is enough.
    Position(usize),
    /// As it was.
    Copy(Box<SequenceState>),
}

/// What rows of a block are made from, beside tokens; `[rows, width]`.
#[derive(Debug, Clone, Copy)]
pub enum Features<'a> {
    /// What the model's last layer put out.
    Model(&'a [f32]),
    /// What the block itself did ([`Predicted::own`]), of its own width.
    Own(&'a [f32]),
}

impl<'a> Features<'a> {
    /// The values.
    pub fn values(self) -> &'a [f32] {
        match self {
            Features::Model(values) | Features::Own(values) => values,
        }
    }
}

/// What a block says of rows.
#[derive(Debug, Default)]
pub struct Predicted {
    /// Of the token after the one that a row was given, for the rows asked for.
    pub logits: Logits,
    /// For each of them, by how much the best logit leads the second.
    pub margins: Vec<f32>,
    /// Features of the position behind the last of them, if the predicted token stands there.
    pub own: Vec<f32>,
}

/// Runs a loaded block on the model's device.
pub trait MtpHost {
    /// Takes in rows: features of positions that follow one another, and for each the token at the next position.
    fn predict(
        &mut self,
        context: &mut SequenceState,
        features: Features<'_>,
        tokens: &[u32],
        logits: LogitRows,
    ) -> Result<Predicted, ModelError>;
}
