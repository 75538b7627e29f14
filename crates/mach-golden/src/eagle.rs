//! EAGLE-3 heads: what one says of golden rows, and how it goes on from its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use mach_checkpoint::Checkpoint;
use mach_models::mtp::{Features, Mtp};
use mach_models::{DraftOptions, LogitRows, Model, Segment};
use mach_specdec::{Argmax, Drafting, MtpProposer, Proposed, Proposer as _, Taps};
use serde::Deserialize;

use crate::compare::largest_difference;
use crate::fixture::Golden;
use crate::{Check, Options};

/// `golden.json`.
#[derive(Debug, Deserialize)]
struct About {
    target: PathBuf,
    /// The target's token for each of the head's.
    draft_ids: Vec<u32>,
}

/// Checks the head in a directory with the target that its golden names.
pub(crate) fn check(dir: &Path, options: &Options, report: &mut dyn FnMut(&Check)) -> Result<bool> {
    let read =
        |name: &str| std::fs::read(dir.join(name)).with_context(|| format!("{name} of {}", dir.display()));
    let about: About = serde_json::from_slice(&read("golden.json")?)?;
    let target = dir.join(&about.target);
    let checkpoint = Checkpoint::open(&target)?;
    let mut model = mach_cpu::load(&checkpoint, &options.load, &mut |_| ())
        .with_context(|| format!("loading {}", target.display()))?;
    let model = model.as_mut();
    let head = Arc::new(model.load_eagle(dir, DraftOptions::default())?);
    let (bytes, prompts) = (read("golden.safetensors")?, std::fs::read(target.join("golden.safetensors"))?);
    let golden = Golden::parse(&bytes)?;
    let prompts = Golden::parse(&prompts)?;
    let mut passed = true;
    let mut tell = |check: Check| {
        passed &= check.passed();
        report(&check);
    };
    for prompt in golden.prompts() {
        let ids = prompts.ids(&format!("p{prompt}.input_ids"))?;
        Case { prompt, ids, golden: &golden, about: &about, tolerance: options.tolerance() }
            .check(&head, model, &mut tell)?;
    }
    Ok(passed)
}

struct Case<'a> {
    prompt: usize,
    ids: Vec<u32>,
    golden: &'a Golden<'a>,
    about: &'a About,
    tolerance: f32,
}

impl Case<'_> {
    /// Logits of the head's own tokens.
    fn own(&self, logits: &mach_models::Logits) -> Vec<f32> {
        let pick = |row: usize| {
            let row = logits.row(row);
            self.about.draft_ids.iter().map(move |&id| row.get(id as usize).copied().unwrap_or(f32::NAN))
        };
        (0..logits.rows()).flat_map(pick).collect()
    }

    fn check(&self, head: &Arc<Mtp>, model: &mut dyn Model, tell: &mut dyn FnMut(Check)) -> Result<()> {
        let key = |rest: &str| format!("p{}.{rest}", self.prompt);
        let (ids, golden) = (&self.ids, self.golden);
        let tokens = golden.ids(&key("tokens"))?;
        let name = format!("prompt {} ({} tokens) eagle3", self.prompt, tokens.len());
        let mut taps = Taps::new(head.taps(), model.config().hidden_size).with_output(model.feature_width());
        let mut state = model.new_state();
        model.forward(&mut [Segment::prompt(&mut state, ids, LogitRows::None)], &mut taps)?;
        let outputs = taps.rows(0..ids.len()).to_vec();
        let mut features = Vec::new();
        head.take(&outputs, &mut features);

        let host = model.mtp_host().context("the head was not loaded")?;
        let mut context = head.new_context();
        let said = host.predict(&mut context, Features::Model(&features), &tokens, LogitRows::All)?;
        let all = self.own(&said.logits);
        let (error, _) = largest_difference(&all, &golden.floats(&key("logits"))?);
        tell(Check::compared(format!("{name} logits"), error, self.tolerance, ""));

        let (mut rows, mut alone) = (Vec::new(), head.new_context());
        for (features, token) in features.chunks_exact(head.width()).zip(&tokens) {
            let (features, token) = (Features::Model(features), std::slice::from_ref(token));
            rows.extend(self.own(&host.predict(&mut alone, features, token, LogitRows::Last)?.logits));
        }
        tell(Check::compared(format!("{name} row by row"), largest_difference(&rows, &all).0, 0.0, ""));

        // From its own features on: the golden's tokens are followed.
        let (chain, mut own) = (golden.ids(&key("chain_tokens"))?, said.own);
        let part = self.about.draft_ids.len();
        let mut logits = all.get(all.len().saturating_sub(part)..).unwrap_or_default().to_vec();
        for &token in chain.iter().take(chain.len().saturating_sub(1)) {
            let said = host.predict(&mut context, Features::Own(&own), &[token], LogitRows::Last)?;
            logits.extend(self.own(&said.logits));
            own = said.own;
        }
        let (error, at) = largest_difference(&logits, &golden.floats(&key("chain_logits"))?);
        let step = format!("step {}", at / part.max(1));
        tell(Check::compared(format!("{name} chain logits"), error, self.tolerance, step));

        if let Some(check) = crate::mtp::restored(head, model, &outputs, ids, &tokens, &name)? {
            tell(check);
        }

        // In use: shown the prompt in two pieces, it proposes the chain.
        let mut proposer = MtpProposer::new(Arc::clone(head));
        let half = outputs.len() / ids.len().max(1) * (ids.len() / 2);
        let (first, second) = outputs.split_at(half);
        proposer.observe(model, first, ids)?;
        proposer.observe(model, second, ids)?;
        let all: Vec<u32> = ids.iter().chain(tokens.last()).copied().collect();
        let mut proposed = Proposed::default();
        let drafting = Drafting { tokens: &all, most: chain.len(), model: &mut *model, picker: &mut Argmax };
        proposer.propose(drafting, &mut proposed)?;
        let wrong = proposed.tokens.iter().zip(&chain).filter(|(a, b)| a != b).count();
        let wrong = wrong + chain.len().abs_diff(proposed.tokens.len());
        let detail = format!("{:?} for {chain:?}", proposed.tokens);
        tell(Check::compared(format!("{name} chain tokens of the proposal"), wrong as f32, 0.0, detail));
        Ok(())
    }
}
