//! How much memory is left.

/// Bytes that can be taken without pushing anything else out, as the kernel estimates it, within the control group's
/// limit. `None` where the system does not say.
pub(crate) fn available() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let system = mem_available(&info)?;
    let group = group_room();
    Some(group.map_or(system, |g| g.min(system)))
}

fn mem_available(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Room under the limit of the outermost control group that this process can see (version 2).
fn group_room() -> Option<usize> {
    let read = |name: &str| {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<usize>().ok()
    };
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::mem_available;

    #[test]
    fn reads_the_kernels_estimate() {
        let text = "MemTotal:       24 kB\nMemAvailable:   12 kB\nBuffers: 3 kB\n";
        assert_eq!(mem_available(text), Some(12 * 1024));
        assert_eq!(mem_available("MemAvailable: lots"), None);
        assert_eq!(mem_available(""), None);
    }
}
