//! What a layer carries from token to token, wherever its device keeps it.

use std::any::Any;
use std::borrow::Cow;

use crate::ModelError;

/// Takes in an exported state, piece by piece in a fixed order. What a device holds in the host's memory is borrowed.
pub type StateSink<'s, 'a> = &'s mut dyn FnMut(Cow<'a, [u8]>);

/// Is handed memory to be filled with exported pieces, in the order of the export.
pub type StateSource<'s, 'a> = &'s mut dyn FnMut(&'a mut [u8]);

/// State of one layer of one sequence. A device makes it ([`Device::new_state`](super::Device::new_state)) and finds its own type
/// in it again.
pub trait LayerState: std::fmt::Debug + Send + Sync + Any {
    /// A copy; it may share what will not change. It cannot be rewound.
    fn copy(&self) -> Box<dyn LayerState>;
    /// For finding the device's own type.
    fn as_any(&self) -> &dyn Any;
    /// For finding the device's own type.
    fn as_any_mut(&mut self) -> &mut dyn Any;
    /// Bytes held, shared ones included.
    fn bytes(&self) -> usize;
    /// Bytes that are never shared.
    fn own_bytes(&self) -> usize;
    /// Tells the pages that other copies may share: what tells them apart while they live, and their bytes.
    fn pages(&self, tell: &mut dyn FnMut(usize, usize));
    /// The next pass is one that may be cut short.
    fn begin_block(&mut self) {}
    /// Cuts off the positions from `position` on. State that cannot be cut is left to
    /// [`Device::rewind_delta`](super::Device::rewind_delta).
    fn truncate(&mut self, position: usize);
    /// Has the next pass copy the state after these numbers of its rows, ascending.
    fn copy_after(&mut self, _rows: &[usize]) {}
    /// The state at these positions, all reached by the last pass and asked for by
    /// [`copy_after`](Self::copy_after). Fewer, if that pass kept fewer.
    fn take_copies(&mut self, positions: &[usize]) -> Vec<Box<dyn LayerState>>;
    /// The state as it was at an earlier position, if nothing that it needs was forgotten.
    fn cut(&self, position: usize) -> Option<Box<dyn LayerState>>;
    /// Whether [`cut`](Self::cut) works at any position.
    fn can_be_cut(&self) -> bool;
    /// Whether positions are forgotten that no query can see any more, so that there is no way back to them.
    fn forgets(&self) -> bool {
        false
    }
    /// What recurrent layers carry: the last inputs of the convolution `[channels, taps - 1]` and the matrices
    /// `[value_heads, key_dim, value_dim]`.
    fn recurrent(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        None
    }
    /// From the state of an empty sequence, one at `position`, to be imported into.
    fn blank(&self, position: usize) -> Box<dyn LayerState>;
    /// Bytes that [`export`](Self::export) gives.
    fn exported_bytes(&self) -> usize;
    /// Gives all that is held to the sink. The pieces' lengths depend on the model and the position alone.
    fn export<'a>(&'a self, sink: StateSink<'_, 'a>) -> Result<(), ModelError>;
    /// Hands out the memory that exported pieces are put into. [`imported`](Self::imported) makes it count.
    fn import<'a>(&'a mut self, source: StateSource<'_, 'a>);
    /// All pieces handed out by [`import`](Self::import) are filled.
    fn imported(&mut self) -> Result<(), ModelError> {
        Ok(())
    }
}

impl Clone for Box<dyn LayerState> {
    fn clone(&self) -> Self {
        (**self).copy()
    }
}
