//! Checks a build against golden numbers that other implementations computed.
//!
//! Two formats are known: `golden.safetensors` (logits, hidden states, router choices, recurrent states, greedy
//! continuations of tiny random models; described in `fixtures/README.md`) and `golden.json` with `cases` (prompts, greedy
//! continuations and top logits of a trained model; see `demo/golden.json`). Speculative drafts have one of their own for
//! each: whole runs with every step's features and logits, and `golden_trace.json` with what each cycle produced.

mod compare;
mod draft;
mod eagle;
mod fixture;
mod mtp;
mod recorder;
mod trained;

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use mach_checkpoint::Checkpoint;
use mach_models::{Activations, LoadOptions, Model};
use serde_json::Value;

pub use compare::{Extent, largest_difference};

/// How to check.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How the model is loaded.
    pub load: LoadOptions,
    /// Largest absolute difference accepted; `None` for the default of the activation path.
    pub tolerance: Option<f32>,
    /// Steps of a trained model's continuation that are also decoded one by one; `None` for all. The one pass over
    /// prompt and continuation covers every step in any case.
    pub decode_steps: Option<usize>,
}

impl Options {
    /// The tolerance in force: 2e-3 for exact activations (see `fixtures/README.md`). Quantized activations are an
    /// approximation of unknown size on random weights; their default only catches nonsense.
    pub fn tolerance(&self) -> f32 {
        self.tolerance.unwrap_or(match self.load.activations {
            Activations::F32 => 2e-3,
            Activations::Int8 => 2.0,
        })
    }

    /// How wrong two logits may be for another greedy token to be excused.
    fn greedy_tolerance(&self) -> f32 {
        self.tolerance().min(0.25)
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Values were compared.
    Compared {
        /// Largest absolute difference, or the number of differing choices; NaN if a value was not a number.
        error: f32,
        /// The most that passes.
        tolerance: f32,
        /// Where the largest difference was, or what differed.
        detail: String,
    },
    /// Not checked, and why.
    Skipped(String),
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// What came out.
    pub outcome: Outcome,
}

impl Check {
    fn compared(name: impl Into<String>, error: f32, tolerance: f32, detail: impl Into<String>) -> Self {
        Self { name: name.into(), outcome: Outcome::Compared { error, tolerance, detail: detail.into() } }
    }

    fn skipped(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), outcome: Outcome::Skipped(reason.into()) }
    }

    /// False if values were compared and differ by more than the tolerance, or are not numbers.
    pub fn passed(&self) -> bool {
        match &self.outcome {
            Outcome::Compared { error, tolerance, .. } => error <= tolerance,
            Outcome::Skipped(_) => true,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Compared { error, tolerance, detail } => {
                let verdict = if self.passed() { "ok  " } else { "MISS" };
                write!(f, "{verdict} {}: error {error:.3e}, tolerance {tolerance:.1e}", self.name)?;
                if detail.is_empty() { Ok(()) } else { write!(f, " ({detail})") }
            }
            Outcome::Skipped(reason) => write!(f, "skip {}: skipped: {reason}", self.name),
        }
    }
}

/// Checks one directory, handing each check to `report` as it ends; true if all passed. An error means that the
/// directory cannot be used at all.
pub fn check_directory(dir: &Path, options: &Options, report: &mut dyn FnMut(&Check)) -> Result<bool> {
    if is_draft(dir) {
        return draft::check_alone(dir, options, report);
    }
    if mach_models::eagle3::is_head(dir) {
        return eagle::check(dir, options, report);
    }
    let fixture = dir.join("golden.safetensors");
    let cases = read_cases(dir)?;
    if !fixture.is_file() && cases.is_none() {
        bail!("{}: neither golden.safetensors nor a golden.json with `cases`", dir.display());
    }
    let checkpoint = Checkpoint::open(dir)?;
    let mut model = mach_cpu::load(&checkpoint, &options.load, &mut |_| ())
        .with_context(|| format!("loading {}", dir.display()))?;
    let mut passed = true;
    let mut tell = |check: Check| {
        passed &= check.passed();
        report(&check);
    };
    let model: &mut dyn Model = model.as_mut();
    if fixture.is_file() {
        fixture::check(&fixture, model, options.tolerance(), &mut tell)?;
    }
    if let Some(cases) = cases {
        trained::check(&cases, model, &checkpoint, options, &mut tell)?;
    }
    if dir.join("mtp.safetensors").is_file() {
        mtp::check(dir, model, &checkpoint, options.tolerance(), &mut tell)?;
    }
    let mut drafts: Vec<_> = std::fs::read_dir(dir)?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| is_draft(path))
        .collect();
    drafts.sort();
    for draft in drafts {
        let name = draft.file_name().unwrap_or_default().to_string_lossy().into_owned();
        draft::check(&draft, &format!("draft `{name}`"), model, options, &mut tell)
            .with_context(|| format!("{}", draft.display()))?;
    }
    Ok(passed)
}

/// Whether a directory holds a speculative draft rather than a model.
fn is_draft(dir: &Path) -> bool {
    std::fs::read(dir.join("config.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .is_some_and(|config| config.get("dflash_config").is_some())
}

/// `golden.json`, if it is of the kind with cases.
fn read_cases(dir: &Path) -> Result<Option<trained::Golden>> {
    let file = dir.join("golden.json");
    if !file.is_file() {
        return Ok(None);
    }
    let value: Value = serde_json::from_slice(&std::fs::read(&file)?)
        .with_context(|| format!("{}: not JSON", file.display()))?;
    if value.get("cases").is_none() {
        return Ok(None);
    }
    let golden = serde_json::from_value(value).with_context(|| format!("{}", file.display()))?;
    Ok(Some(golden))
}
