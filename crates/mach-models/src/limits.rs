//! What the kernels ask of a model's sizes.

use mach_checkpoint::ModelConfig;

use crate::model::ModelError;

/// Lanes of the kernels' vectors: attention heads and the heads of linear attention are whole vectors.
const LANES: usize = 16;

/// Refuses a model that the kernels cannot run, naming the field of `config.json` (its values are valid, so the checkpoint is not at fault).
pub(crate) fn check(config: &ModelConfig) -> Result<(), ModelError> {
    let mut sizes = vec![("head_dim", config.head_dim)];
    if let Some(gdn) = &config.gdn {
        sizes.extend([("linear_key_head_dim", gdn.key_dim), ("linear_value_head_dim", gdn.value_dim)]);
    }
    match sizes.into_iter().find(|(_, size)| !size.is_multiple_of(LANES)) {
        Some((field, size)) => Err(ModelError::Unsupported(format!(
            "config.json: `{field}` is {size}; this build needs a multiple of {LANES}"
        ))),
        None => Ok(()),
    }
}
