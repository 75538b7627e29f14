//! Which device runs the model: what was asked for, what is there, and why it was taken.

use std::fmt;
use std::str::FromStr;

use mach_checkpoint::Checkpoint;
use mach_models::{LoadOptions, LoadProgress, Model, ModelError};

use crate::Exit;
use crate::signals::Signal;

/// Values of `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceArg {
    /// A GPU if there is one that can run the model, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU: the best one, or that of a number.
    Gpu(Option<usize>),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |n: &str| n.parse().map(|n| DeviceArg::Gpu(Some(n)));
        match text {
            "auto" => Ok(DeviceArg::Auto),
            "cpu" => Ok(DeviceArg::Cpu),
            "gpu" => Ok(DeviceArg::Gpu(None)),
            _ => match text.strip_prefix("gpu:").map(number) {
                Some(Ok(gpu)) => Ok(gpu),
                _ => Err("auto, cpu, gpu or gpu:N".to_owned()),
            },
        }
    }
}

impl fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceArg::Auto => f.write_str("auto"),
            DeviceArg::Cpu => f.write_str("cpu"),
            DeviceArg::Gpu(None) => f.write_str("gpu"),
            DeviceArg::Gpu(Some(n)) => write!(f, "gpu:{n}"),
        }
    }
}

/// What was asked of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceWish {
    /// Which.
    pub device: DeviceArg,
    /// Whether a GPU whose bytes are not the CPU's is refused.
    pub require_exact: bool,
}

/// The device that runs the model.
#[derive(Debug)]
pub(crate) enum Chosen {
    /// The CPU, and why, if anything else was thought of.
    Cpu(Option<String>),
    /// A GPU.
    #[cfg(feature = "gpu")]
    Gpu(Box<mach_gpu::Ready>),
}

/// A model, and what hears where the time of its passes goes.
#[cfg(feature = "gpu")]
pub(crate) type Profiled = (Box<dyn Model>, mach_gpu::Profile);

impl DeviceWish {
    /// Looks for the device. What was asked for by name and is not to be had is an error.
    pub(crate) fn choose(self, checkpoint: &Checkpoint, load: &LoadOptions) -> Result<Chosen, Exit> {
        if self.device == DeviceArg::Cpu {
            return Ok(Chosen::Cpu(None));
        }
        match self.find(checkpoint, load) {
            Ok(chosen) => Ok(chosen),
            Err(reason) if self.device == DeviceArg::Auto => Ok(Chosen::Cpu(Some(reason))),
            Err(reason) => Err(Exit::input(format!("--device {}: {reason}", self.device))),
        }
    }

    #[cfg(not(feature = "gpu"))]
    fn find(self, _: &Checkpoint, _: &LoadOptions) -> Result<Chosen, String> {
        Err("this build has no GPU in it: it was made without the feature gpu".to_owned())
    }

    #[cfg(feature = "gpu")]
    fn find(self, checkpoint: &Checkpoint, load: &LoadOptions) -> Result<Chosen, String> {
        // The model first: it needs no driver.
        mach_gpu::supports(checkpoint.config(), load).map_err(|error| error.to_string())?;
        if self.device == DeviceArg::Auto && !mach_gpu::hardware() {
            return Err("no GPU".to_owned());
        }
        let choice = match self.device {
            DeviceArg::Gpu(Some(n)) => mach_gpu::Choice::Index(n),
            _ => mach_gpu::Choice::Auto,
        };
        let ready = mach_gpu::Ready::find(choice).map_err(|error| error.to_string())?;
        match ready.failing() {
            failing if self.require_exact && !failing.is_empty() => Err(format!(
                "{} is not exact ({}), and --require-exact",
                ready.facts().name,
                failing.join(", ")
            )),
            // Without being asked, answers are those of the CPU.
            failing if self.device == DeviceArg::Auto && !failing.is_empty() => {
                Err(format!("{} is not exact ({})", ready.facts().name, failing.join(", ")))
            }
            _ => Ok(Chosen::Gpu(Box::new(ready))),
        }
    }
}

/// Whether a GPU would run the checkpoint: that of `gpu` or `gpu:N`, if it was asked for, else the one that `auto` takes.
pub(crate) fn on_gpu(wish: DeviceWish, checkpoint: &Checkpoint, load: &LoadOptions) -> Result<(), String> {
    let device = match wish.device {
        asked @ DeviceArg::Gpu(_) => asked,
        // As a server that was told nothing looks for one.
        DeviceArg::Auto | DeviceArg::Cpu => DeviceArg::Auto,
    };
    DeviceWish { device, ..wish }.find(checkpoint, load).map(drop)
}

impl Chosen {
    /// Whether it is a GPU.
    pub(crate) fn is_gpu(&self) -> bool {
        !matches!(self, Chosen::Cpu(_))
    }

    /// `startup device ...`.
    pub(crate) fn signal(&self) -> Signal {
        match self {
            Chosen::Cpu(None) => Signal::new("device").with("kind", "cpu"),
            Chosen::Cpu(Some(reason)) => Signal::new("device").with("kind", "cpu").with("reason", reason),
            #[cfg(feature = "gpu")]
            Chosen::Gpu(ready) => {
                let facts = ready.facts();
                let signal = Signal::new("device")
                    .with("kind", "gpu")
                    .with("index", facts.index)
                    .with("adapter", &facts.name)
                    .with("driver", &facts.driver)
                    .with("backend", facts.backend)
                    .with("memory", facts.kind)
                    .with("exact", u8::from(ready.failing().is_empty()));
                match ready.failing() {
                    [] => signal,
                    failing => signal.with("not_exact", failing.join(",")),
                }
            }
        }
    }

    /// Bytes a second that a GPU reads of its memory; `None` for the CPU.
    pub(crate) fn read_rate(&self) -> Result<Option<f64>, String> {
        match self {
            Chosen::Cpu(_) => Ok(None),
            #[cfg(feature = "gpu")]
            Chosen::Gpu(ready) => ready.read_rate().map(|rate| Some(rate.best())).map_err(|e| e.to_string()),
        }
    }

    /// As [`load`](Self::load), with where the time of passes goes; `None` for the CPU.
    #[cfg(feature = "gpu")]
    pub(crate) fn load_profiled(
        &self,
        checkpoint: &Checkpoint,
        load: &LoadOptions,
        timed: bool,
    ) -> Result<Option<Profiled>, ModelError> {
        let Chosen::Gpu(ready) = self else { return Ok(None) };
        let profile = mach_gpu::Profile::new(timed);
        let model = ready.load_profiled(checkpoint, load, Some(profile.clone()), &mut |_| {})?;
        Ok(Some((model, profile)))
    }

    /// Loads the weights onto it.
    pub(crate) fn load(
        &self,
        checkpoint: &Checkpoint,
        load: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Box<dyn Model>, ModelError> {
        match self {
            Chosen::Cpu(_) => mach_cpu::load(checkpoint, load, progress),
            #[cfg(feature = "gpu")]
            Chosen::Gpu(ready) => ready.load(checkpoint, load, progress),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceArg;

    #[test]
    fn devices_are_named_as_they_print() {
        for text in ["auto", "cpu", "gpu", "gpu:0", "gpu:12"] {
            assert_eq!(text.parse::<DeviceArg>().unwrap().to_string(), text);
        }
        for text in ["", "GPU", "gpu:", "gpu:x", "gpu:-1", "cuda"] {
            assert!(text.parse::<DeviceArg>().is_err(), "{text}");
        }
    }
}
