//! Everything that is kept of a sequence at one position.

use std::borrow::Cow;
use std::sync::Arc;

use mach_experts::HotExperts;
use mach_models::{ModelError, SequenceState};
use mach_specdec::Draft;

/// The state of the target, what the draft keeps, and the logits after the last token if they were computed.
#[derive(Debug, Clone)]
pub struct Image {
    /// The target's state.
    pub state: SequenceState,
    /// The draft's context, if a draft is in use.
    pub draft: Option<SequenceState>,
    /// Logits after the last token.
    pub logits: Option<Arc<[f32]>>,
    /// The experts that the tokens used most, if experts are streamed.
    pub hot: Option<Arc<HotExperts>>,
}

impl Image {
    /// Tokens seen.
    pub fn position(&self) -> usize {
        self.state.position()
    }

    /// Whether [`cut`](Self::cut) works at any position.
    pub fn can_be_cut(&self) -> bool {
        self.state.can_be_cut() && self.draft.as_ref().is_none_or(SequenceState::can_be_cut)
    }

    /// The image as it was at an earlier position, if that can be had.
    pub fn cut(&self, position: usize) -> Option<Image> {
        if position == self.position() {
            return Some(self.clone());
        }
        let draft = self.draft.as_ref().map(|draft| draft.cut(position));
        let draft = match draft {
            Some(None) => return None,
            Some(cut) => cut,
            None => None,
        };
        Some(Image { state: self.state.cut(position)?, draft, logits: None, hot: self.hot.clone() })
    }

    /// Pages, which others may share: what tells them apart while they live, and their bytes.
    pub(crate) fn pages(&self) -> Vec<(usize, usize)> {
        let draft = self.draft.iter().flat_map(SequenceState::pages);
        self.state.pages().chain(draft).collect()
    }

    /// Bytes that are never shared.
    pub(crate) fn own_bytes(&self) -> usize {
        let logits = self.logits.as_ref().map_or(0, |logits| 4 * logits.len());
        self.state.own_bytes() + logits + self.hot.as_ref().map_or(0, |hot| hot.bytes())
    }

    /// Bytes that [`export`](Self::export) gives.
    pub(crate) fn exported_bytes(&self) -> usize {
        let logits = self.logits.as_ref().map_or(0, |logits| 4 * logits.len());
        let draft = self.draft.as_ref().map_or(0, SequenceState::exported_bytes);
        self.state.exported_bytes() + draft + logits
    }

    /// Everything as bytes, in a fixed order. Fails if a device cannot give out what it holds.
    pub(crate) fn export(&self) -> Result<Vec<Cow<'_, [u8]>>, ModelError> {
        let mut out = self.state.export()?;
        if let Some(draft) = &self.draft {
            out.extend(draft.export()?);
        }
        out.extend(self.logits.iter().map(|logits| Cow::Borrowed(bytemuck::cast_slice(logits))));
        Ok(out)
    }
}

/// Makes images to be filled with saved bytes.
#[derive(Debug, Clone)]
pub struct Blank {
    /// An empty sequence of the model.
    pub state: SequenceState,
    /// The draft in use.
    pub draft: Option<Arc<dyn Draft>>,
}

/// An image in the filling.
#[derive(Debug)]
pub(crate) struct Unfilled {
    pub(crate) state: SequenceState,
    pub(crate) draft: Option<SequenceState>,
    pub(crate) logits: Vec<f32>,
}

impl Blank {
    /// An image at `position`; `None` if a draft is asked for that is not there.
    pub(crate) fn image(&self, position: usize, draft: bool, logits: usize) -> Option<Unfilled> {
        let draft = match (draft, &self.draft) {
            (false, _) => None,
            (true, Some(draft)) => Some(draft.blank_context(position)?),
            (true, None) => return None,
        };
        Some(Unfilled { state: self.state.blank(position), draft, logits: vec![0.0; logits] })
    }
}

impl Unfilled {
    /// Where exported bytes are to be put.
    pub(crate) fn import(&mut self) -> Vec<&mut [u8]> {
        let mut out = self.state.import();
        out.extend(self.draft.iter_mut().flat_map(SequenceState::import));
        if !self.logits.is_empty() {
            out.push(bytemuck::cast_slice_mut(&mut self.logits));
        }
        out
    }

    pub(crate) fn filled(mut self) -> Result<Image, ModelError> {
        self.state.imported()?;
        self.draft.iter_mut().try_for_each(SequenceState::imported)?;
        let logits = (!self.logits.is_empty()).then(|| self.logits.into());
        Ok(Image { state: self.state, draft: self.draft, logits, hot: None })
    }
}
