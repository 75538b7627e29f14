//! How a request wants its tokens chosen.

use mach_checkpoint::GenerationConfig;

/// Sampling parameters with every default resolved.
///
/// ```
/// use mach_checkpoint::GenerationConfig;
/// use mach_engine::SamplingParams;
/// // What the checkpoint leaves open is plain sampling; what is out of range is ignored.
/// let config = GenerationConfig { top_p: Some(0.9), min_p: Some(7.0), ..GenerationConfig::default() };
/// let params = SamplingParams::defaults(&config, 42);
/// assert_eq!((params.temperature, params.top_p, params.min_p), (1.0, 0.9, 0.0));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most probable token (the lowest id among equals).
    pub temperature: f32,
    /// Candidates kept; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest best candidates with this much probability together; 1 keeps all.
    pub top_p: f32,
    /// Keeps candidates at least this probable relative to the best; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits (multiplies negative ones) of tokens in the prompt or the answer; 1 is none.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Subtracted once for each time the token is in the answer.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the noise.
    pub seed: u64,
}

impl SamplingParams {
    /// Greedy, without penalties.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }

    /// The checkpoint's defaults; what it leaves open is plain sampling at temperature 1. Values out of range are ignored.
    pub fn defaults(config: &GenerationConfig, seed: u64) -> Self {
        let within = |v: Option<f32>, low: f32, high: f32| v.filter(|v| (low..=high).contains(v));
        let temperature = match config.do_sample {
            Some(false) => 0.0,
            _ => within(config.temperature, 0.0, f32::MAX).unwrap_or(1.0),
        };
        Self {
            temperature,
            top_k: config.top_k.unwrap_or(0),
            top_p: within(config.top_p, 0.0, 1.0).unwrap_or(1.0),
            min_p: within(config.min_p, 0.0, 1.0).unwrap_or(0.0),
            repetition_penalty: within(config.repetition_penalty, f32::MIN_POSITIVE, f32::MAX).unwrap_or(1.0),
            seed,
            ..Self::greedy()
        }
    }
}
