//! `/v1/models`.

use serde::Serialize;

/// A served model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelCard {
    /// Name that requests give as `model`.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// When it was loaded, Unix seconds.
    pub created: u64,
    /// Always `mach`.
    pub owned_by: &'static str,
    /// Longest context in tokens, prompt and answer together.
    pub max_model_len: usize,
}

impl ModelCard {
    /// A card.
    pub fn new(id: impl Into<String>, created: u64, max_model_len: usize) -> Self {
        Self { id: id.into(), object: "model", created, owned_by: "mach", max_model_len }
    }
}

/// The list of served models.
#[derive(Debug, Clone, Serialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// One entry a name that requests may use.
    pub data: Vec<ModelCard>,
}

impl ModelList {
    /// A list.
    pub fn new(data: Vec<ModelCard>) -> Self {
        Self { object: "list", data }
    }
}
