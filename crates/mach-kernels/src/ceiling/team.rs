//! A team of pinned threads that starts and ends every repeat together.

use std::sync::Barrier;
use std::time::Instant;

/// Runs `work(member)` on `threads` threads `reps` times and returns the seconds of each repeat, from the moment
/// when all were ready to the moment when the last was done.
pub(super) fn timed(threads: usize, reps: usize, work: impl Fn(usize) + Sync) -> Vec<f64> {
    let threads = threads.max(1);
    let barrier = Barrier::new(threads);
    let member = |index: usize| {
        pin(index);
        let mut seconds = Vec::with_capacity(reps);
        for _ in 0..reps {
            barrier.wait();
            let start = Instant::now();
            work(index);
            barrier.wait();
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds
    };
    std::thread::scope(|scope| {
        let member = &member;
        let team: Vec<_> = (0..threads).map(|index| scope.spawn(move || member(index))).collect();
        let mut slowest = vec![0.0f64; reps];
        for handle in team {
            if let Ok(seconds) = handle.join() {
                for (slow, s) in slowest.iter_mut().zip(seconds) {
                    *slow = slow.max(s);
                }
            }
        }
        slowest
    })
}

/// Binds the calling thread to the `index`-th processor that the process may use. Best effort: without it the
/// scheduler may put two members on one core, which only lowers what is measured.
#[cfg(target_os = "linux")]
fn pin(index: usize) {
    // SAFETY: `cpu_set_t` is a plain bit set, for which all zeroes is a value; both calls get its true size and
    // write or read inside it only; the CPU_* helpers stay inside it because `cpu` is below CPU_SETSIZE.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut allowed) != 0 {
            return;
        }
        let cpus: Vec<usize> =
            (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &allowed)).collect();
        if cpus.is_empty() {
            return;
        }
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpus[index % cpus.len()], &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one);
    }
}

#[cfg(not(target_os = "linux"))]
fn pin(_index: usize) {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::timed;

    #[test]
    fn every_member_works_in_every_repeat() {
        let counts: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        let seconds = timed(3, 4, |member| {
            counts[member].fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(seconds.len(), 4);
        assert!(seconds.iter().all(|&s| s > 0.0));
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 4));
    }
}
