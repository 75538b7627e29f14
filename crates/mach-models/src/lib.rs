//! Model families, the blocks they share, and sequence state.
//!
//! A [`Model`] turns token rows of one or many sequences into logits. Under the numerics contract a row's logits depend
//! only on the checkpoint, the activation mode and the tokens of its own sequence: never on how tokens are split into
//! calls, on the other segments of a call, on threads or on the instruction set.

mod model;

pub use model::{
    Activations, LoadOptions, LoadProgress, LogitRows, Logits, Model, ModelError, NoObserver, Observer,
    Segment, load,
};

mod state;
pub use state::SequenceState;
