//! `mach bench specdec`: what speculation costs and brings.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use mach_engine::EngineConfig;
use mach_specdec::policy::Blocks;

use crate::Exit;
use crate::args::ModelArgs;
use crate::drafts::load_draft;
use crate::loading::{Opened, Report};
use crate::signals::Signals;
use mach_bench::Machine;
use mach_bench::specdec::{
    AnswersPlan, SpecdecReport, VerifyPlan, measure_answers, measure_draft, measure_verify,
};

/// Arguments of `mach bench specdec`.
#[derive(Debug, Clone, Args)]
pub(super) struct SpecdecArgs {
    /// The model
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens in the sequence before the timed block
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    context: usize,
    /// Block sizes to time; one row is added, everything is compared with it
    #[arg(long, value_delimiter = ',', default_value = "2,3,4,6,8,12,16", value_name = "ROWS")]
    rows: Vec<usize>,
    /// Repeats of the timed passes; the fastest is reported
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    passes: u32,
    /// Block policies whose answers are compared with plain decoding, under the guard unless `/unguarded` stands behind them
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "opencode-sampled-v1,opencode-sampled-v1/unguarded,fixed-16/unguarded",
        value_name = "POLICIES"
    )]
    policies: Vec<Blocks>,
    /// Temperatures of the answers
    #[arg(long, value_delimiter = ',', default_value = "0", value_name = "TEMPERATURES")]
    temperatures: Vec<f64>,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..), value_name = "N")]
    max_tokens: u32,
    /// Repeats of every answer; medians are reported, 0 leaves answers out
    #[arg(long, default_value_t = 3, value_name = "N")]
    reps: u32,
    /// Seed of pseudo-random token ids and of the samplers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,
}

/// Runs `mach bench specdec`.
pub(super) fn run(args: SpecdecArgs) -> Result<()> {
    let plain = |exit: Exit| anyhow::anyhow!(exit.message);
    let mut rows = args.rows.clone();
    rows.push(1);
    rows.sort_unstable();
    rows.dedup();
    if rows.first() == Some(&0) || rows.last() > Some(&256) {
        bail!("--rows: a block has 1 to 256 rows");
    }
    let config = args.model.clone().validate().map_err(plain)?;
    let opened = Opened::open(config.clone()).map_err(plain)?;
    let plan = VerifyPlan { context: args.context, rows, reps: args.passes as usize, seed: args.seed };
    let mut report = measure_passes(&opened, &config, plan)?;
    if args.reps > 0 && opened.can_chat() && !report.synthetic {
        let plan = AnswersPlan {
            policies: args.policies,
            copies: true,
            temperatures: args.temperatures,
            max_tokens: args.max_tokens,
            reps: args.reps as usize,
            seed: args.seed,
        };
        let name = opened.default_name();
        let model = opened
            .load(
                EngineConfig::default(),
                vec![name],
                &Report { signals: Signals::Nowhere, bar: true },
                &mut |_| (),
            )
            .map_err(plain)?;
        let progress = std::io::stderr().is_terminal();
        let mut tell = |line: &str| {
            if progress {
                eprintln!("{line}");
            }
        };
        report.answers = measure_answers(&model, &plan, &mut tell)?;
        (report.max_tokens, report.reps) = (plan.max_tokens, plan.reps);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// Passes of the target, and of the draft if there is one.
fn measure_passes(
    opened: &Opened,
    config: &crate::args::ModelConfig,
    plan: VerifyPlan,
) -> Result<SpecdecReport> {
    let checkpoint = opened.checkpoint();
    let prepared = crate::experts::prepare(checkpoint, config, crate::sizing::Beside::alone());
    let prepared = prepared.map_err(|exit| anyhow::anyhow!(exit.message))?;
    let mut model = mach_cpu::load(checkpoint, &prepared.load, &mut |_| {})?;
    let most = plan.context + plan.rows.last().copied().unwrap_or(1);
    if most > model.config().max_position_embeddings {
        bail!(
            "--context: context and block are longer than the model's {}",
            model.config().max_position_embeddings
        );
    }
    let (draft, _) = load_draft(config, model.as_mut()).map_err(|exit| anyhow::anyhow!(exit.message))?;
    let verify = measure_verify(model.as_mut(), &plan)?;
    let one = verify.first().context("no block size")?.seconds;
    let draft = match &draft {
        Some(draft) => measure_draft(model.as_mut(), draft, &plan, one)?,
        None => Vec::new(),
    };
    Ok(SpecdecReport {
        mach: env!("CARGO_PKG_VERSION"),
        machine: Machine::this(),
        model_type: model.config().model_type.clone(),
        synthetic: checkpoint.dir().join("synthetic.json").is_file(),
        facts: model.card().pairs().into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect(),
        plan,
        verify,
        draft,
        max_tokens: 0,
        reps: 0,
        answers: Vec::new(),
    })
}
