//! The result of `mach bench specdec`, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::{Answers, DraftCost, VerifyCost, VerifyPlan};
use crate::Machine;

/// Everything that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct SpecdecReport {
    /// Version of mach.
    pub mach: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// `model_type`.
    pub model_type: String,
    /// Whether its weights are random (`mach synth`).
    pub synthetic: bool,
    /// What the model says of itself.
    pub facts: serde_json::Map<String, serde_json::Value>,
    /// What was timed for `verify` and `draft`.
    pub plan: VerifyPlan,
    /// Cost of passes by rows.
    pub verify: Vec<VerifyCost>,
    /// Cost of drafting by rows; empty without a draft.
    pub draft: Vec<DraftCost>,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Repeats of every answer.
    pub reps: usize,
    /// Answers by temperature, policy and category; empty if there is no draft or no chat template.
    pub answers: Vec<Answers>,
}

impl fmt::Display for SpecdecReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.machine)?;
        let random = if self.synthetic { " (synthetic: random weights)" } else { "" };
        writeln!(
            f,
            "model: {}{random}, {} layers",
            self.model_type,
            self.facts["layers"].as_str().unwrap_or("?")
        )?;
        writeln!(
            f,
            "\na verify pass behind {} tokens, best of {}, to that of one row\n\
             rows       ms  ratio | but experts  ratio | experts ms  ratio  distinct a layer | cut to half ms",
            self.plan.context, self.plan.reps
        )?;
        for c in &self.verify {
            writeln!(
                f,
                "{:>4} {:>8.2} {:>6.2} | {:>11.2} {:>6.2} | {:>10.2} {:>6.2} {:>17.1} | {:>14.2}",
                c.rows,
                1e3 * c.seconds,
                c.ratio,
                1e3 * c.dense_seconds,
                c.dense_ratio,
                1e3 * c.expert_seconds,
                c.expert_ratio,
                c.experts,
                1e3 * c.rewind_seconds
            )?;
        }
        if !self.draft.is_empty() {
            writeln!(
                f,
                "\ndrafting a block, best of as many, to a pass of the target over one row\nrows       ms  ratio"
            )?;
            for c in &self.draft {
                writeln!(f, "{:>4} {:>8.2} {:>6.2}", c.rows, 1e3 * c.seconds, c.ratio)?;
            }
        }
        if !self.answers.is_empty() {
            writeln!(
                f,
                "\nanswers of up to {} tokens, median of {}, to plain decoding; every text was compared and is equal\n\
                 temp policy               category     tokens  plain tok/s    tok/s  decode  request  tokens/pass  accepted",
                self.max_tokens, self.reps
            )?;
        }
        for a in &self.answers {
            let accepted = a.acceptance.map_or("-".into(), |a| format!("{:.0} %", 100.0 * a));
            writeln!(
                f,
                "{:>4} {:<20} {:<12} {:>6} {:>12.1} {:>8.1} {:>7.2} {:>8.2} {:>12.2} {:>9}",
                a.temperature,
                a.policy,
                a.category,
                a.tokens,
                a.plain_tokens_per_second,
                a.tokens_per_second,
                a.decode_ratio,
                a.request_ratio,
                a.tokens_per_pass,
                accepted
            )?;
        }
        Ok(())
    }
}
