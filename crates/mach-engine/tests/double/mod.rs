//! A model made of a hash: the logits after a token depend on the token and its position alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mach_checkpoint::{Family, LayerKind, ModelConfig, MoeConfig, RopeConfig};
use mach_models::{LogitRows, Logits, Model, ModelCard, ModelError, Observer, Segment, SequenceState};

/// What happened inside, for tests to look at.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Passes run.
    pub(crate) passes: AtomicUsize,
    /// Most tokens of one segment.
    pub(crate) longest_segment: AtomicUsize,
    /// Most segments of one pass.
    pub(crate) most_segments: AtomicUsize,
}

/// The test double.
pub(crate) struct Double {
    config: ModelConfig,
    /// Time a pass takes.
    pub(crate) pace: Duration,
    /// Time that bringing up a state takes.
    pub(crate) start_pace: Duration,
    /// A prompt that holds this token makes the pass panic.
    pub(crate) panic_on: Option<u32>,
    /// A prompt that holds this token makes the pass fail.
    pub(crate) fail_on: Option<u32>,
    /// Passes over more than one sequence fail.
    pub(crate) fail_shared: bool,
    /// Tokens are chosen from this list alone, by position.
    pub(crate) script: Vec<u32>,
    pub(crate) seen: Arc<Seen>,
}

impl Double {
    pub(crate) fn new(vocab_size: usize, context: usize) -> Self {
        let config = ModelConfig {
            family: Family::Qwen3Moe,
            model_type: "double".into(),
            hidden_size: 16,
            vocab_size,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 16,
            intermediate_size: 0,
            rms_norm_eps: 1e-6,
            rope: RopeConfig { theta: 1e4, rotary_dim: 16, yarn: None, llama3: None },
            layers: vec![LayerKind::FullAttention],
            moe_layers: vec![true],
            moe: MoeConfig {
                num_experts: 1,
                top_k: 1,
                intermediate_size: 16,
                shared_intermediate_size: None,
                norm_topk_prob: true,
                expert_bias: false,
                swiglu_limit: None,
                swiglu_alpha: None,
            },
            attention_bias: false,
            sliding_window: None,
            gemma3: None,
            gemma4: None,
            gdn: None,
            compressed: None,
            tie_word_embeddings: true,
            max_position_embeddings: context,
            eos_token_ids: vec![],
            tensor_prefix: "model.".into(),
            head_module: "lm_head".into(),
        };
        Self {
            config,
            pace: Duration::ZERO,
            start_pace: Duration::ZERO,
            panic_on: None,
            fail_on: None,
            fail_shared: false,
            script: Vec::new(),
            seen: Arc::default(),
        }
    }

    fn logits(&self, position: usize, token: u32, out: &mut Vec<f32>) {
        let scripted = self.script.get(position).copied();
        out.extend((0..self.config.vocab_size as u32).map(|id| {
            let mut h = (position as u64) << 40 ^ u64::from(token) << 20 ^ u64::from(id);
            h = (h ^ (h >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            h = (h ^ (h >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let noise = (h >> 40) as f32 / (1 << 24) as f32 * 6.0;
            if scripted == Some(id) { 100.0 } else { noise }
        }));
    }
}

impl Model for Double {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn new_state(&self) -> SequenceState {
        std::thread::sleep(self.start_pace);
        SequenceState::without_layers()
    }

    fn state_bytes(&self, tokens: usize) -> usize {
        tokens * 100
    }

    fn forward(
        &mut self,
        segments: &mut [Segment<'_>],
        _observer: &mut dyn Observer,
    ) -> Result<Logits, ModelError> {
        self.seen.passes.fetch_add(1, Ordering::SeqCst);
        self.seen.most_segments.fetch_max(segments.len(), Ordering::SeqCst);
        std::thread::sleep(self.pace);
        if self.fail_shared && segments.len() > 1 {
            return Err(ModelError::Unsupported("the double takes one at a time".into()));
        }
        let mut logits = Logits { vocab: self.config.vocab_size, data: Vec::new() };
        for segment in segments {
            self.seen.longest_segment.fetch_max(segment.tokens.len(), Ordering::SeqCst);
            for (i, &token) in segment.tokens.iter().enumerate() {
                assert_ne!(Some(token), self.panic_on, "the double panics as told");
                if Some(token) == self.fail_on {
                    return Err(ModelError::Unsupported("the double fails as told".into()));
                }
                let last = i + 1 == segment.tokens.len();
                let wanted = match segment.logits {
                    LogitRows::None => false,
                    LogitRows::Last => last,
                    LogitRows::All => true,
                };
                if wanted {
                    self.logits(segment.state.position() + i, token, &mut logits.data);
                }
            }
            segment.state.advance(segment.tokens.len());
        }
        Ok(logits)
    }

    fn card(&self) -> ModelCard {
        ModelCard::without_device("double", self.config.layers.len())
    }

    fn numerics(&self) -> String {
        "double".to_owned()
    }
}
