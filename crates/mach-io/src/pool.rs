//! Reads by threads that call `pread`.

use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::ReadError;
use crate::files::OpenFile;
use crate::reader::{Backend, Ended, Op};

/// As many threads as reads may be at the drive. A thread owns the slot that it reads into.
#[derive(Debug)]
pub(crate) struct PreadPool {
    /// `None` once closing.
    work: Option<Sender<Op>>,
    ended: Receiver<Ended>,
    threads: Vec<JoinHandle<()>>,
}

impl PreadPool {
    pub(crate) fn new(files: Arc<[OpenFile]>, depth: usize) -> Result<Self, ReadError> {
        let (work, queue) = channel::<Op>();
        let (report, ended) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::with_capacity(depth);
        for i in 0..depth {
            let (files, queue, report) = (Arc::clone(&files), Arc::clone(&queue), report.clone());
            let thread = std::thread::Builder::new()
                .name(format!("pread-{i}"))
                .spawn(move || {
                    loop {
                        let next = queue.lock().map(|q| q.recv());
                        let Ok(Ok(mut op)) = next else { break };
                        let result = read(&files, &mut op);
                        if report.send(op.end(&files, result)).is_err() {
                            break;
                        }
                    }
                })
                .map_err(|e| ReadError::Setup(format!("thread: {e}")))?;
            threads.push(thread);
        }
        Ok(PreadPool { work: Some(work), ended, threads })
    }
}

fn read(files: &[OpenFile], op: &mut Op) -> std::io::Result<()> {
    let Some(file) = files.get(op.read.file) else { return Err(std::io::Error::other("no such file")) };
    while let Some(rest) = op.read.slot.get_mut(op.done..op.read.len)
        && !rest.is_empty()
    {
        match file.file.read_at(rest, op.read.offset + op.done as u64) {
            Ok(0) => break,
            Ok(n) => op.done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Backend for PreadPool {
    fn start(&mut self, op: Op) {
        if let Some(work) = &self.work {
            // The receiver lives as long as a thread does, and threads end only when `work` is dropped.
            let _ = work.send(op);
        }
    }

    fn flush(&mut self) {}

    fn next(&mut self, block: bool) -> Option<Ended> {
        if block { self.ended.recv().ok() } else { self.ended.try_recv().ok() }
    }

    fn name(&self) -> &'static str {
        "pread"
    }
}

impl Drop for PreadPool {
    fn drop(&mut self) {
        self.work = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
