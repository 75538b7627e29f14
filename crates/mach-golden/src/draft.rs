//! Drafts: what they compute from golden features, and whole runs of speculative decoding.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use mach_checkpoint::Checkpoint;
use mach_models::{DraftHost, LogitRows, Model, Segment};
use mach_specdec::{
    Argmax, Choice, DFlash, DFlashProposer, DraftOptions, Drafting, Proposed, Proposer, Taps, choose, verify,
};
use serde::Deserialize;

use crate::compare::{Extent, argmax, largest_difference};
use crate::fixture::{Golden, prefixed};
use crate::{Check, Options};

/// `golden.json` of a fixture: greedy runs.
#[derive(Debug, Deserialize)]
struct Runs {
    target: PathBuf,
    runs: Vec<Run>,
}

#[derive(Debug, Deserialize)]
struct Run {
    run: usize,
    input_ids: Vec<u32>,
    new_tokens: usize,
    output: Vec<u32>,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Step {
    anchor_position: usize,
    anchor: u32,
    block: usize,
    drafted: Vec<u32>,
    target_argmax: Vec<u32>,
    accepted: usize,
    bonus: u32,
}

/// `golden_trace.json` of a trained draft.
#[derive(Debug, Deserialize)]
struct Traces {
    cases: Vec<Trace>,
}

#[derive(Debug, Deserialize)]
struct Trace {
    name: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    produced_per_cycle: Vec<usize>,
    first_draft: Vec<u32>,
}

/// Checks a draft in a directory of its own: its target is the one that its golden names, or the directory around it.
pub(crate) fn check_alone(dir: &Path, options: &Options, report: &mut dyn FnMut(&Check)) -> Result<bool> {
    let target = match read::<Runs>(&dir.join("golden.json"))? {
        Some(runs) => dir.join(runs.target),
        None => dir.join(".."),
    };
    let checkpoint = Checkpoint::open(&target)?;
    let mut model = mach_cpu::load(&checkpoint, &options.load, &mut |_| ())
        .with_context(|| format!("loading {}", target.display()))?;
    let mut passed = true;
    let mut tell = |check: Check| {
        passed &= check.passed();
        report(&check);
    };
    check(dir, "draft", model.as_mut(), options, &mut tell).with_context(|| format!("{}", dir.display()))?;
    Ok(passed)
}

/// Checks a draft against its goldens with its target.
pub(crate) fn check(
    dir: &Path,
    name: &str,
    model: &mut dyn Model,
    options: &Options,
    tell: &mut dyn FnMut(Check),
) -> Result<()> {
    let draft = std::sync::Arc::new(model.load_draft(dir, DraftOptions::default())?);
    let (runs, traces) =
        (read::<Runs>(&dir.join("golden.json"))?, read::<Traces>(&dir.join("golden_trace.json"))?);
    if runs.is_none() && traces.is_none() {
        bail!("neither golden.json nor golden_trace.json");
    }
    if let Some(runs) = runs {
        let file = dir.join("golden.safetensors");
        let bytes = std::fs::read(&file).with_context(|| format!("{}", file.display()))?;
        let golden = Golden::parse(&bytes).with_context(|| format!("{}", file.display()))?;
        for run in &runs.runs {
            let name = format!("{name} run {} ({} tokens)", run.run, run.input_ids.len());
            check_features(&draft, run, &golden, &name, model, options, tell)
                .with_context(|| name.clone())?;
            check_run(&draft, run, &golden, &name, model, options, tell).with_context(|| name.clone())?;
        }
    }
    let stored = stored_in_fewer_bits(dir)?;
    let mut acceptance = Acceptance::default();
    for trace in traces.iter().flat_map(|t| &t.cases) {
        let name = format!("{name} `{}`", trace.name);
        let produced =
            check_trace(&draft, trace, &name, stored, model, tell).with_context(|| name.clone())?;
        acceptance.add(&trace.produced_per_cycle, &produced);
    }
    if stored && acceptance.tokens > 0 {
        tell(acceptance.check(&format!("{name} acceptance")));
    }
    Ok(())
}

/// Whether the draft's matrices are quantized, and its trace therefore that of a slightly different draft.
fn stored_in_fewer_bits(dir: &Path) -> Result<bool> {
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    Ok(config.get("quantization").is_some_and(serde_json::Value::is_object))
}

/// How many tokens a cycle brings, over all traces: what the trace says, and what this draft does.
#[derive(Debug, Default)]
struct Acceptance {
    tokens: usize,
    expected_cycles: usize,
    cycles: usize,
}

impl Acceptance {
    /// More cycles for the same tokens than the trace took, as a share, that pass for no loss.
    const TOLERANCE: f32 = 0.01;

    fn add(&mut self, expected: &[usize], produced: &[usize]) {
        self.tokens += expected.iter().sum::<usize>();
        self.expected_cycles += expected.len();
        self.cycles += produced.len();
    }

    fn check(&self, name: &str) -> Check {
        let lost = self.cycles as f32 / self.expected_cycles.max(1) as f32 - 1.0;
        let per = |cycles: usize| self.tokens as f32 / cycles.max(1) as f32;
        let detail = format!("{:.3} tokens a cycle for {:.3}", per(self.cycles), per(self.expected_cycles));
        Check::compared(name.to_owned(), lost.max(0.0), Self::TOLERANCE, detail)
    }
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> Result<Option<T>> {
    if !file.is_file() {
        return Ok(None);
    }
    let value =
        serde_json::from_slice(&std::fs::read(file)?).with_context(|| format!("{}", file.display()))?;
    Ok(Some(value))
}

fn host(model: &mut dyn Model) -> Result<&mut dyn DraftHost> {
    model.draft_host().context("no draft is loaded")
}

/// The draft alone: golden features in, golden logits out.
fn check_features(
    draft: &DFlash,
    run: &Run,
    golden: &Golden<'_>,
    name: &str,
    model: &mut dyn Model,
    options: &Options,
    tell: &mut dyn FnMut(Check),
) -> Result<()> {
    let mut context = draft.new_context();
    let (mut extent, mut wrong, mut first) = (Extent::default(), 0usize, String::new());
    for (index, step) in run.steps.iter().enumerate() {
        let features = golden.floats(&format!("r{}.s{index}.features", run.run))?;
        let host = host(model)?;
        host.extend(&mut context, &features)?;
        ensure!(
            context.position() == step.anchor_position,
            "step {index}: features of {} rows",
            context.position()
        );
        if step.block < 2 {
            continue;
        }
        let mut rows = host.block(&mut context, step.anchor, step.block)?;
        let expected = golden.floats(&format!("r{}.s{index}.draft_logits", run.run))?;
        extent.add(largest_difference(&rows.logits.data, &expected).0, || format!("step {index}"));
        let mut drafted = Proposed::default();
        choose(draft, &mut rows, step.anchor, &mut Argmax, &mut drafted)?;
        let drafted = drafted.tokens;
        if drafted != step.drafted {
            wrong += 1;
            if first.is_empty() {
                first = format!("first at step {index}: {drafted:?} for {:?}", step.drafted);
            }
        }
    }
    tell(Check::compared(format!("{name} draft logits"), extent.error, options.tolerance(), extent.place));
    let detail = format!("differing of {} steps{}", run.steps.len(), prefixed(&first));
    tell(Check::compared(format!("{name} drafted tokens"), wrong as f32, 0.0, detail));
    Ok(())
}

/// One step of a greedy run as it happened.
struct Happened {
    step: Step,
    /// Features that the draft was given before.
    features: Vec<f32>,
    /// The target's logits of the rows that were looked at.
    logits: Vec<Vec<f32>>,
}

/// Greedy speculative decoding by the loop of the golden's makers.
fn run_greedy(
    draft: &std::sync::Arc<DFlash>,
    model: &mut dyn Model,
    prompt: &[u32],
    new_tokens: usize,
) -> Result<(Vec<u32>, Vec<Happened>)> {
    let mut proposer = DFlashProposer::new(std::sync::Arc::clone(draft));
    let mut taps = Taps::new(proposer.taps(), model.config().hidden_size);
    let (mut state, limit) = (model.new_state(), prompt.len() + new_tokens);
    let segment = Segment::prompt(&mut state, prompt, LogitRows::Last);
    let logits = model.forward(&mut [segment], &mut taps)?;
    let mut features = taps.rows(0..prompt.len()).to_vec();
    let mut tokens = prompt.to_vec();
    tokens.push(argmax(&logits.data) as u32);
    let mut steps = Vec::new();
    while tokens.len() < limit {
        let start = tokens.len() - 1;
        let block = draft.config().block_size.min(limit - start);
        proposer.observe(model, &features, &tokens)?;
        let mut drafted = Proposed::default();
        if block > 1 {
            let drafting = Drafting { tokens: &tokens, most: block - 1, model, picker: &mut Argmax };
            proposer.propose(drafting, &mut drafted)?;
        }
        let drafted = drafted.tokens;
        let anchor = tokens[start];
        let (mut rows, mut choices) = (Vec::new(), Vec::new());
        let verified = verify(model, &mut state, anchor, &drafted, &mut taps, &mut |row| {
            let token = argmax(row) as u32;
            rows.push(row.to_vec());
            choices.push(token);
            Ok::<_, std::convert::Infallible>(Choice { token, last: false })
        })?;
        let step = Step {
            anchor_position: start,
            anchor,
            block,
            drafted,
            accepted: verified.accepted,
            bonus: choices.last().copied().unwrap_or_default(),
            target_argmax: choices.clone(),
        };
        tokens.extend(choices);
        let seen = std::mem::replace(&mut features, taps.rows(0..verified.emitted).to_vec());
        steps.push(Happened { step, features: seen, logits: rows });
    }
    tokens.truncate(limit);
    Ok((tokens.split_off(prompt.len()), steps))
}

/// A whole run with this build's target: features, drafts, verification, rollback.
fn check_run(
    draft: &std::sync::Arc<DFlash>,
    run: &Run,
    golden: &Golden<'_>,
    name: &str,
    model: &mut dyn Model,
    options: &Options,
    tell: &mut dyn FnMut(Check),
) -> Result<()> {
    let (output, steps) = run_greedy(draft, model, &run.input_ids, run.new_tokens)?;
    let (mut features, mut logits) = (Extent::default(), Extent::default());
    let (mut wrong, mut first) = (steps.len().abs_diff(run.steps.len()), String::new());
    for (index, (ours, theirs)) in steps.iter().zip(&run.steps).enumerate() {
        let expected = golden.floats(&format!("r{}.s{index}.features", run.run))?;
        features.add(largest_difference(&ours.features, &expected).0, || format!("step {index}"));
        let key = format!("r{}.s{index}.verify_logits", run.run);
        if golden.has(&key) {
            let expected = golden.floats(&key)?;
            let seen = ours.logits.concat();
            let expected = expected.get(..seen.len()).unwrap_or_default();
            logits.add(largest_difference(&seen, expected).0, || format!("step {index}"));
        }
        // Rows behind the first difference are not looked at.
        let choices = theirs.target_argmax.get(..theirs.accepted + 1).unwrap_or_default();
        let (mine, golden) = (&ours.step, theirs);
        let same = mine.target_argmax == choices
            && (mine.anchor_position, mine.anchor, mine.block)
                == (golden.anchor_position, golden.anchor, golden.block)
            && (&mine.drafted, mine.accepted, mine.bonus) == (&golden.drafted, golden.accepted, golden.bonus);
        if !same {
            wrong += 1;
            if first.is_empty() {
                first = format!("first at step {index}: {mine:?} for {golden:?}");
            }
        }
    }
    let tolerance = options.tolerance();
    tell(Check::compared(format!("{name} features"), features.error, tolerance, features.place));
    tell(Check::compared(format!("{name} verify logits"), logits.error, tolerance, logits.place));
    let detail = format!("differing of {} steps{}", run.steps.len(), prefixed(&first));
    tell(Check::compared(format!("{name} trace"), wrong as f32, 0.0, detail));
    let differing = f32::from(u8::from(output != run.output));
    tell(Check::compared(format!("{name} output"), differing, 0.0, format!("{} tokens", output.len())));
    Ok(())
}

/// A trained draft's trace: the output, the first block, and what each cycle produced, which is returned. A draft that is
/// stored in fewer bits than the trace was made with chooses differently where two tokens are nearly tied; of it, only the output
/// is held to the trace.
fn check_trace(
    draft: &std::sync::Arc<DFlash>,
    trace: &Trace,
    name: &str,
    stored: bool,
    model: &mut dyn Model,
    tell: &mut dyn FnMut(Check),
) -> Result<Vec<usize>> {
    ensure!(!trace.prompt_ids.is_empty() && !trace.greedy_ids.is_empty(), "an empty prompt or continuation");
    // Blocks of full size up to the end, as the trace was made.
    let room = trace.greedy_ids.len() + draft.config().block_size;
    let (output, steps) = run_greedy(draft, model, &trace.prompt_ids, room)?;
    let mut produced = Vec::new();
    let mut left = trace.greedy_ids.len() - 1;
    for step in &steps {
        let took = (step.step.accepted + 1).min(left);
        if took > 0 {
            produced.push(took);
        }
        left -= took;
    }
    let drafted = steps.first().map(|s| s.step.drafted.as_slice()).unwrap_or_default();
    let mut compare = |what: &str, same: bool, detail: String| {
        let error = f32::from(u8::from(!same));
        tell(Check::compared(
            format!("{name} {what}"),
            error,
            0.0,
            if same { String::new() } else { detail },
        ));
    };
    if !stored {
        let same = drafted == trace.first_draft;
        compare("first draft", same, format!("{drafted:?} for {:?}", trace.first_draft));
        let same = produced == trace.produced_per_cycle;
        compare("cycles", same, format!("{produced:?} for {:?}", trace.produced_per_cycle));
    }
    compare("output", output.starts_with(&trace.greedy_ids), "another continuation".into());
    Ok(produced)
}
