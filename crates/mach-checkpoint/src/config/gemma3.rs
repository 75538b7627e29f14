//! What the text model of Gemma 3 says of itself beside the settings that all families have.

use serde::Deserialize;
use serde_json::Value;

use super::parse::from_value;

/// Settings of Gemma 3.
#[derive(Debug, Clone, PartialEq)]
pub struct Gemma3Config {
    /// Base of the rotary frequencies of full attention layers.
    pub full_theta: f64,
    /// Multiplies attention scores.
    pub scale: f32,
    /// Caps logits: `cap * tanh(logit / cap)`.
    pub softcap: Option<f32>,
}

/// As written. Absent and null are the same.
#[derive(Deserialize)]
struct Text {
    query_pre_attn_scalar: Option<f64>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_parameters: Option<Ropes>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    hidden_activation: Option<String>,
    use_bidirectional_attention: Option<bool>,
}

#[derive(Default, Deserialize)]
struct Ropes {
    sliding_attention: Option<Rope>,
    full_attention: Option<Rope>,
}

#[derive(Deserialize)]
struct Rope {
    rope_type: Option<String>,
    rope_theta: Option<f64>,
}

/// Reads the settings, and the base of the rotary frequencies of sliding layers.
pub(super) fn parse(text: Value, section: &str) -> Result<(Gemma3Config, f64), String> {
    let t: Text = from_value(text, section)?;
    match t.hidden_activation.as_deref() {
        None | Some("gelu_pytorch_tanh") => {}
        Some(other) => return Err(refused(section, "hidden_activation", other)),
    }
    if let Some(cap) = t.attn_logit_softcapping {
        return Err(refused(section, "attn_logit_softcapping", &cap.to_string()));
    }
    if t.use_bidirectional_attention == Some(true) {
        return Err(refused(section, "use_bidirectional_attention", "true"));
    }
    let ropes = t.rope_parameters.unwrap_or_default();
    let theta = |rope: Option<Rope>, place: &str, otherwise: f64| {
        let field = format!("rope_parameters.{place}");
        if let Some(kind) =
            rope.as_ref().and_then(|r| r.rope_type.as_deref()).filter(|kind| *kind != "default")
        {
            return Err(refused(section, &format!("{field}.rope_type"), kind));
        }
        within(
            &format!("{section}{field}.rope_theta"),
            rope.and_then(|r| r.rope_theta).unwrap_or(otherwise),
            1e15,
        )
    };
    let full_theta = theta(ropes.full_attention, "full_attention", t.rope_theta.unwrap_or(1e6))?;
    let local = theta(ropes.sliding_attention, "sliding_attention", t.rope_local_base_freq.unwrap_or(1e4))?;
    let scalar = t.query_pre_attn_scalar.unwrap_or(256.0);
    let scalar = within(&format!("{section}query_pre_attn_scalar"), scalar, 1e6)?;
    let softcap = match t.final_logit_softcapping {
        Some(cap) => Some(within(&format!("{section}final_logit_softcapping"), cap, 1e6)? as f32),
        None => None,
    };
    Ok((Gemma3Config { full_theta, scale: (1.0 / scalar.sqrt()) as f32, softcap }, local))
}

fn refused(section: &str, field: &str, value: &str) -> String {
    format!("`{section}{field}`: {value} is not supported for gemma3_text")
}

fn within(field: &str, value: f64, most: f64) -> Result<f64, String> {
    if value > 0.0 && value <= most {
        return Ok(value);
    }
    Err(format!("`{field}` is {value}; it must be above 0 and at most {most}"))
}
