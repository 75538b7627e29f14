//! When each dispatch of a recorder ended, by timestamps of the device.

use std::time::Duration;

use wgpu::{
    Buffer, BufferDescriptor, BufferUsages, CommandEncoder, ComputePass, Features, QuerySet,
    QuerySetDescriptor, QueryType,
};

use crate::buffer::Staging;
use crate::{Context, GpuError};

/// Timestamps of a set.
const MOST: u32 = wgpu::QUERY_SET_MAX_QUERIES;

/// How long a dispatch took, from the end of the one before it (or the beginning of its pass) to its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Name of the shader.
    pub name: &'static str,
    /// Time on the device.
    pub took: Duration,
}

/// Timestamps on their way.
#[derive(Debug)]
pub(crate) struct Stamps {
    set: QuerySet,
    /// What ended with each timestamp; nothing where a pass began.
    ended: Vec<Option<&'static str>>,
}

impl Stamps {
    /// `None` where the device has no timestamps inside passes.
    pub(crate) fn new(context: &Context) -> Option<Stamps> {
        let needs = Features::TIMESTAMP_QUERY | Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        context.features().contains(needs).then(|| {
            let description = QuerySetDescriptor { label: None, ty: QueryType::Timestamp, count: MOST };
            Stamps { set: context.device.create_query_set(&description), ended: Vec::new() }
        })
    }

    /// Takes the time; dispatches past the end of the set go without.
    pub(crate) fn stamp(&mut self, pass: &mut ComputePass<'_>, ended: Option<&'static str>) {
        let at = self.ended.len() as u32;
        if at < MOST {
            pass.write_timestamp(&self.set, at);
            self.ended.push(ended);
        }
    }

    /// Has the timestamps copied to the host.
    pub(crate) fn resolve(
        self,
        context: &Context,
        encoder: &mut CommandEncoder,
    ) -> Result<Resolved, GpuError> {
        let count = self.ended.len() as u32;
        let bytes = 8 * u64::from(count.max(1));
        let staging = Staging::new(context, bytes)?;
        if count > 0 {
            let usage = BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC;
            let description = BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
            let resolved: Buffer = context.device.create_buffer(&description);
            encoder.resolve_query_set(&self.set, 0..count, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, staging.raw_ref(), 0, bytes);
        }
        Ok(Resolved { ended: self.ended, staging })
    }
}

/// Timestamps that the host gets when the commands are done.
#[derive(Debug)]
pub(crate) struct Resolved {
    ended: Vec<Option<&'static str>>,
    staging: Staging,
}

impl Resolved {
    pub(crate) fn read(self, context: &Context, deadline: Duration) -> Result<Vec<Timing>, GpuError> {
        let Resolved { ended, staging } = self;
        let ticks: Vec<u64> = staging.read(context, 8 * ended.len() as u64, deadline)?;
        let period = f64::from(context.queue.get_timestamp_period());
        let took = |pair: &[u64]| {
            let ticks = pair.last().zip(pair.first()).map_or(0, |(end, start)| end.saturating_sub(*start));
            Duration::from_nanos((ticks as f64 * period) as u64)
        };
        let timing =
            |(name, pair): (&Option<&'static str>, _)| name.map(|name| Timing { name, took: took(pair) });
        Ok(ended.iter().skip(1).zip(ticks.windows(2)).filter_map(timing).collect())
    }
}
