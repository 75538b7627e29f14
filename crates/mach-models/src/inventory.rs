//! Which weights a checkpoint's family asks for beside its experts, and in which form: what a converter must write.

use mach_checkpoint::{Checkpoint, CheckpointError, ModelConfig};
use mach_quant::Order;

use crate::backend::Loader;
use crate::cpu::Matrix;
use crate::loader::family_parts;

/// A weight outside the experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResidentWeight {
    /// A matrix: full module path without `.weight`.
    Matrix {
        /// Module.
        module: String,
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// Always met by float activations (routers, gates): wants [`Order::Rows`] and full precision.
        float: bool,
    },
    /// A vector or convolution, read as floats: full tensor name.
    Floats {
        /// Tensor.
        tensor: String,
    },
}

/// Lists them in the order in which they are asked for. Reads the vectors, which are small, and checks them.
pub fn resident_weights(checkpoint: &Checkpoint) -> Result<Vec<ResidentWeight>, CheckpointError> {
    let mut inventory = Inventory { checkpoint, weights: Vec::new() };
    family_parts(checkpoint, &mut inventory)?;
    Ok(inventory.weights)
}

struct Inventory<'a> {
    checkpoint: &'a Checkpoint,
    weights: Vec<ResidentWeight>,
}

impl Inventory<'_> {
    fn name(&self, relative: &str) -> String {
        format!("{}{relative}", self.checkpoint.config().tensor_prefix)
    }

    fn add(
        &mut self,
        module: String,
        rows: usize,
        cols: usize,
        float: bool,
    ) -> Result<Matrix, CheckpointError> {
        let layout = self.checkpoint.weights(&module, rows, cols)?.layout(Order::Rows)?;
        self.weights.push(ResidentWeight::Matrix { module, rows, cols, float });
        Ok(Matrix { layout, offset: 0 })
    }

    fn floats(&mut self, tensor: String, values: Vec<f32>) -> Vec<f32> {
        self.weights.push(ResidentWeight::Floats { tensor });
        values
    }
}

impl Loader for Inventory<'_> {
    type Matrix = Matrix;
    type Vector = Vec<f32>;

    fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    fn matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<Matrix, CheckpointError> {
        self.add(self.name(module), rows, cols, false)
    }

    fn float_matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<Matrix, CheckpointError> {
        self.add(self.name(module), rows, cols, true)
    }

    fn head(&mut self, embedding: &Matrix) -> Result<Matrix, CheckpointError> {
        let config = self.checkpoint.config();
        if config.tie_word_embeddings {
            return Ok(*embedding);
        }
        self.add(config.head_module.clone(), config.vocab_size, config.hidden_size, false)
    }

    fn vector(
        &mut self,
        tensor: &str,
        shape: &[usize],
        map: &dyn Fn(f32) -> f32,
    ) -> Result<Vec<f32>, CheckpointError> {
        let name = self.name(tensor);
        let values = self.checkpoint.floats(&name, shape)?.into_iter().map(map).collect();
        Ok(self.floats(name, values))
    }

    fn norm(&mut self, tensor: &str, n: usize) -> Result<Vec<f32>, CheckpointError> {
        self.vector(tensor, &[n], &|w| w)
    }

    fn conv1d(&mut self, layer: usize, _: usize, _: usize) -> Result<Vec<f32>, CheckpointError> {
        let values = self.checkpoint.conv1d(layer)?;
        let name = self.name(&format!("layers.{layer}.linear_attn.conv1d.weight"));
        Ok(self.floats(name, values))
    }
}
