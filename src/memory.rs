//! How much memory there is, and how much this process has.

use std::path::{Path, PathBuf};

/// Bytes that can be taken without pushing anything else out, as the kernel estimates it, within the limits of the
/// control groups that this process is in (versions 1 and 2). `None` where the system does not say.
pub(crate) fn available() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let system = mem_available(&info)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group_room(Path::new("/sys/fs/cgroup"), &groups);
    Some(group.map_or(system, |g| g.min(system)))
}

/// Bytes of physical memory that this process holds now.
pub(crate) fn resident() -> Option<usize> {
    status_bytes("VmRSS:")
}

/// The most that it has held.
pub(crate) fn peak() -> Option<usize> {
    status_bytes("VmHWM:")
}

fn status_bytes(key: &str) -> Option<usize> {
    kib(&std::fs::read_to_string("/proc/self/status").ok()?, key)
}

fn mem_available(meminfo: &str) -> Option<usize> {
    kib(meminfo, "MemAvailable:")
}

fn kib(text: &str, key: &str) -> Option<usize> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Names of the files of one version of control groups.
struct Names {
    limit: &'static str,
    usage: &'static str,
    reclaimable: &'static str,
}

const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};
const V2: Names = Names { limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file" };

/// The least room under any limit on the way from this process's group to the top. `groups` is `/proc/self/cgroup`.
fn group_room(mount: &Path, groups: &str) -> Option<usize> {
    let mut rooms = Vec::new();
    for line in groups.lines() {
        // Hierarchy, controllers, path; version 2 has no controllers here.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        if controllers.is_empty() {
            // Where both versions are mounted, version 2 lies in a directory of its own.
            for top in [mount.to_owned(), mount.join("unified")] {
                rooms.extend(rooms_upwards(&top, path, &V2));
            }
        } else if controllers.split(',').any(|c| c == "memory") {
            rooms.extend(rooms_upwards(&mount.join("memory"), path, &V1));
        }
    }
    rooms.into_iter().min()
}

/// The room in a group and in each above it. Inside a container the path may not exist; the top then is the group.
fn rooms_upwards(top: &Path, path: &str, names: &Names) -> Vec<usize> {
    let mut group: PathBuf = top.join(path.trim_start_matches('/'));
    let mut rooms = Vec::new();
    loop {
        rooms.extend(room(&group, names));
        if group == *top || !group.pop() {
            return rooms;
        }
    }
}

fn room(group: &Path, names: &Names) -> Option<usize> {
    let number = |name: &str| std::fs::read_to_string(group.join(name)).ok()?.trim().parse::<usize>().ok();
    // Version 2 says `max` where there is no limit; version 1 a number larger than any memory.
    let limit = number(names.limit)?;
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let reclaimable =
        stat.lines().find_map(|l| l.strip_prefix(names.reclaimable)?.trim().parse::<usize>().ok());
    let used = number(names.usage)?.saturating_sub(reclaimable.unwrap_or(0));
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_estimate() {
        let text = "MemTotal:       24 kB\nMemAvailable:   12 kB\nBuffers: 3 kB\n";
        assert_eq!(mem_available(text), Some(12 * 1024));
        assert_eq!(mem_available("MemAvailable: lots"), None);
        assert_eq!(mem_available(""), None);
    }

    fn group(top: &Path, path: &str, names: &Names, limit: &str, used: usize, inactive: usize) {
        let dir = top.join(path);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(names.limit), format!("{limit}\n")).unwrap();
        std::fs::write(dir.join(names.usage), format!("{used}\n")).unwrap();
        let stat = format!("cache 5\n{} {inactive}\n", names.reclaimable);
        std::fs::write(dir.join("memory.stat"), stat).unwrap();
    }

    #[test]
    fn the_tightest_group_counts() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        assert_eq!(group_room(top, "0::/a/b\n"), None);
        group(top, "a", &V2, "1000", 400, 100);
        group(top, "a/b", &V2, "max", 300, 0);
        assert_eq!(group_room(top, "0::/a/b\n"), Some(700), "the group above limits it");
        group(top, "a/b", &V2, "500", 300, 50);
        assert_eq!(group_room(top, "0::/a/b\n"), Some(250));
        group(&top.join("memory"), "", &V1, "9223372036854771712", 10, 0);
        group(&top.join("memory"), "x", &V1, "200", 150, 30);
        let both = "4:cpu,memory:/x\n0::/a/b\n";
        assert_eq!(group_room(top, both), Some(80));
        // A path that is not visible from inside.
        assert_eq!(group_room(&top.join("none"), "4:memory:/x"), None);
        assert!(group_room(top, "4:memory:/unseen").is_some_and(|room| room > 1 << 40));
    }
}
