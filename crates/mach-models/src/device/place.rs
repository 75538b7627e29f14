//! Weights on their way from a checkpoint to a device.

use mach_checkpoint::{Checkpoint, CheckpointError, ModelConfig, WeightSource};
use mach_quant::Bits;

/// What a matrix is used for, which decides its form on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// As the activation mode wants it.
    Activations,
    /// For float activations whatever the mode: routers, gates and other small, sensitive matrices.
    Float,
    /// As [`Activations`](Self::Activations); an unquantized one is quantized to these bits in groups of 64, if its rows
    /// divide into such.
    Quantized(Bits),
}

/// The device's side of loading: first every weight is given its place, then all are brought there.
pub trait Placement<'a> {
    /// The device's matrices.
    type Matrix;
    /// The device's vectors.
    type Vector;

    /// A place for a matrix.
    fn matrix(&mut self, source: WeightSource<'a>, place: Place) -> Result<Self::Matrix, CheckpointError>;
    /// A vector.
    fn vector(&mut self, values: Vec<f32>) -> Self::Vector;
    /// `-e^x` of each value, by the device's own exponential.
    fn negative_exponentials(&mut self, values: Vec<f32>) -> Self::Vector;
    /// Bytes placed so far, padding not counted.
    fn weight_bytes(&self) -> u64;
}

/// Where a family finds its weights. Modules and tensors are named relative to the text model's prefix.
pub trait Loader {
    /// Handle of a placed matrix.
    type Matrix: Copy;
    /// A placed vector.
    type Vector;

    /// The model's settings.
    fn config(&self) -> &ModelConfig;
    /// A weight matrix in the form of the activation mode.
    fn matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<Self::Matrix, CheckpointError>;
    /// A weight matrix that always meets float activations: routers, gates and other small, sensitive ones.
    fn float_matrix(
        &mut self,
        module: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Self::Matrix, CheckpointError>;
    /// The output head; the embedding where the two are tied.
    fn head(&mut self, embedding: &Self::Matrix) -> Result<Self::Matrix, CheckpointError>;
    /// A float tensor.
    fn vector(&mut self, tensor: &str, shape: &[usize]) -> Result<Self::Vector, CheckpointError>;
    /// A float tensor times a factor.
    fn scaled(&mut self, tensor: &str, shape: &[usize], factor: f32)
    -> Result<Self::Vector, CheckpointError>;
    /// The one value of a float tensor `[1]`, for the host.
    fn scalar(&mut self, tensor: &str) -> Result<f32, CheckpointError>;
    /// A tensor of whole numbers from 0 to below `below`.
    fn integers(
        &mut self,
        tensor: &str,
        shape: &[usize],
        below: u32,
    ) -> Result<Self::Vector, CheckpointError>;
    /// A norm weight `[n]` that the family may store minus one.
    fn norm(&mut self, tensor: &str, n: usize) -> Result<Self::Vector, CheckpointError>;
    /// `-e^x` of a float tensor.
    fn negative_exponentials(
        &mut self,
        tensor: &str,
        shape: &[usize],
    ) -> Result<Self::Vector, CheckpointError>;
    /// The causal convolution of a Gated DeltaNet layer, `[taps, channels]`.
    fn conv1d(&mut self, layer: usize, channels: usize, taps: usize)
    -> Result<Self::Vector, CheckpointError>;
}

/// Places a checkpoint's weights.
#[derive(Debug)]
pub struct CheckpointLoader<'a, P> {
    checkpoint: &'a Checkpoint,
    /// Where they go.
    pub placement: P,
    /// For matrices in the form of the activation mode.
    place: Place,
}

impl<'a, P: Placement<'a>> CheckpointLoader<'a, P> {
    /// Places weights of `checkpoint` through `placement`.
    pub fn new(checkpoint: &'a Checkpoint, placement: P) -> Self {
        CheckpointLoader { checkpoint, placement, place: Place::Activations }
    }

    /// Places matrices in the form of the activation mode otherwise.
    #[must_use]
    pub fn with_place(self, place: Place) -> Self {
        CheckpointLoader { place, ..self }
    }

    fn name(&self, relative: &str) -> String {
        self.checkpoint.full_name(relative)
    }
}

impl<'a, P: Placement<'a>> Loader for CheckpointLoader<'a, P>
where
    P::Matrix: Copy,
{
    type Matrix = P::Matrix;
    type Vector = P::Vector;

    fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    fn matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<P::Matrix, CheckpointError> {
        let source = self.checkpoint.weights(&self.name(module), rows, cols)?;
        let place = match source {
            WeightSource::Stored(_) => self.place,
            WeightSource::Packed(_) => Place::Activations,
        };
        self.placement.matrix(source, place)
    }

    fn float_matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<P::Matrix, CheckpointError> {
        let source = self.checkpoint.weights(&self.name(module), rows, cols)?;
        self.placement.matrix(source, Place::Float)
    }

    fn head(&mut self, embedding: &P::Matrix) -> Result<P::Matrix, CheckpointError> {
        let config = self.checkpoint.config();
        if config.tie_word_embeddings {
            return Ok(*embedding);
        }
        let source = self.checkpoint.weights(&config.head_module, config.vocab_size, config.hidden_size)?;
        self.placement.matrix(source, Place::Activations)
    }

    fn vector(&mut self, tensor: &str, shape: &[usize]) -> Result<P::Vector, CheckpointError> {
        Ok(self.placement.vector(self.checkpoint.floats(&self.name(tensor), shape)?))
    }

    fn scaled(&mut self, tensor: &str, shape: &[usize], factor: f32) -> Result<P::Vector, CheckpointError> {
        let stored = self.checkpoint.floats(&self.name(tensor), shape)?;
        Ok(self.placement.vector(stored.into_iter().map(|w| w * factor).collect()))
    }

    fn scalar(&mut self, tensor: &str) -> Result<f32, CheckpointError> {
        Ok(self.checkpoint.floats(&self.name(tensor), &[1])?.into_iter().sum())
    }

    fn integers(&mut self, tensor: &str, shape: &[usize], below: u32) -> Result<P::Vector, CheckpointError> {
        let numbers = self.checkpoint.integers(&self.name(tensor), shape, below)?;
        // Exact up to 2^24, which is more than there are experts.
        Ok(self.placement.vector(numbers.into_iter().map(|n| n as f32).collect()))
    }

    fn norm(&mut self, tensor: &str, n: usize) -> Result<P::Vector, CheckpointError> {
        let offset = self.checkpoint.norm_offset();
        let stored = self.checkpoint.floats(&self.name(tensor), &[n])?;
        Ok(self.placement.vector(stored.into_iter().map(|w| w + offset).collect()))
    }

    fn negative_exponentials(&mut self, tensor: &str, shape: &[usize]) -> Result<P::Vector, CheckpointError> {
        Ok(self.placement.negative_exponentials(self.checkpoint.floats(&self.name(tensor), shape)?))
    }

    fn conv1d(&mut self, layer: usize, channels: usize, taps: usize) -> Result<P::Vector, CheckpointError> {
        let stored = self.checkpoint.conv1d(layer)?;
        // `[channels, taps]` transposed.
        let mut out = vec![0.0; channels * taps];
        for (i, w) in stored.into_iter().enumerate() {
            if let Some(to) = out.get_mut(i % taps * channels + i / taps) {
                *to = w;
            }
        }
        Ok(self.placement.vector(out))
    }
}
