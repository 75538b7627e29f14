//! The blocks that families are put together from.

mod attention;
mod beside;
mod compressed;
mod feed_forward;
mod gated_delta;
mod layer;

pub(crate) use attention::Attention;
pub(crate) use compressed::{Compressed, Projections, Streams, load_streams};
pub(crate) use feed_forward::FeedForward;
pub(crate) use gated_delta::GatedDelta;
pub(crate) use layer::{Layer, Mixer};

use crate::device::Device;

/// Buffers that a forward pass reuses.
#[derive(Debug)]
pub(crate) struct Workspace<D: Device> {
    /// Residual stream.
    pub(crate) h: D::Buf,
    /// Normed input of a block.
    pub(crate) x: D::Buf,
    /// Output of a block.
    pub(crate) y: D::Buf,
    /// What one of two networks side by side has put out.
    pub(crate) aside: D::Buf,
    /// Up to four projections of one input.
    pub(crate) p: [D::Buf; 4],
    /// What the mixer hands to its output projection.
    pub(crate) mixed: D::Buf,
    /// Logits on their way out; by itself, for it is large.
    pub(crate) logits: D::Buf,
    pub(crate) routing: D::Routing,
    /// Residual streams, where there are several.
    pub(crate) streams: D::Buf,
    /// What mixes them behind a block.
    pub(crate) mixing: D::Buf,
    /// Projections of compressed attention.
    pub(crate) projections: Projections<D::Buf>,
}

impl<D: Device> Default for Workspace<D> {
    fn default() -> Self {
        Workspace {
            h: D::Buf::default(),
            x: D::Buf::default(),
            y: D::Buf::default(),
            aside: D::Buf::default(),
            p: Default::default(),
            mixed: D::Buf::default(),
            logits: D::Buf::default(),
            routing: D::Routing::default(),
            streams: D::Buf::default(),
            mixing: D::Buf::default(),
            projections: Projections::default(),
        }
    }
}
