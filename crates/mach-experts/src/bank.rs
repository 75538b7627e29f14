//! The allocation that holds experts, one slot each.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mach_checkpoint::{Checkpoint, CheckpointError};
use mach_io::{HugeBuf, MemoryError, Read, ReadError, Reader, Slot};
use mach_quant::Order;

use crate::record::{ExpertView, RecordLayout};
use crate::sidecar::{Sidecar, SidecarError};

/// Why a bank cannot be filled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BankError {
    /// The checkpoint's experts are unusable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The sidecar's experts are unusable.
    #[error(transparent)]
    Sidecar(#[from] SidecarError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Experts that stand for others hold the weights of so many.
const SAMPLES: usize = 8;

/// Slots for experts, all in one allocation. With all experts resident the slot of (layer, expert) is
/// `rank of the layer among MoE layers * experts + expert`.
#[derive(Debug)]
pub struct Bank {
    slots: Vec<Slot>,
    experts: usize,
    /// One entry a layer; `None` for dense layers.
    layers: Vec<Option<(usize, RecordLayout)>>,
    weight_bytes: u64,
}

impl Bank {
    /// Reads every expert of the checkpoint into the bank with `threads` threads. `progress` hears how many bytes of
    /// weights are placed; it is called from the calling thread.
    pub fn resident(
        checkpoint: &Checkpoint,
        order: Order,
        threads: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Bank, BankError> {
        let config = checkpoint.config();
        let experts = config.moe.num_experts;
        let mut layers = Vec::with_capacity(config.layers.len());
        let (mut sources, mut stride, mut weight_bytes) = (Vec::new(), 0, 0);
        for (layer, _) in config.moe_layers.iter().enumerate() {
            if !config.moe_layers[layer] {
                layers.push(None);
                continue;
            }
            let these = checkpoint.experts(layer)?;
            let Some(first) = these.first() else {
                layers.push(None);
                continue;
            };
            let record = RecordLayout::of(first, order)?;
            for (e, expert) in these.iter().enumerate() {
                if RecordLayout::of(expert, order)? != record {
                    return Err(CheckpointError::Tensor {
                        file: expert.gate.file.to_path_buf(),
                        tensor: expert.gate.module.to_owned(),
                        reason: format!("expert {e} is stored in another format than expert 0 of its layer"),
                    }
                    .into());
                }
            }
            stride = stride.max(record.stride());
            weight_bytes += (record.weight_bytes() * these.len()) as u64;
            layers.push(Some((sources.len(), record)));
            sources.push((record, these));
        }
        let mut slots = HugeBuf::zeroed(sources.len() * experts * stride)?.into_slots(stride);
        let jobs: Vec<_> = slots
            .iter_mut()
            .map(|slot| &mut slot[..])
            .zip(sources.iter().flat_map(|(record, these)| these.iter().map(move |e| (record, e))))
            .collect();
        fill(checkpoint, jobs, threads, progress)?;
        Ok(Bank { slots, experts, layers, weight_bytes })
    }

    /// Reads every expert of a sidecar into the bank and checks its record. Records that lie in `order` are read straight
    /// into their slots. `progress` hears how many bytes of weights are placed.
    pub fn from_sidecar(
        sidecar: &Sidecar,
        order: Order,
        reader: &mut Reader,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Bank, BankError> {
        let experts = sidecar.manifest().num_experts;
        let (mut layers, mut stride, mut rank, mut straight) = (Vec::new(), 0, 0, true);
        for entry in &sidecar.manifest().layers {
            let stored = entry.record;
            let record = stored.in_order(order);
            record.check_usable(&stored).map_err(|e| SidecarError::Invalid {
                file: sidecar.files().get(rank).cloned().unwrap_or_default(),
                reason: e.to_string(),
            })?;
            straight &= record == stored;
            stride = stride.max(record.stride());
            layers.resize(entry.layer, None);
            layers.push(Some((rank, record)));
            rank += 1;
        }
        let slots = HugeBuf::zeroed(rank * experts * stride)?.into_slots(stride);
        let mut bank = Bank { slots, experts, layers, weight_bytes: 0 };
        if straight {
            bank.read_straight(sidecar, reader, progress)?;
        } else {
            bank.read_repacked(sidecar, reader, progress)?;
        }
        Ok(bank)
    }

    fn read_straight(
        &mut self,
        sidecar: &Sidecar,
        reader: &mut Reader,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), SidecarError> {
        let which: Vec<_> = sidecar.experts().collect();
        let mut placed: Vec<Option<Slot>> = which.iter().map(|_| None).collect();
        reader.submit(which.iter().zip(self.slots.drain(..)).enumerate().filter_map(
            |(i, (&(layer, expert), slot))| {
                let at = sidecar.location(layer, expert)?;
                Some(Read { file: at.file, offset: at.offset, len: at.len, slot, tag: i as u64 })
            },
        ));
        let mut result = Ok(());
        while let Some(done) = reader.wait_any() {
            let index = done.tag as usize;
            match (done.result, which.get(index), placed.get_mut(index)) {
                (Ok(slot), Some(&(layer, expert)), Some(place)) if result.is_ok() => {
                    result = sidecar.check_record(layer, expert, &slot);
                    *place = Some(slot);
                    self.weight_bytes += sidecar.record(layer).map_or(0, |r| r.weight_bytes() as u64);
                    progress(self.weight_bytes);
                }
                (Err(failure), ..) => result = result.and(Err(failure.error.into())),
                _ => {}
            }
        }
        result?;
        let all = placed.into_iter().collect::<Option<Vec<_>>>();
        self.slots = all.ok_or_else(|| ReadError::Setup("a read did not complete".to_owned()))?;
        Ok(())
    }

    fn read_repacked(
        &mut self,
        sidecar: &Sidecar,
        reader: &mut Reader,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), BankError> {
        let stride = sidecar.max_stride();
        let memory = HugeBuf::zeroed(reader.depth() * stride)?.into_slots(stride);
        let (layers, slots, experts) = (&self.layers, &mut self.slots, self.experts);
        let mut bytes = 0;
        sidecar.read_each(reader, memory, sidecar.experts(), &mut |layer, expert, data| {
            sidecar.check_record(layer, expert, data)?;
            if let (Some(Some((rank, record))), Some(stored)) = (layers.get(layer), sidecar.record(layer))
                && let Some(slot) = slots.get_mut(rank * experts + expert)
            {
                record.repack(&stored, data, slot);
                bytes += record.weight_bytes() as u64;
                progress(bytes);
            }
            Ok(())
        })?;
        self.weight_bytes = bytes;
        Ok(())
    }

    /// A bank of about `bytes` bytes whose slots hold the first experts of the first layer over and over and stand for all: as much
    /// to read as the real ones, for timing.
    pub fn stand_in(checkpoint: &Checkpoint, order: Order, bytes: usize) -> Result<Bank, BankError> {
        let config = checkpoint.config();
        let first = config.moe_layers.iter().position(|&has| has).unwrap_or(0);
        let experts = checkpoint.experts(first)?;
        let mut samples = Vec::new();
        let record = match experts.first() {
            Some(expert) => RecordLayout::of(expert, order)?,
            None => {
                let (file, tensor) = (checkpoint.dir().to_owned(), "experts".to_owned());
                return Err(
                    CheckpointError::Tensor { file, tensor, reason: "there are none".to_owned() }.into()
                );
            }
        };
        for expert in experts.iter().take(SAMPLES) {
            let mut sample = vec![0; record.stride()];
            record.pack(expert, &mut sample)?;
            samples.push(sample);
        }
        Self::repeated(&config.moe_layers, config.moe.num_experts, record, &samples, bytes)
    }

    /// As [`stand_in`](Self::stand_in), from records.
    pub fn stand_in_of_sidecar(
        sidecar: &Sidecar,
        order: Order,
        reader: &mut Reader,
        bytes: usize,
    ) -> Result<Bank, BankError> {
        let first = sidecar.manifest().layers.first().map_or(0, |entry| entry.layer);
        let invalid = |reason: &str| SidecarError::Invalid {
            file: sidecar.files().first().cloned().unwrap_or_default(),
            reason: reason.to_owned(),
        };
        let stored = sidecar.record(first).ok_or_else(|| invalid("there are no experts"))?;
        let record = stored.in_order(order);
        record.check_usable(&stored).map_err(|e| invalid(&e.to_string()))?;
        let memory = HugeBuf::zeroed(reader.depth() * sidecar.max_stride())?.into_slots(sidecar.max_stride());
        let mut samples = Vec::new();
        let few = sidecar.experts().take_while(|&(layer, _)| layer == first).take(SAMPLES);
        sidecar.read_each(reader, memory, few, &mut |layer, expert, data| {
            sidecar.check_record(layer, expert, data)?;
            let mut sample = vec![0; record.stride()];
            record.repack(&stored, data, &mut sample);
            samples.push(sample);
            Ok(())
        })?;
        let last = sidecar.manifest().layers.last().map_or(0, |entry| entry.layer);
        let has: Vec<bool> = (0..=last).map(|layer| sidecar.record(layer).is_some()).collect();
        Self::repeated(&has, sidecar.manifest().num_experts, record, &samples, bytes)
    }

    fn repeated(
        has_experts: &[bool],
        experts: usize,
        record: RecordLayout,
        samples: &[Vec<u8>],
        bytes: usize,
    ) -> Result<Bank, BankError> {
        let (mut layers, mut rank) = (Vec::new(), 0);
        for &has in has_experts {
            layers.push(has.then_some((rank, record)));
            rank += usize::from(has);
        }
        let stride = record.stride().max(1);
        let count = (bytes / stride).clamp(1, (rank * experts).max(1));
        let mut slots = HugeBuf::zeroed(count * stride)?.into_slots(stride);
        for (slot, sample) in slots.iter_mut().zip(samples.iter().cycle()) {
            slot[..sample.len()].copy_from_slice(sample);
        }
        Ok(Bank { slots, experts, layers, weight_bytes: (record.weight_bytes() * count) as u64 })
    }

    /// The weights of an expert; `None` if the layer is dense or the expert out of range.
    pub fn expert(&self, layer: usize, expert: usize) -> Option<ExpertView<'_>> {
        let (rank, record) = self.layers.get(layer)?.as_ref()?;
        if expert >= self.experts {
            return None;
        }
        // As many slots as experts, unless some stand for others.
        let slot = (rank * self.experts + expert) % self.slots.len().max(1);
        record.view(self.slots.get(slot)?).gated()
    }

    /// The whole record of an expert; `None` as with [`expert`](Self::expert).
    pub fn bytes_of(&self, layer: usize, expert: usize) -> Option<&[u8]> {
        let (rank, record) = self.layers.get(layer)?.as_ref()?;
        if expert >= self.experts {
            return None;
        }
        self.slots.get((rank * self.experts + expert) % self.slots.len().max(1))?.get(..record.stride())
    }

    /// Experts of a layer that has any.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// The record layout of a layer.
    pub fn record(&self, layer: usize) -> Option<&RecordLayout> {
        self.layers.get(layer)?.as_ref().map(|(_, record)| record)
    }

    /// Slots, one for each expert of every layer.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of weights, padding not counted.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes allocated.
    pub fn allocated_bytes(&self) -> usize {
        self.slots.first().map_or(0, |slot| slot.region().len())
    }

    /// Bytes of the bank on huge pages.
    pub fn huge_bytes(&self) -> Option<usize> {
        self.slots.first().map_or(Some(0), |slot| slot.region().huge_bytes())
    }
}

type Job<'a, 'b> = (&'a mut [u8], (&'b RecordLayout, &'b mach_checkpoint::ExpertSource<'b>));

fn fill(
    checkpoint: &Checkpoint,
    jobs: Vec<Job<'_, '_>>,
    threads: usize,
    progress: &mut dyn FnMut(u64),
) -> Result<(), CheckpointError> {
    let total = jobs.len();
    let queue = Mutex::new(jobs.into_iter());
    let (done, finished) = (AtomicU64::new(0), AtomicUsize::new(0));
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, total.max(1)) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut q| q.next());
                    let Some((memory, (record, expert))) = next else { break };
                    if let Err(error) = record.pack(expert, memory) {
                        if let Ok(mut first) = failure.lock() {
                            first.get_or_insert(error);
                        }
                        break;
                    }
                    for m in [&expert.gate, &expert.up, &expert.down] {
                        // Mapped pages would count as this process's memory beside their copy.
                        for part in [m.weight, m.scales, m.biases] {
                            checkpoint.let_go(part);
                        }
                    }
                    done.fetch_add(record.weight_bytes() as u64, Ordering::Relaxed);
                }
                finished.fetch_add(1, Ordering::Release);
            });
        }
        let workers = threads.clamp(1, total.max(1));
        while finished.load(Ordering::Acquire) < workers {
            std::thread::sleep(std::time::Duration::from_millis(5));
            progress(done.load(Ordering::Relaxed));
        }
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}
