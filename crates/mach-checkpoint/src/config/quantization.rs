//! What `config.json` says about MLX quantization; held against the shapes in the shards.

use std::collections::HashMap;

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
        if let Some(method) = object.get("quant_method") {
            if published.is_some_and(|known| method == known) {
                return Ok(Self::default());
            }
            return Err(format!("`{key}.quant_method`: {method} weights are not supported"));
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
