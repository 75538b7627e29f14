//! Which adapters there are, and which of them to take.

use std::fmt;

use wgpu::{Adapter, Backend, Backends, DeviceType, Instance, InstanceDescriptor, InstanceFlags};

use crate::GpuError;

/// What an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A card with memory of its own.
    Discrete,
    /// Shares memory with the CPU.
    Integrated,
    /// Lent by a host.
    Virtual,
    /// Nothing is known of it.
    Other,
    /// Computes on the CPU.
    Software,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Discrete => "discrete",
            Kind::Integrated => "integrated",
            Kind::Virtual => "virtual",
            Kind::Other => "other",
            Kind::Software => "software",
        })
    }
}

/// What is known of an adapter before it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterFacts {
    /// Its number among those of this machine.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Name and version of the driver.
    pub driver: String,
    /// `vulkan` or `metal`.
    pub backend: &'static str,
    /// What it is.
    pub kind: Kind,
    /// PCI vendor.
    pub vendor: u32,
}

impl AdapterFacts {
    /// Whether its memory is the CPU's.
    pub fn unified(&self) -> bool {
        matches!(self.kind, Kind::Integrated | Kind::Software) || self.backend == "metal"
    }
}

/// An adapter of this machine.
#[derive(Debug, Clone)]
pub struct Found {
    /// What is known of it.
    pub facts: AdapterFacts,
    pub(crate) adapter: Adapter,
}

/// Which adapter to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The best one: discrete, else integrated; never a software one.
    Auto,
    /// The one of this number, whatever it is.
    Index(usize),
}

/// Whether the system has a device that a driver could drive. Loading drivers is slow, and Mesa's write to stderr on
/// machines without a display, so nobody who did not ask for a GPU should come to it where this is false.
pub fn hardware() -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    let render_node = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("renderD");
    let mut nodes = std::fs::read_dir("/dev/dri").into_iter().flatten().flatten();
    // NVIDIA's own driver, and Windows' subsystem for Linux.
    let others = ["/dev/nvidiactl", "/dev/dxg"];
    nodes.any(render_node) || others.iter().any(|path| std::path::Path::new(path).exists())
}

/// The adapters of this machine, in the drivers' order. Empty machines are an error that says why.
pub fn adapters() -> Result<Vec<Found>, GpuError> {
    let backends = if cfg!(target_vendor = "apple") { Backends::METAL } else { Backends::VULKAN };
    let mut description = InstanceDescriptor::new_without_display_handle();
    description.backends = backends;
    // Mesa's software rasterizer says of itself that it does not conform.
    description.flags = InstanceFlags::ALLOW_UNDERLYING_NONCOMPLIANT_ADAPTER;
    let instance = Instance::new(description);
    let all = pollster::block_on(instance.enumerate_adapters(backends));
    if all.is_empty() {
        return Err(why_none());
    }
    Ok(all
        .into_iter()
        .enumerate()
        .map(|(index, adapter)| Found { facts: facts(index, &adapter), adapter })
        .collect())
}

fn facts(index: usize, adapter: &Adapter) -> AdapterFacts {
    let info = adapter.get_info();
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => Kind::Discrete,
        DeviceType::IntegratedGpu => Kind::Integrated,
        DeviceType::VirtualGpu => Kind::Virtual,
        DeviceType::Cpu => Kind::Software,
        DeviceType::Other => Kind::Other,
    };
    let backend = if info.backend == Backend::Metal { "metal" } else { "vulkan" };
    let driver = format!("{} {}", info.driver, info.driver_info).trim().to_owned();
    AdapterFacts { index, name: info.name, driver, backend, kind, vendor: info.vendor }
}

/// Picks one of `all`.
pub(crate) fn choose(all: Vec<Found>, choice: Choice) -> Result<Found, GpuError> {
    let at = pick(&all.iter().map(|found| &found.facts).collect::<Vec<_>>(), choice)?;
    all.into_iter().nth(at).ok_or(GpuError::NoAdapter)
}

fn pick(all: &[&AdapterFacts], choice: Choice) -> Result<usize, GpuError> {
    match choice {
        Choice::Index(asked) if asked < all.len() => Ok(asked),
        Choice::Index(asked) => Err(GpuError::NoSuchAdapter { asked, count: all.len() }),
        Choice::Auto => {
            let best = all.iter().filter(|facts| facts.kind != Kind::Software).min_by_key(|facts| facts.kind);
            let names = || all.iter().map(|facts| facts.name.as_str()).collect::<Vec<_>>().join(", ");
            match best {
                Some(facts) => Ok(facts.index),
                None if all.is_empty() => Err(GpuError::NoAdapter),
                None => Err(GpuError::OnlySoftware(names())),
            }
        }
    }
}

#[cfg(not(target_vendor = "apple"))]
fn why_none() -> GpuError {
    // SAFETY: loading the Vulkan loader runs its initialisers, as wgpu has just tried to do.
    let entry = match unsafe { ash::Entry::load() } {
        Ok(entry) => entry,
        Err(error) => return GpuError::NoLoader(error.to_string()),
    };
    // SAFETY: the description asks for nothing; the instance is destroyed below.
    match unsafe { entry.create_instance(&ash::vk::InstanceCreateInfo::default(), None) } {
        Err(error) => GpuError::NoDriver(error.to_string()),
        Ok(instance) => {
            // SAFETY: the instance lives, has no children, and is not used again.
            let devices = unsafe {
                let devices = instance.enumerate_physical_devices();
                instance.destroy_instance(None);
                devices
            };
            match devices {
                Err(error) => GpuError::NoDriver(error.to_string()),
                Ok(_) => GpuError::NoAdapter,
            }
        }
    }
}

#[cfg(target_vendor = "apple")]
fn why_none() -> GpuError {
    GpuError::NoAdapter
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kinds: &[Kind]) -> Vec<AdapterFacts> {
        let facts = |(index, &kind): (usize, &Kind)| AdapterFacts {
            index,
            name: format!("{kind} {index}"),
            driver: String::new(),
            backend: "vulkan",
            kind,
            vendor: 0,
        };
        kinds.iter().enumerate().map(facts).collect()
    }

    fn picked(kinds: &[Kind], choice: Choice) -> Result<usize, GpuError> {
        pick(&of(kinds).iter().collect::<Vec<_>>(), choice)
    }

    #[test]
    fn cards_come_first_and_software_only_by_its_number() {
        use Kind::{Discrete, Integrated, Software};
        assert_eq!(picked(&[Software, Integrated, Discrete, Discrete], Choice::Auto).unwrap(), 2);
        assert_eq!(picked(&[Integrated, Software], Choice::Auto).unwrap(), 0);
        assert!(
            matches!(picked(&[Software], Choice::Auto), Err(GpuError::OnlySoftware(n)) if n == "software 0")
        );
        assert_eq!(picked(&[Software], Choice::Index(0)).unwrap(), 0);
        assert!(matches!(
            picked(&[Discrete], Choice::Index(1)),
            Err(GpuError::NoSuchAdapter { asked: 1, count: 1 })
        ));
        assert!(matches!(picked(&[], Choice::Auto), Err(GpuError::NoAdapter)));
    }
}
