//! What machine this is: enough to compare figures, nothing that names it.

use std::fmt;
use std::process::Command;

use serde::Serialize;

/// Facts about the machine. No host name, no paths.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processor, as it calls itself.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Bytes of memory; 0 if the system does not say.
    pub memory_bytes: u64,
    /// Kernel name and release.
    pub kernel: String,
    /// Architecture this binary was built for.
    pub arch: &'static str,
}

impl Machine {
    /// The machine that this process runs on.
    pub fn this() -> Self {
        let uname = rustix::system::uname();
        Self {
            cpu: cpu().unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_bytes().unwrap_or(0),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            arch: std::env::consts::ARCH,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "machine: {} ({}), {} cores, {:.1} GiB, {}",
            self.cpu,
            self.arch,
            self.cores,
            self.memory_bytes as f64 / f64::from(1u32 << 30),
            self.kernel
        )
    }
}

fn cpu() -> Option<String> {
    match std::fs::read_to_string("/proc/cpuinfo") {
        Ok(text) => field(&text, "model name").or_else(|| field(&text, "CPU part")),
        Err(_) => sysctl("machdep.cpu.brand_string"),
    }
}

fn memory_bytes() -> Option<u64> {
    match std::fs::read_to_string("/proc/meminfo") {
        Ok(text) => {
            field(&text, "MemTotal")?.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
        }
        Err(_) => sysctl("hw.memsize")?.parse().ok(),
    }
}

/// The value of the first `name: value` line.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// A value of macOS' system table.
fn sysctl(name: &str) -> Option<String> {
    let output = Command::new("sysctl").args(["-n", name]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_whole_name() {
        let text = "model\t\t: 17\nmodel name\t: Some CPU: fast\nMemTotal:   1024 kB\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some CPU: fast"));
        assert_eq!(field(text, "MemTotal").as_deref(), Some("1024 kB"));
        assert_eq!(field(text, "name"), None);
    }

    #[test]
    fn this_machine_has_cores_and_a_kernel() {
        let machine = Machine::this();
        assert!(machine.cores > 0 && !machine.kernel.trim().is_empty());
    }
}
