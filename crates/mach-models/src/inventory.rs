//! Which weights a checkpoint's family asks for beside its experts, and in which form: what a converter must write.

use mach_checkpoint::{Checkpoint, CheckpointError, ModelConfig};
use mach_quant::Order;

use crate::device::Loader;
use crate::{families, mtp};

/// A weight outside the experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResidentWeight {
    /// A matrix: full module path without `.weight`.
    Matrix {
        /// Full module path, without `.weight`.
        module: String,
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// Always met by float activations (routers, gates): wants [`Order::Rows`] and full precision.
        float: bool,
    },
    /// A vector, convolution or table, kept as it is: full tensor name.
    Floats {
        /// Full tensor name.
        tensor: String,
    },
}

/// Lists them in the order in which they are asked for. Reads the vectors, which are small, and checks them.
pub fn resident_weights(checkpoint: &Checkpoint) -> Result<Vec<ResidentWeight>, CheckpointError> {
    let mut inventory = Inventory { checkpoint, weights: Vec::new() };
    let spec = families::spec(checkpoint.config());
    families::load(&mut inventory, &spec)?;
    if mtp::present(checkpoint) {
        mtp::place(&mut inventory, &spec)?;
    }
    Ok(inventory.weights)
}

struct Inventory<'a> {
    checkpoint: &'a Checkpoint,
    weights: Vec<ResidentWeight>,
}

impl Inventory<'_> {
    fn name(&self, relative: &str) -> String {
        self.checkpoint.full_name(relative)
    }

    fn add(&mut self, module: String, rows: usize, cols: usize, float: bool) -> Result<(), CheckpointError> {
        self.checkpoint.weights(&module, rows, cols)?.layout(Order::Rows)?;
        self.weights.push(ResidentWeight::Matrix { module, rows, cols, float });
        Ok(())
    }
}

impl Loader for Inventory<'_> {
    type Matrix = ();
    type Vector = ();

    fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    fn matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<(), CheckpointError> {
        self.add(self.name(module), rows, cols, false)
    }

    fn float_matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<(), CheckpointError> {
        self.add(self.name(module), rows, cols, true)
    }

    fn head(&mut self, (): &()) -> Result<(), CheckpointError> {
        let config = self.checkpoint.config();
        if config.tie_word_embeddings {
            return Ok(());
        }
        self.add(config.head_module.clone(), config.vocab_size, config.hidden_size, false)
    }

    fn vector(&mut self, tensor: &str, shape: &[usize]) -> Result<(), CheckpointError> {
        let tensor = self.name(tensor);
        self.checkpoint.floats(&tensor, shape)?;
        self.weights.push(ResidentWeight::Floats { tensor });
        Ok(())
    }

    fn scaled(&mut self, tensor: &str, shape: &[usize], _: f32) -> Result<(), CheckpointError> {
        self.vector(tensor, shape)
    }

    fn scalar(&mut self, tensor: &str) -> Result<f32, CheckpointError> {
        self.vector(tensor, &[1])?;
        Ok(self.checkpoint.floats(&self.name(tensor), &[1])?.into_iter().sum())
    }

    fn integers(&mut self, tensor: &str, shape: &[usize], below: u32) -> Result<(), CheckpointError> {
        let tensor = self.name(tensor);
        self.checkpoint.integers(&tensor, shape, below)?;
        self.weights.push(ResidentWeight::Floats { tensor });
        Ok(())
    }

    fn norm(&mut self, tensor: &str, n: usize) -> Result<(), CheckpointError> {
        self.vector(tensor, &[n])
    }

    fn negative_exponentials(&mut self, tensor: &str, shape: &[usize]) -> Result<(), CheckpointError> {
        self.vector(tensor, shape)
    }

    fn conv1d(&mut self, layer: usize, _: usize, _: usize) -> Result<(), CheckpointError> {
        self.checkpoint.conv1d(layer)?;
        let tensor = self.name(&format!("layers.{layer}.linear_attn.conv1d.weight"));
        self.weights.push(ResidentWeight::Floats { tensor });
        Ok(())
    }
}
