//! What `config.json` says about MLX quantization; held against the shapes in the shards.

use std::collections::HashMap;

use mach_quant::FP8_BLOCK;
use serde::Deserialize;
use serde_json::Value;

/// How a module is said to be quantized.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Scheme {
    /// Columns that share a scale.
    pub(crate) group_size: u64,
    /// Bits a code.
    pub(crate) bits: u64,
    /// `affine` if absent.
    #[serde(default = "affine")]
    pub(crate) mode: String,
}

fn affine() -> String {
    "affine".to_owned()
}

/// The `quantization` object: a default and per-module overrides.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quantization {
    default: Option<Scheme>,
    /// `None`: listed as `false`, so not quantized.
    modules: HashMap<String, Option<Scheme>>,
}

impl Quantization {
    /// Reads `quantization`, or `quantization_config` where it has the same form. `published` is the `quant_method` that the
    /// family's published files may name; the names and types of their tensors say the rest.
    pub(crate) fn from_config(root: &Value, published: Option<&str>) -> Result<Self, String> {
        let (key, object) = match (root.get("quantization"), root.get("quantization_config")) {
            (Some(Value::Object(object)), _) => ("quantization", object),
            (_, Some(Value::Object(object))) => ("quantization_config", object),
            (None | Some(Value::Null), None | Some(Value::Null)) => return Ok(Self::default()),
            _ => return Err("`quantization` is not an object".to_owned()),
        };
        match object.get("quant_method") {
            None => {}
            Some(method) if method == "fp8" => {
                published_fp8(key, object)?;
                return Ok(Self::default());
            }
            Some(method) if published.is_some_and(|known| method == known) => return Ok(Self::default()),
            Some(method) => {
                return Err(format!("`{key}.quant_method`: {method} weights are not supported"));
            }
        }
        let scheme = |path: &str, value: &Value| {
            Scheme::deserialize(value).map_err(|error| format!("`{path}`: {error}"))
        };
        let mut quantization = Self::default();
        if object.contains_key("bits") || object.contains_key("group_size") {
            quantization.default = Some(scheme(key, &Value::Object(object.clone()))?);
        }
        for (module, value) in object {
            match value {
                Value::Object(_) => {
                    let entry = scheme(&format!("{key}.{module}"), value)?;
                    quantization.modules.insert(module.clone(), Some(entry));
                }
                Value::Bool(false) => {
                    quantization.modules.insert(module.clone(), None);
                }
                _ => {}
            }
        }
        Ok(quantization)
    }

    /// What is said of a module itself: `None` nothing, `Some(None)` not quantized.
    pub(crate) fn explicit(&self, module: &str) -> Option<Option<&Scheme>> {
        self.modules.get(module).map(Option::as_ref)
    }

    /// What a quantized module should be, if anything says so.
    pub(crate) fn expected(&self, module: &str) -> Option<&Scheme> {
        self.explicit(module).flatten().or(self.default.as_ref())
    }
}

/// Checks what a published fp8 file says of itself: e4m3 in blocks. Its tensors tell the rest.
fn published_fp8(key: &str, object: &serde_json::Map<String, Value>) -> Result<(), String> {
    match object.get("fmt").map(Value::as_str) {
        None | Some(Some("e4m3")) => {}
        Some(_) => return Err(format!("`{key}.fmt`: {} is not supported; known: e4m3", object["fmt"])),
    }
    let blocks = serde_json::json!([FP8_BLOCK, FP8_BLOCK]);
    match object.get("weight_block_size") {
        None => Ok(()),
        Some(size) if *size == blocks => Ok(()),
        Some(size) => Err(format!("`{key}.weight_block_size`: {size} is not supported; known: {blocks}")),
    }
}
