//! A model that costs nothing: it says the same words over and over.

use mach_checkpoint::ModelConfig;
use mach_models::{LogitRows, Logits, Model, ModelCard, ModelError, Observer, Segment, SequenceState};

/// The double. It lives in this benchmark alone.
pub(super) struct Free {
    config: ModelConfig,
    /// Tokens that it says, by position.
    words: Vec<u32>,
    /// Rows of zeros, and where a one was written last.
    spare: Vec<f32>,
    written: Vec<usize>,
}

impl Free {
    pub(super) fn new(config: ModelConfig, context: usize, words: Vec<u32>) -> Self {
        let config = ModelConfig { max_position_embeddings: context, ..config };
        Self { config, words, spare: Vec::new(), written: Vec::new() }
    }
}

impl Model for Free {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn new_state(&self) -> SequenceState {
        SequenceState::without_layers()
    }

    fn state_bytes(&self, _tokens: usize) -> usize {
        0
    }

    fn forward(
        &mut self,
        segments: &mut [Segment<'_>],
        _observer: &mut dyn Observer,
    ) -> Result<Logits, ModelError> {
        let vocab = self.config.vocab_size;
        let mut data = std::mem::take(&mut self.spare);
        for at in self.written.drain(..) {
            if let Some(value) = data.get_mut(at) {
                *value = 0.0;
            }
        }
        let mut rows = 0;
        for segment in segments {
            let position = segment.state.position() + segment.tokens.len();
            segment.state.advance(segment.tokens.len());
            let wanted = match segment.logits {
                LogitRows::None => 0,
                LogitRows::Last => 1,
                LogitRows::All => segment.tokens.len(),
            };
            for row in 0..wanted {
                let position = position + 1 + row - wanted;
                let word = self.words.get(position % self.words.len().max(1)).copied().unwrap_or(0);
                self.written.push((rows + row) * vocab + word as usize);
            }
            rows += wanted;
        }
        data.resize(rows * vocab, 0.0);
        for &at in &self.written {
            if let Some(value) = data.get_mut(at) {
                *value = 1.0;
            }
        }
        Ok(Logits { vocab, data })
    }

    fn recycle(&mut self, logits: Logits) {
        self.spare = logits.data;
    }

    fn card(&self) -> ModelCard {
        ModelCard::without_device("free", self.config.layers.len())
    }

    fn numerics(&self) -> String {
        "free".to_owned()
    }
}
