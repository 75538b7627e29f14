//! Reads by io_uring.
//!
//! The kernel writes into a slot from the moment its read is submitted until its completion is seen. All that time the
//! slot is owned by `ops` below, so nobody else can reach its bytes; dropping the ring waits for every completion first, and
//! forgetting it forgets the slots with it, so their memory stays mapped.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use io_uring::{IoUring, opcode, squeue, types};

use crate::files::OpenFile;
use crate::reader::{Backend, Ended, Op, ReadFailure};
use crate::{ReadError, SlotRegion};

/// Largest buffer that the kernel registers.
const MAX_BUFFER: usize = 1 << 30;
/// Most buffers that the kernel registers.
const MAX_BUFFERS: usize = 1 << 14;

/// Registered memory `start..start + len`, known to the kernel as one buffer.
#[derive(Debug)]
struct Registered {
    start: usize,
    len: usize,
    /// Keeps the memory mapped while it is registered.
    _region: SlotRegion,
}

pub(crate) struct Uring {
    ring: IoUring,
    files: Arc<[OpenFile]>,
    /// Whether the ring knows the files by index.
    fixed_files: bool,
    buffers: Vec<Registered>,
    /// Reads that the kernel has, by user data.
    ops: Vec<Option<Op>>,
    free: Vec<usize>,
    /// The kernel refused to go on; no completion will come.
    broken: Option<io::ErrorKind>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("files", &self.files.len()).field("buffers", &self.buffers).finish()
    }
}

impl Uring {
    pub(crate) fn new(files: Arc<[OpenFile]>, depth: usize, regions: &[SlotRegion]) -> io::Result<Self> {
        let entries = u32::try_from(depth.next_power_of_two()).unwrap_or(1024);
        let ring = IoUring::new(entries)?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) || !probe.is_supported(opcode::ReadFixed::CODE) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring does not read"));
        }
        let fds: Vec<RawFd> = files.iter().map(|f| f.file.as_raw_fd()).collect();
        let fixed_files = ring.submitter().register_files(&fds).is_ok();
        let mut uring = Uring {
            ring,
            files,
            fixed_files,
            buffers: Vec::new(),
            ops: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            broken: None,
        };
        uring.register_regions(regions);
        Ok(uring)
    }

    /// Registers memory in buffers that hold whole slots. Limits on locked memory may forbid it, which only costs speed.
    fn register_regions(&mut self, regions: &[SlotRegion]) {
        let mut buffers = Vec::new();
        for region in regions {
            let (base, len) = region.span();
            let slots = (MAX_BUFFER / region.slot_len().max(1)).max(1);
            let piece = (slots * region.slot_len()).max(1);
            for at in (0..len).step_by(piece) {
                let start = base.addr() + at;
                buffers.push(Registered { start, len: piece.min(len - at), _region: region.clone() });
            }
        }
        if buffers.is_empty() || buffers.len() > MAX_BUFFERS {
            return;
        }
        let iovecs: Vec<libc::iovec> = buffers
            .iter()
            .map(|b| libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(b.start), iov_len: b.len })
            .collect();
        // SAFETY: each range is part of a mapping that `buffers` keeps alive for as long as the ring.
        match unsafe { self.ring.submitter().register_buffers(&iovecs) } {
            Ok(()) => self.buffers = buffers,
            Err(e) => tracing::debug!(error = %e, "buffers not registered with io_uring"),
        }
    }

    fn entry(&self, op: &mut Op, user: usize) -> Option<squeue::Entry> {
        let (done, len, offset) = (op.done, op.read.len - op.done, op.read.offset + op.done as u64);
        // SAFETY: done < read.len <= slot length (checked on submission).
        let to = unsafe { op.read.slot.address().add(done) };
        let len32 = u32::try_from(len).ok()?;
        let fd = self.files.get(op.read.file)?.file.as_raw_fd();
        let start = to.expose_provenance();
        let inside = |b: &Registered| start >= b.start && start + len <= b.start + b.len;
        let buffer = self.buffers.iter().position(inside).and_then(|i| u16::try_from(i).ok());
        let entry = match (buffer, self.fixed_files) {
            (Some(i), true) => {
                opcode::ReadFixed::new(types::Fixed(op.read.file as u32), to, len32, i).offset(offset).build()
            }
            (Some(i), false) => opcode::ReadFixed::new(types::Fd(fd), to, len32, i).offset(offset).build(),
            (None, true) => {
                opcode::Read::new(types::Fixed(op.read.file as u32), to, len32).offset(offset).build()
            }
            (None, false) => opcode::Read::new(types::Fd(fd), to, len32).offset(offset).build(),
        };
        Some(entry.user_data(user as u64))
    }

    /// Puts the read into the submission queue, which has room for `depth` entries.
    fn push(&mut self, mut op: Op, user: usize) {
        let entry = self.entry(&mut op, user);
        if let Some(place) = self.ops.get_mut(user) {
            *place = Some(op);
        }
        // SAFETY: the slot that the entry points to is owned by `ops` until the completion has been seen, and the file
        // by `files`.
        let pushed = entry.is_some_and(|e| unsafe { self.ring.submission().push(&e) }.is_ok());
        if !pushed {
            self.broken = Some(io::ErrorKind::InvalidInput);
        }
    }

    /// Enters the kernel; waits for a completion if `wait`.
    fn enter(&mut self, wait: bool) {
        match self.ring.submit_and_wait(usize::from(wait)) {
            Ok(_) => {}
            Err(e) => match e.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                _ => self.broken = Some(e.kind()),
            },
        }
    }

    /// Gives up a read whose completion will not come. The kernel may still write: its memory is leaked.
    fn abandon(&mut self) -> Option<Ended> {
        let kind = self.broken?;
        let (user, op) = self.ops.iter_mut().enumerate().find_map(|(i, op)| Some((i, op.take()?)))?;
        self.free.push(user);
        let Op { read, started, .. } = op;
        let file = self.files.get(read.file).map(|f| f.path.clone()).unwrap_or_default();
        std::mem::forget(read.slot);
        let error = ReadError::Io { file, offset: read.offset, len: read.len, source: kind.into() };
        let result = Err(ReadFailure { error, slot: None });
        Some(Ended { tag: read.tag, len: read.len, started, finished: Instant::now(), result })
    }

    /// Takes one completion from the queue; `None` if there is none that ends a read.
    fn reap(&mut self) -> Option<Ended> {
        loop {
            let completion = self.ring.completion().next()?;
            let user = completion.user_data() as usize;
            let Some(mut op) = self.ops.get_mut(user).and_then(Option::take) else { continue };
            let result = match completion.result() {
                0 => Ok(()),
                n if n > 0 => {
                    op.done += n as usize;
                    if op.done < op.read.len {
                        // A part came: ask for the rest. At the end of the file nothing more comes.
                        self.push(op, user);
                        self.enter(false);
                        continue;
                    }
                    Ok(())
                }
                e if matches!(-e, libc::EINTR | libc::EAGAIN) => {
                    self.push(op, user);
                    self.enter(false);
                    continue;
                }
                e => Err(io::Error::from_raw_os_error(-e)),
            };
            self.free.push(user);
            return Some(op.end(&self.files, result));
        }
    }
}

impl Backend for Uring {
    fn start(&mut self, op: Op) {
        match self.free.pop() {
            Some(user) => self.push(op, user),
            None => {
                // Callers keep to the depth; were one not to, the read waits with the others and fails with them.
                self.ops.push(Some(op));
                self.broken = Some(io::ErrorKind::InvalidInput);
            }
        }
    }

    fn flush(&mut self) {
        self.enter(false);
    }

    fn next(&mut self, block: bool) -> Option<Ended> {
        loop {
            if let Some(ended) = self.reap() {
                return Some(ended);
            }
            if self.broken.is_some() {
                return self.abandon();
            }
            if !block {
                return None;
            }
            self.enter(true);
        }
    }

    fn register(&mut self, regions: &[SlotRegion]) {
        self.register_regions(regions);
    }

    fn name(&self) -> &'static str {
        "uring"
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.ops.iter().any(Option::is_some) {
            if self.next(true).is_none() {
                break;
            }
        }
    }
}
