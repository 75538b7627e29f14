//! A GPU as a device, through wgpu: Vulkan, and Metal. Its results are the CPU's, bit by bit, where the adapter allows.
//!
//! Shaders are WGSL and go through naga to SPIR-V or MSL by a pass that forbids contraction and asks for IEEE rounding;
//! `docs/gpu.md` has the rules that they are written by.

pub mod buffer;
pub mod ceiling;
pub mod context;
mod device;
mod error;
mod found;
pub mod kernels;
pub mod msl;
pub mod pass;
pub mod pipeline;
pub mod probe;
mod ready;
pub mod shader;
pub mod spirv;
mod timing;

pub use buffer::Storage;
pub use ceiling::{ReadRate, read_rate};
pub use context::Context;
pub use device::{
    Buf, Gpu, GpuPlacement, GpuState, Matrix, PassTimes, Profile, Routing, Vector, load, supports,
};
pub use error::GpuError;
pub use found::{AdapterFacts, Choice, Found, Kind, adapters, hardware};
pub use pass::{Recorder, Submission};
pub use pipeline::{Bound, Pipeline, Pipelines, Slice};
pub use probe::{Exactness, probe};
pub use ready::Ready;
pub use shader::{Constant, Division, Fma, Forms, Shader};
pub use timing::Timing;
