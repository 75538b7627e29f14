//! Routed experts on the CPU: all in memory, or streamed while what is there computes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mach_experts::{Bank, Demand, ExpertView, HotExperts, Parts, StreamingBank, StreamingStats};
use mach_kernels::Cores;
use mach_kernels::elementwise::Gating;
use mach_kernels::experts::{BiasRef, ExpertJob, ExpertRef, FfnScratch, combine, expert_ffn};

use mach_models::device::{FfnSpec, Mlp, Span};
use mach_models::{ExpertsCard, ModelError, Purpose};

use crate::cpu::{Buf, Cpu, Routing, Scratch};
use crate::forms::{gating, network, view};
use crate::placement::Matrix;

/// Streamed experts that one step of a prompt computes: few, so that their memory is soon free to be read into again.
const STEP: usize = 8;

/// Where the experts are.
#[derive(Debug, Default)]
pub(crate) enum Experts {
    /// Not given yet.
    #[default]
    None,
    Resident(Bank),
    Streaming(Box<StreamingBank>),
}

impl Experts {
    pub(crate) fn allocated_bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Resident(bank) => bank.allocated_bytes(),
            Self::Streaming(bank) => (bank.slots() + bank.arena_slots()) * bank.slot_bytes(),
        }
    }

    pub(crate) fn huge_bytes(&self) -> Option<usize> {
        match self {
            Self::None => Some(0),
            Self::Resident(bank) => bank.huge_bytes(),
            Self::Streaming(bank) => bank.huge_bytes(),
        }
    }

    pub(crate) fn card(&self) -> ExpertsCard {
        match self {
            Self::None => ExpertsCard::Resident { weight_bytes: 0, slots: 0 },
            Self::Resident(bank) => {
                ExpertsCard::Resident { weight_bytes: bank.weight_bytes(), slots: bank.slots() }
            }
            Self::Streaming(bank) => ExpertsCard::Streaming {
                slots: bank.slots(),
                arena_slots: bank.arena_slots(),
                slot_bytes: bank.slot_bytes(),
                eviction: bank.policy(),
            },
        }
    }

    pub(crate) fn streaming_stats(&self) -> Option<Arc<StreamingStats>> {
        match self {
            Self::None | Self::Resident(_) => None,
            Self::Streaming(bank) => Some(Arc::clone(bank.stats())),
        }
    }

    /// Has experts read into empty slots while the drive has nothing better to do.
    pub(crate) fn bring(&mut self, hot: &HotExperts) {
        if let Self::Streaming(bank) = self {
            bank.bring(hot);
        }
    }

    /// Keeps the drive busy between the steps of a layer.
    pub(crate) fn pump(&mut self) {
        if let Self::Streaming(bank) = self {
            bank.pump();
        }
    }
}

/// What a row of a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowKind {
    /// The token that is decoded now.
    Decoded,
    /// A proposal, which may be thrown away.
    Proposed,
    /// A token of a prompt.
    Prompt,
}

/// Which rows go to which expert, and where the results are.
struct Groups<'a> {
    lists: &'a [Vec<u32>],
    /// First result of each expert.
    starts: &'a [u32],
    gating: Gating,
}

impl Groups<'_> {
    /// What an expert computes. One that is not in memory when it is to compute is an error: leaving it out would be a wrong
    /// answer.
    fn job<'a>(
        &'a self,
        layer: usize,
        expert: usize,
        weights: Option<ExpertView<'a>>,
    ) -> Result<ExpertJob<'a>, ModelError> {
        let (Some(weights), Some(rows), Some(&first)) =
            (weights, self.lists.get(expert), self.starts.get(expert))
        else {
            return Err(ModelError::Device(format!("expert {expert} of layer {layer} is not in memory")));
        };
        let expert = ExpertRef {
            gate: view(weights.gate),
            up: view(weights.up),
            down: view(weights.down),
            biases: weights.biases.map(|bias| bias.map(|b| BiasRef::Stored(b.float, b.data))),
            gating: self.gating,
        };
        Ok(ExpertJob { expert, rows, first_pair: first as usize })
    }
}

impl Cpu {
    pub(crate) fn begin_pass(&mut self, spans: &[Span]) {
        let Experts::Streaming(bank) = &mut self.experts else { return };
        if spans.iter().all(|span| span.purpose == Purpose::Draft) {
            return;
        }
        self.rows.clear();
        for span in spans {
            for row in 0..span.rows {
                self.rows.push(match (span.purpose, row) {
                    (Purpose::Prompt, _) => RowKind::Prompt,
                    (Purpose::Decode, _) | (Purpose::Verify, 0) => RowKind::Decoded,
                    (Purpose::Verify | Purpose::Draft, _) => RowKind::Proposed,
                });
            }
        }
        bank.pass(self.rows.iter().filter(|&&kind| kind == RowKind::Prompt).count());
    }

    /// See [`Device::experts`](mach_models::device::Device::experts).
    pub(crate) fn run_experts(
        &mut self,
        layer: usize,
        spec: &FfnSpec,
        x: &Buf,
        routing: &Routing,
        shared: Option<&Mlp<Matrix, Vec<f32>>>,
        h: &mut Buf,
    ) -> Result<(), ModelError> {
        self.run_experts_of(Place::Layer(layer), spec, x, routing, shared, h)
    }

    /// As [`run_experts`](Self::run_experts), wherever they are.
    pub(crate) fn run_experts_of(
        &mut self,
        from: Place<'_>,
        spec: &FfnSpec,
        x: &Buf,
        routing: &Routing,
        shared: Option<&Mlp<Matrix, Vec<f32>>>,
        h: &mut Buf,
    ) -> Result<(), ModelError> {
        let (rows, hidden) = (x.rows(), x.width);
        let top_k = routing.experts.len() / rows.max(1);
        let ranks = top_k + usize::from(shared.is_some());
        let Scratch { lists, all_rows, pairs, weights, places, ffn, .. } = &mut self.scratch;
        let count = routing.experts.iter().map(|&e| e as usize + 1).max().unwrap_or(0);
        lists.iter_mut().for_each(Vec::clear);
        if lists.len() < count {
            lists.resize_with(count, Vec::new);
        }
        for (i, &e) in routing.experts.iter().enumerate() {
            lists[e as usize].push((i / top_k) as u32);
        }
        all_rows.clear();
        all_rows.extend(0..rows as u32);
        // Results lie by expert, whatever order experts are computed in; the sum goes by rank.
        let mut starts = vec![0u32; count];
        let mut first_pair = 0;
        for (start, list) in starts.iter_mut().zip(lists.iter()) {
            *start = first_pair as u32;
            first_pair += list.len();
        }
        places.clear();
        weights.clear();
        let mut next = starts.clone();
        for row in 0..rows {
            for rank in row * top_k..(row + 1) * top_k {
                let place = &mut next[routing.experts[rank] as usize];
                places.push(*place);
                weights.push(routing.weights[rank]);
                *place += 1;
            }
            if shared.is_some() {
                places.push((first_pair + row) as u32);
                weights.push(routing.shared.get(row).copied().unwrap_or(1.0));
            }
        }
        pairs.resize(rows * ranks * hidden, 0.0);
        let groups = Groups { lists, starts: &starts, gating: gating(spec) };
        let shared =
            shared.map(|mlp| ExpertJob { expert: network(&self.stores, mlp), rows: all_rows, first_pair });
        let used = || (0..count).filter(|&e| !groups.lists[e].is_empty());
        let layer = match from {
            Place::Layer(layer) => layer,
            Place::Placed(experts) => {
                let job = |e: usize| {
                    let (mlp, rows, &first) = (experts.get(e)?, groups.lists.get(e)?, groups.starts.get(e)?);
                    Some(ExpertJob { expert: network(&self.stores, mlp), rows, first_pair: first as usize })
                };
                let jobs: Vec<_> = used().filter_map(job).chain(shared).collect();
                expert_ffn(&mut self.cores, ffn, &x.data, &jobs, pairs);
                combine(&mut self.cores, pairs, weights, places, ranks, hidden, &mut h.data);
                return Ok(());
            }
        };
        match &mut self.experts {
            Experts::None => return Err(ModelError::Device("no experts were loaded".into())),
            Experts::Resident(bank) => {
                let jobs = used().map(|e| groups.job(layer, e, bank.expert(layer, e)));
                let jobs = jobs.chain(shared.map(Ok)).collect::<Result<Vec<_>, _>>()?;
                expert_ffn(&mut self.cores, ffn, &x.data, &jobs, pairs);
            }
            Experts::Streaming(bank) => {
                let kinds = &self.rows;
                let demand = |expert: usize| {
                    let has =
                        |kind| groups.lists[expert].iter().any(|&r| kinds.get(r as usize) == Some(&kind));
                    let banked = has(RowKind::Decoded);
                    Demand { expert, banked, counts: banked || has(RowKind::Proposed) }
                };
                let demands: Vec<Demand> = used().map(demand).collect();
                let step = if kinds.contains(&RowKind::Prompt) { STEP } else { usize::MAX };
                let mut compute = Compute { cores: &mut self.cores, ffn, x: &x.data, pairs };
                if let Err(error) = stream(bank, layer, &demands, &groups, shared, step, &mut compute) {
                    bank.abandon();
                    return Err(error);
                }
            }
        }
        combine(&mut self.cores, pairs, weights, places, ranks, hidden, &mut h.data);
        Ok(())
    }
}

/// Where experts are.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// In the bank, those of this layer.
    Layer(usize),
    /// Among the other weights.
    Placed(&'a [Mlp<Matrix, Vec<f32>>]),
}

/// What computing a layer's experts takes.
struct Compute<'a> {
    cores: &'a mut Cores,
    ffn: &'a mut FfnScratch,
    x: &'a [f32],
    pairs: &'a mut [f32],
}

impl Compute<'_> {
    /// The CRC32C of each record, every thread taking a part of each.
    fn checksums(&mut self, records: &[&[u8]]) -> Vec<u32> {
        let threads = self.cores.threads();
        let sums: Vec<AtomicU32> = (0..records.len() * threads).map(|_| AtomicU32::new(0)).collect();
        let part = |record: &[u8]| record.len().div_ceil(threads).max(1);
        self.cores.run(|t| {
            for (record, sums) in records.iter().zip(sums.chunks_exact(threads)) {
                let mine = record.chunks(part(record)).nth(t).unwrap_or_default();
                if let Some(sum) = sums.get(t) {
                    sum.store(crc32c::crc32c(mine), Ordering::Relaxed);
                }
            }
        });
        // Records of a layer are of one length.
        let mut parts = Parts::new(0, 1);
        let whole = |(record, sums): (&&[u8], &[AtomicU32])| {
            if !parts.fits(record.len(), part(record)) {
                parts = Parts::new(record.len(), part(record));
            }
            parts.whole(sums.iter().map(|sum| sum.load(Ordering::Relaxed)))
        };
        records.iter().zip(sums.chunks_exact(threads)).map(whole).collect()
    }
}

/// Computes a layer's experts as they land, beginning with those that are there.
fn stream(
    bank: &mut StreamingBank,
    layer: usize,
    demands: &[Demand],
    groups: &Groups<'_>,
    shared: Option<ExpertJob<'_>>,
    step: usize,
    compute: &mut Compute<'_>,
) -> Result<(), ModelError> {
    bank.begin(layer, demands, Some(layer + 1))?;
    let mut shared = shared;
    let mut batch = bank.there(step, &mut |records| compute.checksums(records))?;
    loop {
        let jobs = batch.iter().map(|&e| groups.job(layer, e, bank.expert(layer, e)));
        let jobs = jobs.chain(shared.take().map(Ok)).collect::<Result<Vec<_>, _>>()?;
        expert_ffn(compute.cores, compute.ffn, compute.x, &jobs, compute.pairs);
        bank.done(&batch);
        match bank.ready(step, &mut |records| compute.checksums(records))? {
            Some(experts) => batch = experts,
            None => break,
        }
    }
    bank.end();
    Ok(())
}
