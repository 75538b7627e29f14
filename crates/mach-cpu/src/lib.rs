//! The CPU as a [`Device`](mach_models::device::Device): `mach-kernels` on compute threads, weights in memory, routed
//! experts in memory or streamed from the drive while others compute.
//!
//! [`load`] makes a model of a checkpoint; [`footprint`] and [`state_bytes`] tell beforehand what it will need.

#![forbid(unsafe_code)]

mod check;
mod compressed;
mod cpu;
mod device;
mod experts;
mod fill;
mod footprint;
mod forms;
mod kv;
mod load;
mod placement;
mod quantize;
mod rope;
mod stand_in;
mod state;

use mach_models::{Activations, LoadOptions, TURBOQUANT_VERSION, TurboQuant};
use mach_quant::Order;

pub use cpu::{Buf, Cpu, Routing};
pub use fill::fill;
pub use footprint::{Footprint, footprint, scratch_bytes, state_bytes, state_bytes_of};
pub use kv::{format as kv_format, shape as kv_shape};
pub use load::{check_block, check_draft, check_head, load, resident_experts, supports};
pub use placement::{CpuPlacement, Matrix};
pub use rope::rope;
pub use stand_in::stand_in;
pub use state::CpuState;

/// Changes whenever the same tokens may lead to another state: cached states of other versions are not used.
pub const NUMERICS_VERSION: u32 = 2;

/// Name of the arithmetic that a model is loaded for, as in `mach-2-int8` or `mach-2-int8-kv4v3.1`: with equal names, equal
/// tokens lead to equal logits and states, bit for bit.
pub fn numerics(options: &LoadOptions) -> String {
    numerics_of(options.activations, options.turboquant_kv)
}

pub(crate) fn numerics_of(activations: Activations, turboquant_kv: Option<TurboQuant>) -> String {
    let kv = turboquant_kv.map(|kv| format!("-{kv}.{TURBOQUANT_VERSION}")).unwrap_or_default();
    format!("mach-{NUMERICS_VERSION}-{activations}{kv}")
}

/// Order of weights that meets an activation path.
pub fn order_of(activations: Activations) -> Order {
    match activations {
        Activations::Int8 => Order::Tiles,
        Activations::F32 => Order::Rows,
    }
}
