//! Log probabilities of the model's own distribution.

use super::select::{argmax, mass, top_k};

/// Log probabilities at one position, taken before any penalty or temperature.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RawLogprobs {
    best: f32,
    ln_mass: f64,
    /// The most probable tokens, best first.
    pub(crate) top: Vec<(u32, f32)>,
}

impl RawLogprobs {
    /// The log probability of a token with this logit.
    pub(crate) fn of(&self, logit: f32) -> f32 {
        let logprob = f64::from(logit - self.best) - self.ln_mass;
        // Minus infinity has no JSON form.
        if logprob.is_finite() { logprob as f32 } else { -9999.0 }
    }
}

/// Prepares log probabilities with `alternatives` tokens listed.
pub(crate) fn raw_logprobs(logits: &[f32], alternatives: usize) -> RawLogprobs {
    let (best, _) = argmax(logits);
    let total = mass(logits, best, 1.0);
    let ln_mass = if total.is_finite() && total > 0.0 { super::math::ln(total) } else { 0.0 };
    let mut out = RawLogprobs { best, ln_mass, top: Vec::new() };
    let mut candidates = Vec::new();
    top_k(logits, alternatives.min(logits.len()), &mut candidates);
    out.top = candidates.iter().map(|&(logit, id)| (id, out.of(logit))).collect();
    out
}
