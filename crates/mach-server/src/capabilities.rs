//! `GET /v1/capabilities`: what this server truly does, read from the running configuration.

use mach_checkpoint::ArchitectureCard;
use mach_specdec::EffectivePath;
use mach_specdec::policy::PolicySpec;
use serde_json::{Map, Value, json};

use crate::ChatModel;

/// Libraries that servers of this kind hold answers to a grammar with.
const GRAMMAR_BACKENDS: [&str; 3] = ["llguidance", "xgrammar", "lm_format_enforcer"];

/// What capabilities show beside what the model itself knows.
#[derive(Debug, Clone)]
pub struct Serving {
    /// The back end: `production`.
    pub backend: &'static str,
    /// The model's family, if it is one of the registry.
    pub arch: Option<ArchitectureCard>,
    /// Where experts live: `resident`, `streaming`, `bf16_streaming` or `diagnostic`.
    pub mode: &'static str,
}

/// The capabilities object.
pub fn capabilities(model: &ChatModel) -> Value {
    let serving = model.serving.as_ref();
    let decoding = &model.decoding;
    let speculates = decoding.gate.effective == EffectivePath::SpecdecV7;
    // The presets need no draft; only the policy `off` silences them.
    let presets: &[&str] = match decoding.policy {
        PolicySpec::Off => &["none"],
        _ => &["none", "summarization", "classification"],
    };
    let mode = serving.map_or("resident", |s| s.mode);
    let (policy, engine) =
        if speculates { ("exact-specdec", "native_v7") } else { ("target-only", "native") };
    let built = mach_engine::grammar::backends();
    let grammar: Map<String, Value> =
        GRAMMAR_BACKENDS.iter().map(|&name| (name.to_owned(), built.contains(&name).into())).collect();
    json!({
        "model": model.names.first(),
        "backend": serving.map_or("production", |s| s.backend),
        "supported": true,
        "arch": serving.and_then(|s| s.arch),
        "serving": {
            // Slices read for diagnosis are streamed too.
            "expert_residency": if mode == "diagnostic" { "streaming" } else { mode },
            "serving_mode": mode,
            "decode_path": decoding.path.to_string(),
            "effective_decode_path": decoding.gate.effective.to_string(),
            "effective_decode_path_reason": decoding.gate.reason,
            "continuous_batching": model.engine.config().continuous_batching,
            "turboquant_kv": model.engine.kv_type().starts_with("turboquant"),
            "decode_policy": {"mode": policy, "engine_mode": engine},
            "speculation": {
                "supported_presets": presets,
                "additive": true,
                "exactness_preserving": true,
            },
            "rho_gate": null,
        },
        "grammar": grammar,
    })
}
