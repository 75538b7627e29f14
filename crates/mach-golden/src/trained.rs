//! `golden.json` with cases: greedy continuations and top logits of a trained model.

use anyhow::{Context, Result, ensure};
use mach_checkpoint::Checkpoint;
use mach_models::{LogitRows, Model, NoObserver, Segment};
use serde::Deserialize;

use crate::compare::{Extent, argmax, largest_difference};
use crate::{Check, Options};

/// The file. Its other fields are for people.
#[derive(Debug, Deserialize)]
pub(crate) struct Golden {
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    greedy_text: Option<String>,
    #[serde(default)]
    top5: Vec<Top>,
    smallest_margin: Option<Margin>,
}

/// The best logits after the token at `position` of prompt and continuation.
#[derive(Debug, Deserialize)]
struct Top {
    position: usize,
    ids: Vec<u32>,
    logits: Vec<f32>,
}

/// The step where the two best logits were closest.
#[derive(Debug, Deserialize)]
struct Margin {
    step: usize,
    margin: f32,
}

/// Checks every case.
pub(crate) fn check(
    golden: &Golden,
    model: &mut dyn Model,
    checkpoint: &Checkpoint,
    options: &Options,
    tell: &mut dyn FnMut(Check),
) -> Result<()> {
    let tokenizer = checkpoint.tokenizer().ok();
    for case in &golden.cases {
        let name = format!("`{}`", case.name);
        check_case(case, &name, model, options, tell).with_context(|| format!("case {name}"))?;
        if let (Some(tokenizer), Some(text)) = (&tokenizer, &case.greedy_text) {
            let ours = tokenizer.decode(&case.greedy_ids, false).unwrap_or_default();
            let wrong = f32::from(u8::from(ours != *text));
            tell(Check::compared(format!("{name} text"), wrong, 0.0, "decoded greedy tokens"));
        }
    }
    Ok(())
}

fn check_case(
    case: &Case,
    name: &str,
    model: &mut dyn Model,
    options: &Options,
    tell: &mut dyn FnMut(Check),
) -> Result<()> {
    let prompt = case.prompt_ids.len();
    ensure!(prompt > 0 && !case.greedy_ids.is_empty(), "an empty prompt or continuation");
    let tokens = [case.prompt_ids.as_slice(), &case.greedy_ids].concat();
    let mut state = model.new_state();
    let segment = Segment::prompt(&mut state, &tokens, LogitRows::All);
    let logits = model.forward(&mut [segment], &mut NoObserver)?;
    let row =
        |position: usize| logits.data.chunks_exact(logits.vocab.max(1)).nth(position).unwrap_or_default();

    let mut extent = Extent::default();
    for top in &case.top5 {
        ensure!(top.position < tokens.len(), "top5 at {} of {} tokens", top.position, tokens.len());
        let ours: Vec<f32> = top
            .ids
            .iter()
            .map(|&id| row(top.position).get(id as usize).copied().unwrap_or(f32::NAN))
            .collect();
        let (error, at) = largest_difference(&ours, &top.logits);
        extent.add(error, || format!("position {}, token {:?}", top.position, top.ids.get(at)));
    }
    tell(Check::compared(format!("{name} top logits"), extent.error, options.tolerance(), extent.place));

    // Another token than the golden one can only be right if the errors of two logits made up for the golden margin, which
    // is at least the smallest one of the case.
    let margin = case.smallest_margin.as_ref().map_or(0.0, |m| m.margin);
    let mut excuses = Extent::default();
    for (step, &token) in case.greedy_ids.iter().enumerate() {
        let row = row(prompt - 1 + step);
        let picked = argmax(row);
        if picked != token as usize {
            let gap = row[picked] - row.get(token as usize).copied().unwrap_or(f32::NAN);
            let closest = case.smallest_margin.as_ref().is_some_and(|m| m.step == step);
            let remark = if closest { ", the step of the smallest margin" } else { "" };
            excuses.add(0.5 * (gap + margin), || format!("{picked} for {token} at step {step}{remark}"));
        }
    }
    tell(Check::compared(
        format!("{name} greedy tokens"),
        excuses.error,
        options.greedy_tolerance(),
        excuses.place,
    ));

    // The same continuation decoded with a cache, which must not change a bit.
    let mut state = model.new_state();
    let segment = Segment::prompt(&mut state, &case.prompt_ids, LogitRows::Last);
    let mut last = model.forward(&mut [segment], &mut NoObserver)?.data;
    let mut extent = Extent::default();
    let steps = options.decode_steps.unwrap_or(usize::MAX);
    for (step, token) in case.greedy_ids.iter().enumerate().take(steps) {
        let (error, _) = largest_difference(&last, row(prompt - 1 + step));
        extent.add(error, || format!("step {step}"));
        let segment = Segment::decode(&mut state, std::slice::from_ref(token));
        last = model.forward(&mut [segment], &mut NoObserver)?.data;
    }
    tell(Check::compared(format!("{name} decode equals one pass"), extent.error, 0.0, extent.place));
    Ok(())
}
