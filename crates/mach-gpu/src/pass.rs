//! Commands: recorded, submitted, waited for.

use std::time::Duration;

use bytemuck::NoUninit;
use wgpu::{Buffer, CommandEncoder, ComputePass, ComputePassDescriptor, PollType, SubmissionIndex};

use crate::buffer::{Staging, Storage};
use crate::pipeline::{Bound, Pipeline, Slice};
use crate::timing::{Resolved, Stamps, Timing};
use crate::{Context, GpuError};

/// Records commands. A dispatch sees what those before it have written.
#[derive(Debug)]
pub struct Recorder {
    context: Context,
    // Declared, and so dropped, before the encoder that it belongs to.
    pass: Option<ComputePass<'static>>,
    encoder: CommandEncoder,
    dispatches: usize,
    stamps: Option<Stamps>,
}

impl Recorder {
    /// Nothing yet.
    pub fn new(context: &Context) -> Recorder {
        let encoder = context.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        Recorder { context: context.clone(), pass: None, encoder, dispatches: 0, stamps: None }
    }

    /// As [`new`](Self::new), each dispatch timed where the device can; it costs a wait between dispatches.
    pub fn timed(context: &Context) -> Recorder {
        Recorder { stamps: Stamps::new(context), ..Recorder::new(context) }
    }

    /// The device.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// How many dispatches were recorded.
    pub fn dispatches(&self) -> usize {
        self.dispatches
    }

    /// Runs `groups` workgroups. `immediates` are as long as the shader's; none if it has none.
    pub fn run(&mut self, bound: &Bound, immediates: &[u8], groups: [u32; 3]) -> Result<(), GpuError> {
        let interface = bound.pipeline.interface();
        if immediates.len() != interface.immediates as usize {
            let (name, given, takes) = (bound.pipeline.name(), immediates.len(), interface.immediates);
            return Err(GpuError::Invalid(format!(
                "{name}: {given} bytes of immediates given, {takes} taken"
            )));
        }
        let most = self.context.limits().max_compute_workgroups_per_dimension;
        if groups.iter().any(|&n| n > most) {
            return Err(GpuError::Invalid(format!("{}: {groups:?} workgroups", bound.pipeline.name())));
        }
        if groups.contains(&0) {
            return Ok(());
        }
        let (encoder, stamps) = (&mut self.encoder, &mut self.stamps);
        let pass = self.pass.get_or_insert_with(|| {
            let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor::default()).forget_lifetime();
            if let Some(stamps) = stamps {
                stamps.stamp(&mut pass, None);
            }
            pass
        });
        pass.set_pipeline(bound.pipeline.raw());
        pass.set_bind_group(0, &bound.group, &[]);
        if !immediates.is_empty() {
            pass.set_immediates(0, immediates);
        }
        pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
        if let Some(stamps) = stamps {
            stamps.stamp(pass, Some(bound.pipeline.name()));
        }
        self.dispatches += 1;
        Ok(())
    }

    /// Binds and runs.
    pub fn dispatch<T: NoUninit>(
        &mut self,
        pipeline: &Pipeline,
        buffers: &[Slice<'_>],
        immediates: &[T],
        groups: [u32; 3],
    ) -> Result<(), GpuError> {
        let bound = pipeline.bind(&self.context, buffers)?;
        self.run(&bound, bytemuck::cast_slice(immediates), groups)
    }

    /// Copies words between buffers of the device.
    pub fn copy_storage(&mut self, from: &Storage, at: u64, to: &Storage, to_at: u64, bytes: u64) {
        self.copy(from, at, to.raw_ref(), to_at, bytes);
    }

    /// Copies words to the host.
    pub fn copy_out(&mut self, from: &Storage, at: u64, to: &Staging, to_at: u64, bytes: u64) {
        self.copy(from, at, to.raw_ref(), to_at, bytes);
    }

    pub(crate) fn copy(&mut self, from: &Storage, at: u64, to: &Buffer, to_at: u64, bytes: u64) {
        if bytes > 0 {
            self.pass = None;
            self.encoder.copy_buffer_to_buffer(from.raw_ref(), at, to, to_at, bytes);
        }
    }

    /// Zeros part of a buffer; offset and bytes are multiples of 4.
    pub fn clear(&mut self, buffer: &Storage, offset: u64, bytes: u64) {
        if bytes > 0 {
            self.pass = None;
            self.encoder.clear_buffer(buffer.raw_ref(), offset, Some(bytes));
        }
    }

    /// Hands the commands to the device.
    pub fn submit(self) -> Submission {
        let Recorder { context, pass, mut encoder, stamps, .. } = self;
        drop(pass);
        // Without memory for timestamps the commands go without.
        let resolved = stamps.and_then(|stamps| stamps.resolve(&context, &mut encoder).ok());
        let index = context.queue.submit([encoder.finish()]);
        Submission { context, index, resolved }
    }
}

/// Commands on their way.
#[derive(Debug)]
#[must_use = "errors are told by `wait`"]
pub struct Submission {
    context: Context,
    index: SubmissionIndex,
    resolved: Option<Resolved>,
}

impl Submission {
    /// Waits until they are done. The device counts as hung after `deadline`.
    pub fn wait(self, deadline: Duration) -> Result<(), GpuError> {
        self.timings(deadline).map(drop)
    }

    /// As [`wait`](Self::wait); what each dispatch took if the recorder was [`timed`](Recorder::timed).
    pub fn timings(self, deadline: Duration) -> Result<Vec<Timing>, GpuError> {
        let Submission { context, index, resolved } = self;
        let waited =
            context.device.poll(PollType::Wait { submission_index: Some(index), timeout: Some(deadline) });
        if let Err(error) = waited {
            context.fail(match error {
                wgpu::PollError::Timeout => GpuError::Hang(deadline),
                other => GpuError::Lost(other.to_string()),
            });
        }
        context.check()?;
        resolved.map_or(Ok(Vec::new()), |resolved| resolved.read(&context, deadline))
    }
}
