//! `GET /v1/capabilities`: what this server truly does, read from the running configuration.

use mach_checkpoint::FamilyCard;
use mach_specdec::EffectivePath;
use mach_specdec::policy::PolicySpec;
use serde_json::{Map, Value, json};

use crate::ChatModel;
use crate::memory::MemoryPlan;

/// Libraries that servers of this kind hold answers to a grammar with.
const GRAMMAR_BACKENDS: [&str; 3] = ["xgrammar", "lm_format_enforcer", "llguidance"];

/// What capabilities show beside what the model itself knows.
#[derive(Debug, Clone)]
pub struct Serving {
    /// The back end: `production`.
    pub backend: &'static str,
    /// The model's family, if it is one of the registry.
    pub arch: Option<FamilyCard>,
    /// Where experts live.
    pub residency: Residency,
    /// The model and its device, under the names of the startup line.
    pub card: Vec<(&'static str, String)>,
    /// Its routed experts.
    pub experts: ExpertLayout,
    /// How memory was divided.
    pub memory: MemoryPlan,
    /// How many may be at work, and wait.
    pub places: Places,
}

/// The routed experts of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpertLayout {
    /// Layers that have any.
    pub layers: Vec<usize>,
    /// Experts of each.
    pub experts: usize,
    /// Experts of each that a token uses.
    pub per_token: usize,
}

/// Places for requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// Sequences that run together.
    pub running: usize,
    /// Requests that may wait.
    pub waiting: usize,
}

/// Where experts live while the model runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Residency {
    /// All in memory, in one allocation with a slot for each.
    #[default]
    Stacked,
    /// Records of a sidecar in a bank of some slots.
    Streaming,
    /// Full-precision slices of a bf16 checkpoint.
    Bf16Streaming,
    /// Slices of a checkpoint without a sidecar, slowly.
    Diagnostic,
}

impl Residency {
    /// The documented name. Slices read for diagnosis are streamed too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stacked => "stacked",
            Self::Streaming | Self::Diagnostic => "streaming",
            Self::Bf16Streaming => "bf16_streaming",
        }
    }

    /// The way of serving.
    pub fn mode(self) -> &'static str {
        match self {
            Self::Stacked => "resident",
            Self::Streaming => "streaming",
            Self::Bf16Streaming => "bf16_streaming",
            Self::Diagnostic => "diagnostic",
        }
    }
}

/// The capabilities object.
pub fn capabilities(model: &ChatModel) -> Value {
    let serving = model.serving.as_ref();
    let decoding = &model.decoding;
    let effective = decoding.gate.effective;
    let speculates = effective != EffectivePath::TargetOnly;
    // The presets need no draft; only the policy `off` silences them, and DeepSeek-V4's drafts stand alone.
    let presets: &[&str] = match (decoding.policy, effective) {
        (PolicySpec::Off, _) => &["none"],
        (_, path) if path.is_v4() => &["none"],
        _ => &["none", "summarization", "classification"],
    };
    let residency = serving.map(|s| s.residency).unwrap_or_default();
    // What a request gets that does not set a temperature.
    let samples = model.defaults.temperature > 0.0;
    let own = match effective {
        EffectivePath::V4Mtp => "native_v4_mtp",
        EffectivePath::V4Eagle3 => "native_v4_eagle3",
        EffectivePath::Mtp => "native_mtp",
        EffectivePath::SpecdecV7 | EffectivePath::TargetOnly => "native_v7",
    };
    let (policy, engine) = match (speculates, samples) {
        (true, false) => ("greedy-specdec", own),
        (true, true) => ("sampled-specdec", own),
        (false, _) => ("target-only", "native"),
    };
    let built = mach_engine::grammar::backends();
    let mut grammar: Map<String, Value> =
        GRAMMAR_BACKENDS.iter().map(|&name| (name.to_owned(), built.contains(&name).into())).collect();
    grammar.insert("backend".to_owned(), built.first().copied().into());
    json!({
        "model": model.names.first(),
        "backend": serving.map_or("production", |s| s.backend),
        "supported": serving.is_some_and(|s| s.arch.is_some()),
        "arch": serving.and_then(|s| s.arch),
        "serving": {
            "expert_residency": residency.as_str(),
            "serving_mode": residency.mode(),
            "decode_path": decoding.path.to_string(),
            "effective_decode_path": decoding.gate.effective.to_string(),
            "effective_decode_path_reason": decoding.gate.reason,
            "continuous_batching": model.engine.facts().continuous_batching,
            "turboquant_kv": matches!(model.engine.facts().kv, Some(mach_engine::KvFormat::TurboQuant(_))),
            "decode_policy": {"mode": policy, "engine_mode": engine},
            "speculation": {
                "supported_presets": presets,
                "additive": true,
                "exactness_preserving": true,
            },
            "rho_gate": model.rho.as_ref().map(|gate| gate.status()),
        },
        "grammar": grammar,
    })
}
