//! `generation_config.json`: sampling defaults and stop ids.

use std::path::Path;

use serde::Deserialize;

use super::parse::Ids;
use super::{GenerationConfig, ModelConfig};
use crate::{CheckpointError, json};

#[derive(Deserialize, Default)]
struct Raw {
    eos_token_id: Option<Ids>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` of `dir`; a missing file leaves every field empty. Stop ids fall back to those of
    /// `config.json`.
    pub(crate) fn read(dir: &Path, config: &ModelConfig) -> Result<Self, CheckpointError> {
        let file = dir.join("generation_config.json");
        let raw: Raw = json::read_optional(&file)?.unwrap_or_default();
        let check = |field: &str, value: Option<f32>, low: f32, high: f32| match value {
            Some(v) if !(low..=high).contains(&v) => Err(CheckpointError::invalid(
                &file,
                format!("`{field}` is {v}; it must be between {low} and {high}"),
            )),
            value => Ok(value),
        };
        Ok(Self {
            eos_token_ids: raw.eos_token_id.map_or_else(|| config.eos_token_ids.clone(), Ids::into_vec),
            do_sample: raw.do_sample,
            temperature: check("temperature", raw.temperature, 0.0, 100.0)?,
            top_p: check("top_p", raw.top_p, 0.0, 1.0)?,
            top_k: raw.top_k,
            min_p: check("min_p", raw.min_p, 0.0, 1.0)?,
            repetition_penalty: check("repetition_penalty", raw.repetition_penalty, 1e-3, 1e3)?,
        })
    }
}
