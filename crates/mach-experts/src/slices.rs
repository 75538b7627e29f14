//! Experts read out of a checkpoint's own safetensors, slice by slice: full-precision streaming, and a way to run where no
//! sidecar is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use mach_checkpoint::{
    Checkpoint, CheckpointError, Dtype, ExpertBiases, ExpertSource, LinearSource, Packing, VectorSource,
};
use mach_io::{ReadError, ReadStats, Slot};
use mach_quant::{Axes, Order};

use crate::eviction::ExpertKey;
use crate::fetch::Arrival;
use crate::record::RecordLayout;
use crate::sidecar::SidecarError;

/// Bytes of a file.
#[derive(Debug, Clone, Copy)]
struct Extent {
    file: usize,
    offset: u64,
    len: usize,
}

/// Where the parts of one matrix are, and what they are.
#[derive(Debug, Clone)]
struct MatrixSlices {
    module: String,
    rows: usize,
    cols: usize,
    packing: Packing,
    axes: Axes,
    /// Weight, scales, biases.
    parts: [Extent; 3],
}

/// Where a bias is, and what it is.
#[derive(Debug, Clone)]
struct VectorSlice {
    tensor: String,
    dtype: Dtype,
    len: usize,
    step: usize,
    at: Extent,
}

#[derive(Debug)]
struct Expert {
    /// Gate, up, down.
    matrices: [MatrixSlices; 3],
    /// Theirs, if they have any.
    biases: Option<[VectorSlice; 3]>,
}

#[derive(Debug)]
struct Layer {
    record: RecordLayout,
    experts: Vec<Expert>,
}

/// Where every expert of a checkpoint lies in its safetensors.
#[derive(Debug)]
pub struct SliceSource {
    paths: Vec<PathBuf>,
    files: Vec<File>,
    layers: Vec<Option<Layer>>,
    experts: usize,
}

impl SliceSource {
    /// Finds the experts; they will be laid out in `order`.
    pub fn of(checkpoint: &Checkpoint, order: Order) -> Result<Self, CheckpointError> {
        let config = checkpoint.config();
        let (mut paths, mut layers) = (Vec::new(), Vec::new());
        for (layer, &moe) in config.moe_layers.iter().enumerate() {
            if !moe {
                layers.push(None);
                continue;
            }
            let sources = checkpoint.experts(layer)?;
            let mut record = None;
            let mut experts = Vec::with_capacity(sources.len());
            for source in &sources {
                let this = RecordLayout::of(source, order)?;
                if *record.get_or_insert(this) != this {
                    return Err(CheckpointError::Tensor {
                        file: source.gate.file.to_path_buf(),
                        tensor: source.gate.module.to_owned(),
                        reason: "stored in another format than the first expert of its layer".to_owned(),
                    });
                }
                let [gate, up, down] =
                    [&source.gate, &source.up, &source.down].map(|m| find(checkpoint, m, &mut paths));
                let biases = match &source.biases {
                    Some(b) => {
                        let [gate, up, down] =
                            [&b.gate, &b.up, &b.down].map(|v| find_vector(checkpoint, v, &mut paths));
                        Some([gate?, up?, down?])
                    }
                    None => None,
                };
                experts.push(Expert { matrices: [gate?, up?, down?], biases });
            }
            layers.push(record.map(|record| Layer { record, experts }));
        }
        let files = paths
            .iter()
            .map(|path| File::open(path).map_err(|source| CheckpointError::Io { file: path.clone(), source }))
            .collect::<Result<_, _>>()?;
        Ok(SliceSource { paths, files, layers, experts: config.moe.num_experts })
    }

    /// Whether every expert is stored in plain bfloat16.
    pub fn is_bf16(&self) -> bool {
        let experts = self.layers.iter().flatten().flat_map(|l| l.experts.iter());
        let mut all = experts.flat_map(|e| e.matrices.iter());
        all.all(|m| m.packing == Packing::Dense(mach_checkpoint::Dtype::BF16))
    }

    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    pub(crate) fn experts(&self) -> usize {
        self.experts
    }

    pub(crate) fn record(&self, layer: usize) -> Option<RecordLayout> {
        Some(self.layers.get(layer)?.as_ref()?.record)
    }

    /// Bytes of all experts when laid out, padding not counted.
    pub fn weight_bytes(&self) -> u64 {
        let bytes = |l: &Layer| (l.record.weight_bytes() * l.experts.len()) as u64;
        self.layers.iter().flatten().map(bytes).sum()
    }

    /// Bytes of the largest laid out expert.
    pub fn slot_bytes(&self) -> usize {
        self.layers.iter().flatten().map(|l| l.record.stride()).max().unwrap_or(0)
    }

    /// Layers with experts.
    pub fn moe_layers(&self) -> usize {
        self.layers.iter().flatten().count()
    }

    fn part(&self, extent: Extent) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; extent.len];
        let path = || self.paths.get(extent.file).cloned().unwrap_or_default();
        let (offset, len) = (extent.offset, extent.len);
        let Some(file) = self.files.get(extent.file) else {
            return Err(ReadError::Setup("no such file".to_owned()));
        };
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                let found = file.metadata().map_or(0, |m| m.len().saturating_sub(offset) as usize);
                return Err(ReadError::Truncated { file: path(), offset, len, found });
            }
            Err(source) => return Err(ReadError::Io { file: path(), offset, len, source }),
        }
        Ok(bytes)
    }

    /// Reads an expert and lays it out in `slot`; the bytes read.
    fn load(&self, key: ExpertKey, slot: &mut Slot) -> Result<usize, SidecarError> {
        let layer = self.layers.get(key.layer).and_then(Option::as_ref);
        let Some((layer, expert)) = layer.and_then(|l| Some((l, l.experts.get(key.expert)?))) else {
            let reason = format!("no expert {} of layer {}", key.expert, key.layer);
            return Err(SidecarError::Invalid { file: "safetensors".into(), reason });
        };
        let mut bytes = Vec::with_capacity(12);
        for matrix in &expert.matrices {
            for part in matrix.parts {
                bytes.push(self.part(part)?);
            }
        }
        for vector in expert.biases.iter().flatten() {
            bytes.push(self.part(vector.at)?);
        }
        let total = bytes.iter().map(Vec::len).sum();
        let part = |i: usize| bytes.get(i).map_or(&[] as &[u8], Vec::as_slice);
        let matrix = |i: usize| -> Option<LinearSource<'_>> {
            let m = expert.matrices.get(i)?;
            Some(LinearSource {
                module: &m.module,
                file: m.parts.first().and_then(|e| self.paths.get(e.file))?,
                rows: m.rows,
                cols: m.cols,
                packing: m.packing,
                axes: m.axes,
                weight: part(3 * i),
                scales: part(3 * i + 1),
                biases: part(3 * i + 2),
            })
        };
        let bias = |i: usize| -> Option<VectorSource<'_>> {
            let VectorSlice { tensor, dtype, len, step, at } = expert.biases.as_ref()?.get(i)?;
            Some(VectorSource {
                tensor,
                file: self.paths.get(at.file)?,
                dtype: *dtype,
                data: part(9 + i),
                len: *len,
                step: *step,
            })
        };
        if let (Some(gate), Some(up), Some(down)) = (matrix(0), matrix(1), matrix(2)) {
            let biases = match (bias(0), bias(1), bias(2)) {
                (Some(gate), Some(up), Some(down)) => Some(ExpertBiases { gate, up, down }),
                _ => None,
            };
            let source = ExpertSource { gate, up, down, biases };
            layer.record.pack(&source, slot).map_err(|e| SidecarError::Invalid {
                file: gate.file.to_path_buf(),
                reason: format!("expert {} of layer {}: {e}", key.expert, key.layer),
            })?;
        }
        Ok(total)
    }
}

/// Where these bytes of a mapped shard are in its file.
fn extent(checkpoint: &Checkpoint, data: &[u8], paths: &mut Vec<PathBuf>) -> Option<Extent> {
    let (path, offset) = checkpoint.locate(data)?;
    let file = paths.iter().position(|p| p == path).unwrap_or_else(|| {
        paths.push(path.to_owned());
        paths.len() - 1
    });
    Some(Extent { file, offset, len: data.len() })
}

fn find_vector(
    checkpoint: &Checkpoint,
    vector: &VectorSource<'_>,
    paths: &mut Vec<PathBuf>,
) -> Result<VectorSlice, CheckpointError> {
    let VectorSource { tensor, file, dtype, data, len, step } = *vector;
    let at = extent(checkpoint, data, paths).ok_or_else(|| CheckpointError::Tensor {
        file: file.to_path_buf(),
        tensor: tensor.to_owned(),
        reason: "lies outside its shard".to_owned(),
    })?;
    Ok(VectorSlice { tensor: tensor.to_owned(), dtype, len, step, at })
}

fn find(
    checkpoint: &Checkpoint,
    matrix: &LinearSource<'_>,
    paths: &mut Vec<PathBuf>,
) -> Result<MatrixSlices, CheckpointError> {
    let mut extent = |data: &[u8]| extent(checkpoint, data, paths);
    let parts = [extent(matrix.weight), extent(matrix.scales), extent(matrix.biases)];
    let [Some(weight), scales, biases] = parts else {
        return Err(CheckpointError::Tensor {
            file: matrix.file.to_path_buf(),
            tensor: matrix.module.to_owned(),
            reason: "lies outside its shard".to_owned(),
        });
    };
    let nothing = Extent { len: 0, ..weight };
    Ok(MatrixSlices {
        module: matrix.module.to_owned(),
        rows: matrix.rows,
        cols: matrix.cols,
        packing: matrix.packing,
        axes: matrix.axes,
        parts: [weight, scales.unwrap_or(nothing), biases.unwrap_or(nothing)],
    })
}

struct Job {
    key: ExpertKey,
    slot: Slot,
    tag: u64,
    started: Instant,
}

struct Done {
    arrival: Arrival,
    finished: Instant,
}

/// Threads that read slices.
pub struct SlicePool {
    source: Arc<SliceSource>,
    /// `None` once closing.
    work: Option<Sender<Job>>,
    done: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
    pending: usize,
    busy_since: Option<Instant>,
    stats: ReadStats,
}

impl std::fmt::Debug for SlicePool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlicePool").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl SlicePool {
    /// Starts `threads` threads.
    pub fn new(source: SliceSource, threads: usize) -> Result<Self, ReadError> {
        let source = Arc::new(source);
        let (work, queue) = channel::<Job>();
        let (report, done) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut handles = Vec::new();
        for i in 0..threads.max(1) {
            let (source, queue, report) = (Arc::clone(&source), Arc::clone(&queue), report.clone());
            let thread = std::thread::Builder::new()
                .name(format!("slices-{i}"))
                .spawn(move || {
                    loop {
                        let next = queue.lock().map(|q| q.recv());
                        let Ok(Ok(Job { key, mut slot, tag, started })) = next else { break };
                        let loaded = source.load(key, &mut slot);
                        let bytes = loaded.as_ref().copied().unwrap_or(0);
                        let (finished, slot) = (Instant::now(), Some(slot));
                        let took = finished - started;
                        let arrival = Arrival { tag, bytes, took, slot, result: loaded.map(|_| ()) };
                        let done = Done { arrival, finished };
                        if report.send(done).is_err() {
                            break;
                        }
                    }
                })
                .map_err(|e| ReadError::Setup(format!("thread: {e}")))?;
            handles.push(thread);
        }
        Ok(SlicePool {
            source,
            work: Some(work),
            done,
            threads: handles,
            pending: 0,
            busy_since: None,
            stats: ReadStats::default(),
        })
    }

    pub(crate) fn source(&self) -> &SliceSource {
        &self.source
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads.len()
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    pub(crate) fn stats(&self) -> &ReadStats {
        &self.stats
    }

    pub(crate) fn submit(&mut self, reads: Vec<(ExpertKey, Slot, u64)>) {
        let Some(work) = &self.work else { return };
        for (key, slot, tag) in reads {
            let started = Instant::now();
            self.busy_since.get_or_insert(started);
            // The receiver lives as long as a thread does, and threads end only when `work` is dropped.
            if work.send(Job { key, slot, tag, started }).is_ok() {
                self.pending += 1;
            }
        }
        let running = self.pending.min(self.threads.len());
        self.stats.in_flight_high_water = self.stats.in_flight_high_water.max(running);
    }

    pub(crate) fn next(&mut self, wait: bool) -> Option<Arrival> {
        if self.pending == 0 {
            return None;
        }
        let done = match self.done.try_recv() {
            Ok(done) => done,
            Err(_) if !wait => return None,
            Err(_) => {
                let from = Instant::now();
                let done = self.done.recv().ok();
                self.stats.stall += from.elapsed();
                done?
            }
        };
        self.pending -= 1;
        match &done.arrival.result {
            Ok(()) => {
                self.stats.reads += 1;
                self.stats.bytes += done.arrival.bytes as u64;
                self.stats.latency.record(done.arrival.took);
            }
            Err(_) => self.stats.failures += 1,
        }
        if self.pending == 0
            && let Some(since) = self.busy_since.take()
        {
            self.stats.busy += done.finished.saturating_duration_since(since);
        }
        Some(done.arrival)
    }
}

impl Drop for SlicePool {
    fn drop(&mut self) {
        self.work = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
