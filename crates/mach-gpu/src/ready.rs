//! A GPU that was found, opened and probed.

use mach_checkpoint::Checkpoint;
use mach_models::{LoadOptions, LoadProgress, Model, ModelError};

use crate::{AdapterFacts, Choice, Context, Exactness, Forms, GpuError, Pipelines, Profile, probe};

/// A device that is ready to load models.
#[derive(Debug)]
pub struct Ready {
    context: Context,
    forms: Forms,
    failing: Vec<&'static str>,
}

impl Ready {
    /// Finds an adapter, opens it, and has the probe say what it computes exactly.
    pub fn find(choice: Choice) -> Result<Ready, GpuError> {
        let context = Context::find(choice)?;
        let Exactness { forms, failing } = probe(&context)?;
        Ok(Ready { context, forms, failing })
    }

    /// What is known of the adapter.
    pub fn facts(&self) -> &AdapterFacts {
        self.context.facts()
    }

    /// Operations whose results are not the CPU's; none if all are.
    pub fn failing(&self) -> &[&'static str] {
        &self.failing
    }

    /// Measures what the device's memory can do.
    pub fn read_rate(&self) -> Result<crate::ReadRate, GpuError> {
        crate::read_rate(&self.context)
    }

    /// Loads a checkpoint. What the shaders cannot run is refused before anything is read.
    pub fn load(
        &self,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Box<dyn Model>, ModelError> {
        self.load_profiled(checkpoint, options, None, progress)
    }

    /// As [`load`](Self::load); the profile hears where the time of passes goes.
    pub fn load_profiled(
        &self,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        profile: Option<Profile>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Box<dyn Model>, ModelError> {
        let pipelines = Pipelines::new(&self.context, self.forms);
        let exact = self.failing.is_empty();
        crate::device::load(&self.context, pipelines, exact, checkpoint, options, profile, progress)
    }
}
