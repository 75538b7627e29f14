//! `golden.safetensors`: one pass over each prompt, then a greedy continuation token by token.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use mach_models::{LogitRows, Model, NoObserver, Segment, SequenceState};
use safetensors::{Dtype, SafeTensors};

use crate::Check;
use crate::compare::{Extent, argmax, largest_difference};
use crate::recorder::Recorder;

/// The file, its tensors read on demand.
pub(crate) struct Golden<'a> {
    tensors: SafeTensors<'a>,
    /// Exponents of the steps that tensors of 16 bits count, by name.
    steps: BTreeMap<String, i32>,
}

impl<'a> Golden<'a> {
    /// Over the bytes of a whole file.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let tensors = SafeTensors::deserialize(bytes)?;
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let steps = match header.metadata().as_ref().and_then(|m| m.get("steps")) {
            Some(text) => serde_json::from_str(text).context("`steps` of the file's metadata")?,
            None => BTreeMap::new(),
        };
        Ok(Self { tensors, steps })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    /// Values of a tensor of floats: float32, or 16 bit counts of the tensor's step.
    pub(crate) fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let view = self.tensors.tensor(name).with_context(|| format!("golden tensor `{name}`"))?;
        match view.dtype() {
            Dtype::F32 => Ok(view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::I16 => {
                let exponent =
                    self.steps.get(name).with_context(|| format!("golden tensor `{name}` has no step"))?;
                let step = 2f32.powi(*exponent);
                let value = |b: &[u8; 2]| f32::from(i16::from_le_bytes(*b)) * step;
                Ok(view.data().as_chunks().0.iter().map(value).collect())
            }
            other => bail!("golden tensor `{name}` is {other:?}, neither F32 nor I16"),
        }
    }

    pub(crate) fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let view = self.tensors.tensor(name).with_context(|| format!("golden tensor `{name}`"))?;
        ensure!(view.dtype() == Dtype::I32, "golden tensor `{name}` is {:?}, not I32", view.dtype());
        view.data()
            .as_chunks()
            .0
            .iter()
            .map(|b| {
                u32::try_from(i32::from_le_bytes(*b)).with_context(|| format!("negative id in `{name}`"))
            })
            .collect()
    }

    /// `p0`, `p1`, ... as far as there are any.
    pub(crate) fn prompts(&self) -> BTreeSet<usize> {
        let number = |name: &str| name.strip_prefix('p')?.split('.').next()?.parse().ok();
        self.tensors.names().into_iter().filter_map(number).collect()
    }

    /// What follows `p{prompt}.` in the tensors' names.
    fn keys(&self, prompt: usize) -> BTreeSet<String> {
        let prefix = format!("p{prompt}.");
        self.tensors.names().into_iter().filter_map(|n| n.strip_prefix(&prefix)).map(str::to_owned).collect()
    }
}

/// Checks every prompt of `file`.
pub(crate) fn check(
    file: &Path,
    model: &mut dyn Model,
    tolerance: f32,
    tell: &mut dyn FnMut(Check),
) -> Result<()> {
    let bytes = std::fs::read(file).with_context(|| format!("{}", file.display()))?;
    let golden = Golden::parse(&bytes).with_context(|| format!("{}", file.display()))?;
    let prompts = golden.prompts();
    if prompts.is_empty() {
        bail!("{}: no prompt `p0.*`", file.display());
    }
    for prompt in prompts {
        let ids = golden.ids(&format!("p{prompt}.input_ids"))?;
        ensure!(!ids.is_empty(), "{}: prompt {prompt} is empty", file.display());
        let mut checks = PromptCheck { golden: &golden, model, tolerance, tell, prompt, tokens: ids.len() };
        checks.run(&ids).with_context(|| format!("{}, prompt {prompt}", file.display()))?;
    }
    Ok(())
}

struct PromptCheck<'a> {
    golden: &'a Golden<'a>,
    model: &'a mut dyn Model,
    tolerance: f32,
    tell: &'a mut dyn FnMut(Check),
    prompt: usize,
    tokens: usize,
}

impl PromptCheck<'_> {
    fn key(&self, rest: &str) -> String {
        format!("p{}.{rest}", self.prompt)
    }

    fn tell(&mut self, what: &str, error: f32, tolerance: f32, detail: impl Into<String>) {
        let name = format!("prompt {} ({} tokens) {what}", self.prompt, self.tokens);
        (self.tell)(Check::compared(name, error, tolerance, detail));
    }

    fn run(&mut self, ids: &[u32]) -> Result<()> {
        let mut seen = Recorder::default();
        let mut state = self.model.new_state();
        let segment = Segment::prompt(&mut state, ids, LogitRows::All);
        let logits = self.model.forward(&mut [segment], &mut seen)?;

        let mut known = BTreeSet::from(["input_ids", "hidden_rows"].map(str::to_owned));
        let keys = self.golden.keys(self.prompt);
        if keys.contains("logits") {
            let golden = self.golden.floats(&self.key("logits"))?;
            let (error, at) = largest_difference(&logits.data, &golden);
            self.tell("logits", error, self.tolerance, format!("row {}", at / logits.vocab.max(1)));
            known.insert("logits".into());
        }
        known.extend(self.hidden(&keys, &seen)?);
        known.extend(self.routers(&keys, &seen)?);
        known.extend(self.recurrent(&keys, &state)?);
        if keys.contains("greedy_tokens") {
            let last = logits.data.chunks_exact(logits.vocab.max(1)).next_back().unwrap_or_default().to_vec();
            self.greedy(state, last)?;
            known.extend(["greedy_tokens", "greedy_logits"].map(str::to_owned));
        }
        for key in keys.difference(&known) {
            let reason = match key.starts_with("indexer.") {
                true => "devices keep the choice to themselves; the layer's output is compared",
                false => "not implemented yet",
            };
            (self.tell)(Check::skipped(format!("prompt {} {key}", self.prompt), reason));
        }
        Ok(())
    }

    /// Hidden states after the embedding and every layer, and after the last norm, at `hidden_rows`.
    fn hidden(&mut self, keys: &BTreeSet<String>, seen: &Recorder) -> Result<Vec<String>> {
        let width = self.model.config().hidden_size;
        let indices: BTreeSet<usize> =
            keys.iter().filter_map(|k| k.strip_prefix("hidden.")?.parse().ok()).collect();
        if indices.is_empty() && !keys.contains("final") {
            return Ok(Vec::new());
        }
        let rows = self.golden.ids(&self.key("hidden_rows"))?;
        let pick = |all: &[f32], width: usize| -> Vec<f32> {
            let row = |r: &u32| all.chunks_exact(width).nth(*r as usize).unwrap_or_default();
            rows.iter().flat_map(row).copied().collect()
        };
        let mut known = Vec::new();
        let mut extent = Extent::default();
        for &index in &indices {
            let name = format!("hidden.{index}");
            let golden = self.golden.floats(&self.key(&name))?;
            let ours = seen.hidden.get(&index).map(Vec::as_slice).unwrap_or_default();
            // Several residual streams lie one after the other.
            let width = (golden.len() / rows.len().max(1)).max(1);
            let (error, at) = largest_difference(&pick(ours, width), &golden);
            extent.add(error, || format!("{name}, row {}", rows.get(at / width).copied().unwrap_or(0)));
            known.push(name);
        }
        if let Some(last) = indices.last() {
            self.tell(&format!("hidden 0..{last}"), extent.error, self.tolerance, extent.place);
        }
        if keys.contains("final") {
            let golden = self.golden.floats(&self.key("final"))?;
            let (error, at) = largest_difference(&pick(&seen.last_norm, width), &golden);
            let row = rows.get(at / width).copied().unwrap_or(0);
            self.tell("final", error, self.tolerance, format!("row {row}"));
            known.push("final".into());
        }
        Ok(known)
    }

    /// Experts as sets, weights expert by expert.
    fn routers(&mut self, keys: &BTreeSet<String>, seen: &Recorder) -> Result<Vec<String>> {
        let layers: BTreeSet<usize> = keys
            .iter()
            .filter_map(|k| k.strip_prefix("router.")?.strip_suffix(".indices")?.parse().ok())
            .collect();
        let mut known = Vec::new();
        let mut extent = Extent::default();
        let (mut wrong, mut first_wrong) = (0usize, String::new());
        for &layer in &layers {
            let names = [format!("router.{layer}.indices"), format!("router.{layer}.weights")];
            let experts = self.golden.ids(&self.key(&names[0]))?;
            let weights = self.golden.floats(&self.key(&names[1]))?;
            known.extend(names);
            let top_k = experts.len() / self.tokens;
            ensure!(
                top_k > 0 && experts.len() == weights.len() && experts.len() == top_k * self.tokens,
                "router.{layer}: indices and weights do not fit {} tokens",
                self.tokens
            );
            let none = (Vec::new(), Vec::new());
            let (our_experts, our_weights) = seen.routed.get(&layer).unwrap_or(&none);
            for row in 0..self.tokens {
                let range = row * top_k..(row + 1) * top_k;
                let golden = sorted(&experts, &weights, &range);
                let ours = sorted(our_experts, our_weights, &range);
                if ours.iter().map(|o| o.0).ne(golden.iter().map(|g| g.0)) {
                    wrong += 1;
                    if first_wrong.is_empty() {
                        first_wrong = format!("first in layer {layer}, row {row}: {ours:?} for {golden:?}");
                    }
                    continue;
                }
                for (o, g) in ours.iter().zip(&golden) {
                    extent.add((o.1 - g.1).abs(), || format!("layer {layer}, row {row}"));
                }
            }
        }
        if !layers.is_empty() {
            let detail = format!("differing rows of {} layers{}", layers.len(), prefixed(&first_wrong));
            self.tell("router experts", wrong as f32, 0.0, detail);
            self.tell("router weights", extent.error, self.tolerance, extent.place);
        }
        Ok(known)
    }

    /// Convolution rows and recurrent matrices after the prompt.
    fn recurrent(&mut self, keys: &BTreeSet<String>, state: &SequenceState) -> Result<Vec<String>> {
        let layers: BTreeSet<usize> = keys
            .iter()
            .filter_map(|k| k.strip_prefix("gdn.")?.strip_suffix(".state")?.parse().ok())
            .collect();
        let mut known = Vec::new();
        let (mut conv_extent, mut state_extent) = (Extent::default(), Extent::default());
        for &layer in &layers {
            let names = [format!("gdn.{layer}.conv"), format!("gdn.{layer}.state")];
            let golden_conv = self.golden.floats(&self.key(&names[0]))?;
            let golden_state = self.golden.floats(&self.key(&names[1]))?;
            known.extend(names);
            let (conv, matrix) = state.recurrent(layer).unwrap_or_default();
            conv_extent.add(largest_difference(&conv, &golden_conv).0, || format!("layer {layer}"));
            state_extent.add(largest_difference(&matrix, &golden_state).0, || format!("layer {layer}"));
        }
        if !layers.is_empty() {
            self.tell("gdn conv", conv_extent.error, self.tolerance, conv_extent.place);
            self.tell("gdn state", state_extent.error, self.tolerance, state_extent.place);
        }
        Ok(known)
    }

    /// Decodes the golden continuation token by token after the prompt; `row` holds the prompt's last logits.
    fn greedy(&mut self, mut state: SequenceState, mut row: Vec<f32>) -> Result<()> {
        let tokens = self.golden.ids(&self.key("greedy_tokens"))?;
        let name = self.key("greedy_logits");
        let golden = if self.golden.has(&name) { Some(self.golden.floats(&name)?) } else { None };
        let mut extent = Extent::default();
        let (mut wrong, mut first_wrong) = (0usize, String::new());
        for (step, &token) in tokens.iter().enumerate() {
            if let Some(golden) = &golden {
                let expected = golden.chunks_exact(row.len().max(1)).nth(step).unwrap_or_default();
                extent.add(largest_difference(&row, expected).0, || format!("step {step}"));
            }
            let picked = argmax(&row);
            if picked != token as usize {
                wrong += 1;
                if first_wrong.is_empty() {
                    first_wrong = format!("first at step {step}: {picked} for {token}");
                }
            }
            if step + 1 < tokens.len() {
                let tokens = [token];
                let segment = Segment::decode(&mut state, &tokens);
                row = self.model.forward(&mut [segment], &mut NoObserver)?.data;
            }
        }
        let detail = format!("differing of {} tokens{}", tokens.len(), prefixed(&first_wrong));
        self.tell("greedy tokens", wrong as f32, 0.0, detail);
        if golden.is_some() {
            self.tell("greedy logits", extent.error, self.tolerance, extent.place);
        }
        Ok(())
    }
}

pub(crate) fn prefixed(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; {text}") }
}

/// Experts and weights of one row, by expert.
fn sorted(experts: &[u32], weights: &[f32], range: &std::ops::Range<usize>) -> Vec<(u32, f32)> {
    let experts = experts.get(range.clone()).unwrap_or_default();
    let weights = weights.get(range.clone()).unwrap_or_default();
    let mut pairs: Vec<_> = experts.iter().copied().zip(weights.iter().copied()).collect();
    pairs.sort_by_key(|p| p.0);
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of one tensor of 16 bits.
    fn file(metadata: &str) -> Vec<u8> {
        let header = format!(r#"{{{metadata}"x":{{"dtype":"I16","shape":[3],"data_offsets":[0,6]}}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend([-3i16, 0, 32767].iter().flat_map(|v| v.to_le_bytes()));
        bytes
    }

    #[test]
    fn sixteen_bits_are_counts_of_the_tensors_step() {
        let bytes = file(r#""__metadata__":{"steps":"{\"x\":-11,\"y\":2}"},"#);
        let golden = Golden::parse(&bytes).unwrap();
        assert_eq!(golden.floats("x").unwrap(), [-3.0 / 2048.0, 0.0, 32767.0 / 2048.0]);
        assert!(golden.ids("x").is_err());
        let bytes = file("");
        let error = Golden::parse(&bytes).unwrap().floats("x").unwrap_err().to_string();
        assert!(error.contains("no step"), "{error}");
        assert!(Golden::parse(&file(r#""__metadata__":{"steps":"{"},"#)).is_err());
    }
}
