//! What truly runs, in types: for startup signals, capabilities and reports.

use std::fmt;

use mach_quant::TurboQuant;

use crate::Activations;

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvFormat {
    /// bfloat16.
    #[default]
    Bf16,
    /// f32, exact.
    F32,
    /// Rotated and quantized, where a layer is worth it.
    TurboQuant(TurboQuant),
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvFormat::Bf16 => f.write_str("bf16"),
            KvFormat::F32 => f.write_str("f32"),
            KvFormat::TurboQuant(widths) => write!(f, "turboquant-{widths}"),
        }
    }
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Activations::Int8 => "int8",
            Activations::F32 => "f32",
        })
    }
}

/// Where routed experts are, and how much room they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertsCard {
    /// All in memory.
    Resident {
        /// Bytes of their weights, padding not counted.
        weight_bytes: u64,
        /// Slots, one for each expert.
        slots: usize,
    },
    /// On the drive.
    Streaming {
        /// Slots of the bank.
        slots: usize,
        /// Slots of the arena.
        arena_slots: usize,
        /// Bytes of a slot.
        slot_bytes: usize,
        /// Which expert leaves a full bank.
        eviction: &'static str,
    },
}

/// A device at work.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceCard {
    /// Instruction set or adapter.
    pub isa: String,
    /// Compute threads.
    pub threads: usize,
    /// Activation path.
    pub activations: Activations,
    /// Keys and values.
    pub kv: KvFormat,
    /// Bytes of the weights outside the experts, padding not counted.
    pub resident_weight_bytes: u64,
    /// Share of the weights' memory on huge pages, if the system tells.
    pub huge_page_share: Option<f64>,
    /// Routed experts.
    pub experts: ExpertsCard,
}

/// A loaded model.
///
/// ```
/// use mach_models::ModelCard;
/// let card = ModelCard::without_device("double", 3);
/// assert_eq!(card.pairs(), [("model_type", "double".to_owned()), ("layers", "3".to_owned())]);
/// assert_eq!(card.kv(), None);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCard {
    /// `model_type` of its configuration.
    pub model_type: String,
    /// Number of layers.
    pub layers: usize,
    /// What runs it; `None` for a stand-in without a device.
    pub device: Option<DeviceCard>,
}

impl ModelCard {
    /// A stand-in that computes nothing.
    pub fn without_device(model_type: &str, layers: usize) -> Self {
        ModelCard { model_type: model_type.to_owned(), layers, device: None }
    }

    /// How keys and values are kept, if a device keeps any.
    pub fn kv(&self) -> Option<KvFormat> {
        self.device.as_ref().map(|device| device.kv)
    }

    /// As pairs, in the order and under the names of the startup signal.
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![("model_type", self.model_type.clone()), ("layers", self.layers.to_string())];
        let Some(device) = &self.device else { return pairs };
        pairs.extend([
            ("isa", device.isa.clone()),
            ("threads", device.threads.to_string()),
            ("activations", device.activations.to_string()),
            ("kv_type", device.kv.to_string()),
            ("resident_weight_bytes", device.resident_weight_bytes.to_string()),
            (
                "huge_page_share",
                device.huge_page_share.map_or("unknown".into(), |share| format!("{share:.2}")),
            ),
        ]);
        match device.experts {
            ExpertsCard::Resident { weight_bytes, slots } => pairs.extend([
                ("expert_weight_bytes", weight_bytes.to_string()),
                ("expert_slots", slots.to_string()),
            ]),
            ExpertsCard::Streaming { slots, arena_slots, slot_bytes, eviction } => pairs.extend([
                ("expert_slots", slots.to_string()),
                ("arena_slots", arena_slots.to_string()),
                ("expert_slot_bytes", slot_bytes.to_string()),
                ("bank_eviction", eviction.to_owned()),
            ]),
        }
        pairs
    }
}
