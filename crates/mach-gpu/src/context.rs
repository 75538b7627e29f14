//! An open device: its queue, what it can do, and whether it still lives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wgpu::{Device, DeviceDescriptor, ExperimentalFeatures, Features, Limits, MemoryHints, Queue, Trace};

use crate::found::{AdapterFacts, Choice, Found, adapters, choose};
use crate::spirv::Controls;
use crate::{GpuError, buffer};

/// Bytes of immediates that shaders may take.
pub const IMMEDIATES: u32 = 128;

/// After so long without an answer a device counts as hung.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A device and its queue. Copies are the same device.
#[derive(Debug, Clone)]
pub struct Context {
    pub(crate) device: Device,
    pub(crate) queue: Queue,
    facts: Arc<AdapterFacts>,
    features: Features,
    limits: Arc<Limits>,
    controls: Controls,
    failure: Arc<Failure>,
}

/// The first thing that went wrong, as the driver's callbacks told.
#[derive(Debug, Default)]
struct Failure(Mutex<Option<GpuError>>);

impl Failure {
    fn slot(&self) -> MutexGuard<'_, Option<GpuError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the first error; the loss of the device outweighs others.
    fn tell(&self, error: GpuError) {
        let mut slot = self.slot();
        if slot.as_ref().is_none_or(|old| error.is_fatal() && !old.is_fatal()) {
            *slot = Some(error);
        }
    }
}

impl Context {
    /// Finds an adapter and opens it.
    pub fn find(choice: Choice) -> Result<Context, GpuError> {
        Context::open(&choose(adapters()?, choice)?)
    }

    /// Opens a device with all that shaders may use and the adapter has.
    pub fn open(found: &Found) -> Result<Context, GpuError> {
        Context::open_without(found, Features::empty())
    }

    /// As [`open`](Self::open), as if the adapter lacked these features.
    pub fn open_without(found: &Found, lacking: Features) -> Result<Context, GpuError> {
        let Found { facts, adapter } = found;
        let required = Features::PASSTHROUGH_SHADERS | Features::IMMEDIATES;
        let wanted = Features::TIMESTAMP_QUERY
            | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
            | Features::TIMESTAMP_QUERY_INSIDE_PASSES
            | Features::MAPPABLE_PRIMARY_BUFFERS
            | Features::SUBGROUP
            | Features::SHADER_F16
            | Features::SHADER_F64
            | Features::SHADER_INT64
            | Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        let has = adapter.features() - lacking;
        let lacks = |what: String| GpuError::Lacks { adapter: facts.name.clone(), what };
        if !has.contains(required) {
            return Err(lacks(format!("{:?}", required - has)));
        }
        let controls = Controls::of(adapter).map_err(lacks)?;
        let features = has & (required | wanted);
        let limits = adapter.limits();
        if limits.max_immediate_size < IMMEDIATES {
            return Err(lacks(format!("immediates of {IMMEDIATES} bytes")));
        }
        let request = adapter.request_device(&DeviceDescriptor {
            label: None,
            required_features: features,
            required_limits: limits.clone(),
            // SAFETY: shaders are ours, and those with experimental features are probed before they are used.
            experimental_features: unsafe { ExperimentalFeatures::enabled() },
            memory_hints: MemoryHints::Performance,
            trace: Trace::Off,
        });
        let (device, queue) = pollster::block_on(request)
            .map_err(|error| GpuError::Refused { adapter: facts.name.clone(), why: error.to_string() })?;
        let failure = Arc::new(Failure::default());
        let told = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                told.tell(GpuError::Lost(message));
            }
        });
        let told = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error| {
            told.tell(match error {
                wgpu::Error::OutOfMemory { source } => GpuError::OutOfMemory(source.to_string()),
                wgpu::Error::Validation { description, .. } => GpuError::Invalid(description),
                wgpu::Error::Internal { description, .. } => GpuError::Lost(description),
            });
        }));
        let (facts, limits) = (Arc::new(facts.clone()), Arc::new(limits));
        Ok(Context { device, queue, facts, features, limits, controls, failure })
    }

    /// What is known of the adapter.
    pub fn facts(&self) -> &AdapterFacts {
        &self.facts
    }

    /// Its features that are in use.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Its limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Float controls of the driver, and the version of SPIR-V that it takes.
    pub fn controls(&self) -> Controls {
        self.controls
    }

    /// The device itself.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its queue.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Whether fused multiply-adds can be put together from f64.
    pub fn has_f64(&self) -> bool {
        self.features.contains(Features::SHADER_F64 | Features::SHADER_INT64)
    }

    /// Whether threads of a subgroup can swap values.
    pub fn has_shuffles(&self) -> bool {
        self.features.contains(Features::SUBGROUP)
    }

    /// Keeps an error that was not told by a callback.
    pub(crate) fn fail(&self, error: GpuError) {
        self.failure.tell(error);
    }

    /// What has gone wrong since the last call. The loss of the device is told every time.
    pub fn check(&self) -> Result<(), GpuError> {
        let mut slot = self.failure.slot();
        match slot.as_ref() {
            None => Ok(()),
            Some(error) => {
                let error = error.clone();
                if !error.is_fatal() {
                    *slot = None;
                }
                Err(error)
            }
        }
    }

    /// Submits what was written from the host and waits until it is there.
    pub fn drain(&self) -> Result<(), GpuError> {
        let index = self.queue.submit([]);
        let poll = wgpu::PollType::Wait { submission_index: Some(index), timeout: Some(DEADLINE) };
        if self.device.poll(poll).is_err() {
            self.fail(GpuError::Hang(DEADLINE));
        }
        self.check()
    }

    /// The bytes that a storage buffer binding may have.
    pub fn largest_binding(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size) / buffer::WORD
            * buffer::WORD
    }
}
