//! `mtp.safetensors`: what a model's own block predicts of the tokens after the next.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use mach_checkpoint::Checkpoint;
use mach_models::mtp::{Features, Mtp};
use mach_models::{DraftOptions, LogitRows, Model, Segment};
use mach_specdec::{Argmax, Drafting, MtpProposer, Proposed, Proposer as _};

use crate::Check;
use crate::compare::{argmax, largest_difference};
use crate::fixture::Golden;
use crate::recorder::Recorder;

/// Checks every prompt of the file, in one pass and row by row, which must not change a bit. The prompts' tokens are those of
/// `golden.safetensors`.
pub(crate) fn check(
    dir: &Path,
    model: &mut dyn Model,
    checkpoint: &Checkpoint,
    tolerance: f32,
    tell: &mut dyn FnMut(Check),
) -> Result<()> {
    let mtp = match model.load_mtp(checkpoint, DraftOptions::default()) {
        Ok(mtp) => Arc::new(mtp),
        Err(error) => {
            tell(Check::skipped("mtp.safetensors", error.to_string()));
            return Ok(());
        }
    };
    let read =
        |name: &str| std::fs::read(dir.join(name)).with_context(|| format!("{name} of {}", dir.display()));
    let (bytes, prompts) = (read("mtp.safetensors")?, read("golden.safetensors")?);
    let golden = Golden::parse(&bytes)?;
    let prompts = Golden::parse(&prompts)?;
    for prompt in golden.prompts() {
        let key = |rest: &str| format!("p{prompt}.{rest}");
        let ids = prompts.ids(&key("input_ids"))?;
        let tokens = golden.ids(&key("tokens"))?;
        let mut seen = Recorder::default();
        let mut state = model.new_state();
        let segment = Segment::prompt(&mut state, &ids, LogitRows::None);
        model.forward(&mut [segment], &mut seen)?;
        let last = model.config().layers.len();
        let features = seen.hidden.get(&last).cloned().unwrap_or_default();
        let host = model.mtp_host().context("the block was not loaded")?;
        let all = Features::Model(&features);
        let logits = host.predict(&mut mtp.new_context(), all, &tokens, LogitRows::All)?.logits;
        let (error, at) = largest_difference(&logits.data, &golden.floats(&key("logits"))?);
        let name = format!("prompt {prompt} ({} tokens) mtp", tokens.len());
        let row = at / logits.vocab.max(1);
        tell(Check::compared(format!("{name} logits"), error, tolerance, format!("row {row}")));
        let (mut context, mut rows) = (mtp.new_context(), Vec::new());
        for (features, token) in features.chunks_exact(mtp.width()).zip(&tokens) {
            let token = std::slice::from_ref(token);
            let features = Features::Model(features);
            rows.extend(host.predict(&mut context, features, token, LogitRows::Last)?.logits.data);
        }
        let (error, _) = largest_difference(&rows, &logits.data);
        tell(Check::compared(format!("{name} row by row"), error, 0.0, ""));

        // Rows that nothing is asked of, and a chain that is undone, leave the state that the others do.
        let mut context = mtp.new_context();
        if let Some(last) = tokens.len().checked_sub(1) {
            let (before, own) = features.split_at(last * mtp.width());
            let (first, anchor) = tokens.split_at(last);
            host.predict(&mut context, Features::Model(before), first, LogitRows::None)?;
            let mark = mtp.mark(&context);
            let mut said = host.predict(&mut context, Features::Model(own), anchor, LogitRows::Last)?;
            for _ in 0..3 {
                said = host.predict(&mut context, Features::Own(&said.own), anchor, LogitRows::Last)?;
            }
            mtp.rewind(&mut context, mark);
            let again = host.predict(&mut context, Features::Model(own), anchor, LogitRows::Last)?;
            let last = logits.data.chunks_exact(logits.vocab.max(1)).next_back().unwrap_or_default();
            let (error, _) = largest_difference(&again.logits.data, last);
            tell(Check::compared(format!("{name} behind a chain"), error, 0.0, ""));
        }

        if let Some(check) = restored(&mtp, model, &features, &ids, &tokens, &name)? {
            tell(check);
        }

        // In use: shown the prompt in two pieces, it proposes what its last row says.
        let mut proposer = MtpProposer::new(Arc::clone(&mtp));
        let (first, second) = features.split_at(ids.len() / 2 * mtp.width());
        proposer.observe(model, first, &ids)?;
        proposer.observe(model, second, &ids)?;
        let all: Vec<u32> = ids.iter().chain(tokens.last()).copied().collect();
        let mut proposed = Proposed::default();
        let drafting = Drafting { tokens: &all, most: 1, model: &mut *model, picker: &mut Argmax };
        proposer.propose(drafting, &mut proposed)?;
        let best =
            argmax(logits.data.chunks_exact(logits.vocab.max(1)).next_back().unwrap_or_default()) as u32;
        let wrong = f32::from(u8::from(proposed.tokens != [best]));
        let detail = format!("{:?} for {best}", proposed.tokens);
        tell(Check::compared(format!("{name} proposal"), wrong, 0.0, detail));
    }
    Ok(())
}

/// A proposer that begins with what another has saved of half of the positions, and has gone through bytes, proposes what that
/// other proposes, as surely. `outputs` are those of the tapped layers. Nothing to check where a window is all that counts.
pub(crate) fn restored(
    block: &Arc<Mtp>,
    model: &mut dyn Model,
    outputs: &[f32],
    ids: &[u32],
    tokens: &[u32],
    name: &str,
) -> Result<Option<Check>> {
    if block.window().is_some() || ids.len() < 4 {
        return Ok(None);
    }
    let half = ids.len() / 2;
    let (first, second) = outputs.split_at(outputs.len() / ids.len() * half);
    let mut one = MtpProposer::new(Arc::clone(block));
    one.observe(model, first, ids)?;
    let saved = one.save(model, ids)?.context("nothing was saved")?;
    let bytes: Vec<Vec<u8>> = saved.export()?.into_iter().map(|piece| piece.into_owned()).collect();
    let mut blank = block.blank_context(half);
    for (to, from) in blank.import().into_iter().zip(&bytes) {
        ensure!(to.len() == from.len(), "pieces of {} and {} bytes", to.len(), from.len());
        to.copy_from_slice(from);
    }
    blank.imported()?;
    let mut other = MtpProposer::new(Arc::clone(block));
    other.restore(&blank);
    let all: Vec<u32> = ids.iter().chain(tokens.last()).copied().collect();
    let mut said = Vec::new();
    for proposer in [&mut one, &mut other] {
        proposer.observe(model, second, ids)?;
        let mut proposed = Proposed::default();
        let drafting = Drafting { tokens: &all, most: 4, model: &mut *model, picker: &mut Argmax };
        proposer.propose(drafting, &mut proposed)?;
        said.push(proposed);
    }
    let wrong = f32::from(u8::from(said.first() != said.last()));
    Ok(Some(Check::compared(format!("{name} behind a restored prefix"), wrong, 0.0, format!("{said:?}"))))
}
