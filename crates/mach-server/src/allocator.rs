//! Memory that is freed goes back to the system. glibc keeps what threads free for later, in an arena for each few of them, and raises by itself
//! the size from which it does not: requests come in bursts, and what one took would stay for good.

/// Tunes the allocator; to be called once, before there are threads. Does nothing where it is not glibc's.
pub fn tune() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt sets parameters of the allocator and has no other effect; both are known to every glibc that Rust supports.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, ARENAS);
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
            libc::mallopt(libc::M_TRIM_THRESHOLD, TRIMMED);
        }
    }
}

/// Arenas: memory that one thread freed is found by few others.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: libc::c_int = 4;
/// What is as large as this is a mapping of its own and goes when it is freed. Setting it keeps it from growing.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED: libc::c_int = 4 << 20;
/// What may stay free at the top of the heap.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIMMED: libc::c_int = 1 << 20;

/// Gives back what is free in all arenas.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim releases memory that nothing uses, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
