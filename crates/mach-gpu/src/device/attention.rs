//! Attention over the pages of sequences.

use std::sync::Arc;

use mach_kernels::attention::PAGE;
use mach_models::Purpose;
use mach_models::device::{AttentionSpec, AttentionWeights, LayerSpec, MixerSpec};

use super::buf::Buf;
use super::gpu::{Gpu, lanes};
use super::ops::Op;
use super::recurrence::shape_of;
use super::state::{Delta, GpuState, Keys};
use super::weights::Vector;
use crate::kernels::attention::{self, Attention, Buffers};
use crate::kernels::heads::{Append, Heads, append, heads};
use crate::kernels::norm::{Norm, norm};
use crate::{GpuError, Storage, words};

/// Rows up to which pages are worked on side by side.
const SPLIT_ROWS: usize = 32;

impl Gpu {
    /// The empty state of a layer.
    pub(crate) fn state_of(&self, layer: &LayerSpec) -> GpuState {
        match &layer.mixer {
            MixerSpec::Attention(spec) => {
                let format = mach_cpu::kv_format(self.options.activations, self.options.turboquant_kv);
                let shape = mach_cpu::kv_shape(spec, format);
                GpuState::Attention(Box::new(Keys::new(&self.context, &self.pool(shape), shape, spec.mask)))
            }
            MixerSpec::GatedDelta(spec) => {
                GpuState::Delta(Box::new(Delta::new(&self.context, shape_of(spec))))
            }
            // `check` lets no such model come to a state.
            MixerSpec::Compressed(_) => GpuState::Delta(Box::new(Delta::none(&self.context))),
        }
    }

    pub(crate) fn norm_rows(
        &mut self,
        x: &Storage,
        weight: &Storage,
        rows: usize,
        n: usize,
        eps: f32,
        out: &Storage,
    ) -> Result<(), GpuError> {
        let params = Norm::of(rows as u32, n as u32, eps);
        let (recorder, pipelines) = self.recording();
        norm(recorder, pipelines, &params, x.into(), weight.into(), out.into())
    }

    /// Norms and rotates heads of `x`, `stride` apart, into working memory.
    fn prepare(
        &mut self,
        name: &'static str,
        spec: &AttentionSpec,
        (count, stride): (usize, usize),
        weight: Option<&Vector>,
        x: &Buf,
    ) -> Result<Storage, GpuError> {
        let angles = self.angles(&spec.rope)?;
        let from = self.of(x)?;
        let out = self.scratch(name, 4 * x.rows * count * spec.head_dim)?;
        let params = Heads {
            rows: x.rows as u32,
            heads: count as u32,
            head_dim: spec.head_dim as u32,
            head_stride: stride as u32,
            x_at: 0,
            rotary_dim: spec.rope.rotary_dim as u32,
            angles_at: 0,
            out_at: 0,
            eps: spec.qk_norm.unwrap_or(0.0),
        };
        let weight = weight.map(|w| (&w.storage).into());
        let (recorder, pipelines) = self.recording();
        heads(recorder, pipelines, &params, (&from).into(), weight, angles.slice(), (&out).into())?;
        Ok(out)
    }

    /// Values, normed where the layer does.
    fn values(&mut self, spec: &AttentionSpec, v: &Buf) -> Result<Storage, GpuError> {
        let from = self.of(v)?;
        let Some(eps) = spec.v_norm else { return Ok(from) };
        let ones = self.upload(&vec![1.0f32; spec.head_dim])?;
        let out = self.scratch("values", v.bytes() as usize)?;
        let params = Norm::of((v.rows * spec.kv_heads) as u32, spec.head_dim as u32, eps);
        let (recorder, pipelines) = self.recording();
        norm(recorder, pipelines, &params, (&from).into(), ones.slice(), (&out).into())?;
        Ok(out)
    }

    /// Appends rows of the pass to each span's pages.
    fn append_rows(
        &mut self,
        spec: &AttentionSpec,
        keys: &Storage,
        values: &Storage,
        states: &mut [&mut GpuState],
    ) -> Result<(), GpuError> {
        for (span, state) in self.spans.clone().iter().zip(states.iter_mut()) {
            let GpuState::Attention(cache) = &mut **state else {
                return Err(GpuError::Invalid("a state that is not attention's".into()));
            };
            let shape = (cache.shape.heads, cache.shape.head_dim);
            self.pools.entry(shape).or_insert_with(|| Arc::clone(&cache.pool));
            let pages = cache.pages_for(span.rows);
            if !cache.pool.has(pages) {
                // What was recorded means the old buffer.
                self.submit()?;
                self.forget_angles();
                cache.pool.grow(pages)?;
            }
            let nothing = || GpuError::Invalid("pages without a buffer".into());
            let buffer = cache.pool.buffer().ok_or_else(nothing)?;
            if cache.last_is_shared() {
                let fresh = cache.pool.take()?;
                let words = cache.pool.words as usize;
                if let Some(Some(old)) = cache.pages.get(cache.len / PAGE) {
                    let (from, to) = (old.number as usize * words, fresh.number as usize * words);
                    let immediates = words![from, to, words];
                    self.run(Op::CopyWithin, &[(&buffer).into()], &immediates, lanes(words))?;
                }
                if let Some(page) = cache.pages.get_mut(cache.len / PAGE) {
                    *page = Some(fresh);
                }
            }
            while cache.pages.len() < (cache.len + span.rows).div_ceil(PAGE) {
                cache.pages.push(Some(cache.pool.take()?));
            }
            let table: Vec<u32> = cache.table().collect();
            let table = self.upload(&table)?;
            let params = Append {
                heads: spec.kv_heads as u32,
                head_dim: spec.head_dim as u32,
                rows: span.rows as u32,
                position: cache.len as u32,
                first_row: span.start as u32,
                table_at: 0,
            };
            let (recorder, pipelines) = self.recording();
            append(
                recorder,
                pipelines,
                &params,
                keys.into(),
                values.into(),
                table.slice(),
                (&buffer).into(),
            )?;
            cache.len += span.rows;
        }
        Ok(())
    }

    pub(crate) fn run_append(
        &mut self,
        spec: &AttentionSpec,
        weights: &AttentionWeights<Vector>,
        k: &Buf,
        v: &Buf,
        states: &mut [&mut GpuState],
    ) -> Result<(), GpuError> {
        let keys = self.prepare("keys", spec, (spec.kv_heads, spec.head_dim), weights.k_norm.as_ref(), k)?;
        let values = self.values(spec, v)?;
        self.append_rows(spec, &keys, &values, states)?;
        for (span, state) in self.spans.iter().zip(states.iter_mut()) {
            if let GpuState::Attention(cache) = &mut **state {
                cache.forget_before(cache.mask.first_needed(span.position + span.rows));
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn run_attention(
        &mut self,
        spec: &AttentionSpec,
        weights: &AttentionWeights<Vector>,
        q: &Buf,
        k: &Buf,
        v: &Buf,
        states: &mut [&mut GpuState],
        out: &mut Buf,
    ) -> Result<(), GpuError> {
        let rows = q.rows;
        let stride = q.width / spec.heads.max(1);
        let queries = self.prepare("queries", spec, (spec.heads, stride), weights.q_norm.as_ref(), q)?;
        let keys = self.prepare("keys", spec, (spec.kv_heads, spec.head_dim), weights.k_norm.as_ref(), k)?;
        let values = self.values(spec, v)?;
        let to = self.shape(out, rows, spec.heads * spec.head_dim)?;
        self.append_rows(spec, &keys, &values, states)?;
        for (span, state) in self.spans.clone().iter().zip(states.iter_mut()) {
            let GpuState::Attention(cache) = &mut **state else { continue };
            let Some(pages) = cache.pool.buffer() else { continue };
            let end = span.position + span.rows;
            let range = |position| {
                if cache.mask.causal && cache.mask.window.is_none() {
                    (0, position + 1)
                } else {
                    cache.mask.range(position, end)
                }
            };
            let ranges: Vec<[u32; 2]> =
                (span.position..end).map(range).map(|(first, last)| [first as u32, last as u32]).collect();
            let table: Vec<u32> = cache.table().collect();
            let (ranges_at, table) = (self.upload(&ranges)?, self.upload(&table)?);
            let first = ranges.iter().map(|range| range[0]).min().unwrap_or(0) / PAGE as u32;
            let last = ranges.iter().map(|range| range[1]).max().unwrap_or(0).div_ceil(PAGE as u32);
            let params = Attention {
                heads: spec.kv_heads as u32,
                query_heads: spec.heads as u32,
                head_dim: spec.head_dim as u32,
                rows: span.rows as u32,
                first_row: span.start as u32,
                table_at: 0,
                ranges_at: 0,
                pages: first..last,
                scale: spec.scale.unwrap_or(1.0 / (spec.head_dim as f32).sqrt()),
            };
            // Side by side where there are few queries; many fill the device by themselves.
            let parts = match span.rows <= SPLIT_ROWS && last - first > 1 {
                true => Some(self.scratch("attention parts", params.parts_bytes() as usize)?),
                false => None,
            };
            let buffers = Buffers {
                q: (&queries).into(),
                pages: (&pages).into(),
                table: table.slice(),
                ranges: ranges_at.slice(),
                sinks: weights.sinks.as_ref().map(|sinks| (&sinks.storage).into()),
                parts: parts.as_ref(),
                out: (&to).into(),
            };
            let (recorder, pipelines) = self.recording();
            attention::attention(recorder, pipelines, &params, &buffers)?;
            // A draft takes its own rows back, and says itself what it forgets.
            if span.purpose != Purpose::Draft {
                let end = cache.back_to.take().unwrap_or(usize::MAX).min(end);
                cache.forget_before(cache.mask.first_needed(end));
            }
        }
        if spec.gated {
            let from = self.of(q)?;
            let (recorder, pipelines) = self.recording();
            let shape = (rows as u32, spec.heads as u32, spec.head_dim as u32);
            attention::gate(recorder, pipelines, shape, (0, 0), (&from).into(), (&to).into())?;
        }
        Ok(())
    }
}
