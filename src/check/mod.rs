//! The preflight: what a checkpoint is, what is missing, what would run on this machine and whether it fits, by the
//! predicates that the server itself uses. Headers are read, weights are not.

mod artifacts;
mod fit;
mod forecast;
mod paths;
mod show;

use mach_checkpoint::{Checkpoint, ExpertTensors, FamilyCard};
use mach_models::DraftNeeds;
use mach_prefix::PrefixConfig;
use mach_server::Residency;
use serde::Serialize;

pub(crate) use fit::{Fit, Verdict};
pub(crate) use forecast::Forecast;
pub(crate) use paths::PathCheck;

use crate::Exit;
use crate::args::ModelConfig;
use crate::budget::Clients;
use crate::drafts::draft_that_fits;
use crate::experts::refuse_stacks;
use crate::sizing::{Beside, Sizing};

pub(crate) use artifacts::Artifact;

/// What is asked beyond the model's own settings.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// Tokens that a conversation is to have room for; as many as the settings allow if not given.
    pub(crate) context: Option<usize>,
    /// Sequences at one time.
    pub(crate) sequences: usize,
    /// The prefix cache, if there is to be one.
    pub(crate) prefix: Option<PrefixConfig>,
    /// Who asks.
    pub(crate) clients: Clients,
    /// Measure the machine and forecast speeds.
    pub(crate) probe: bool,
    /// Share of the experts wanted that the bank is to be assumed to have; by the bank's size if not given.
    pub(crate) hit_rate: Option<f64>,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) checkpoint: String,
    /// `model_type` of `config.json`.
    pub(crate) model_type: String,
    /// What the family is, as the server's capabilities say.
    pub(crate) arch: FamilyCard,
    pub(crate) layout: ExpertTensors,
    /// Weights on disk in bytes, the sidecar aside.
    pub(crate) tensor_bytes: u64,
    pub(crate) synthetic: bool,
    pub(crate) artifacts: Vec<Artifact>,
    pub(crate) paths: Vec<PathCheck>,
    /// Tokens that `memory` has room for.
    pub(crate) context: usize,
    /// Bytes that can be taken, if that is known.
    pub(crate) available_bytes: Option<usize>,
    pub(crate) resident: Fit,
    pub(crate) streaming: Fit,
    /// The better of both.
    pub(crate) verdict: Verdict,
    /// What a server without a word on residency would choose.
    pub(crate) default_residency: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) forecast: Option<Forecast>,
}

/// Looks at a checkpoint. An error is one of input: no checkpoint, or one that cannot be read.
pub(crate) fn check(config: &ModelConfig, question: &Question) -> Result<Report, Exit> {
    let checkpoint = Checkpoint::open(&config.checkpoint).map_err(Exit::input)?;
    let prefix = question.prefix.as_ref();
    let beside = Beside {
        sequences: question.sequences,
        draft: DraftNeeds::default(),
        prefix: prefix.map_or(0, |prefix| prefix.max_bytes),
        saves: prefix.map_or(0, PrefixConfig::saving_bytes),
        clients: Some(question.clients),
    };
    let (draft, beside) = draft_that_fits(config, &checkpoint, beside);
    // What the server holds before it measures itself is held here as well.
    let tokenizer = checkpoint.tokenizer().ok();
    let sizing = Sizing::new(&checkpoint, config, beside);
    let context = question.context.unwrap_or(sizing.context).min(sizing.context);
    let artifacts = artifacts::of(&checkpoint, config, &draft);
    let supported = mach_cpu::supports(checkpoint.config(), &config.load)
        .map_err(|e| e.to_string())
        .and_then(|()| refuse_stacks(&checkpoint).map_err(|exit| exit.message));
    let mut resident = fit::resident(&sizing, context, &supported);
    let streaming = fit::streaming(&checkpoint, &sizing, context, &supported);
    let paths = paths::of(&checkpoint, config, &draft, &resident, &streaming, &supported);
    if paths.iter().any(|path| path.device == "gpu" && path.runs) {
        resident.on_card();
    }
    let explicit = config.experts.expert_cache_gb.is_some();
    let default_residency = match (resident.verdict, streaming.verdict) {
        (Verdict::WontFit, Verdict::WontFit) => None,
        (Verdict::WontFit, _) => Some(Residency::Streaming.as_str()),
        _ if explicit && streaming.verdict != Verdict::WontFit => Some(Residency::Streaming.as_str()),
        _ => Some(Residency::Stacked.as_str()),
    };
    let mut report = Report {
        checkpoint: config.checkpoint.display().to_string(),
        model_type: checkpoint.config().model_type.clone(),
        arch: checkpoint.family().card(),
        layout: checkpoint.expert_tensors(),
        tensor_bytes: checkpoint.data_bytes(),
        synthetic: checkpoint.is_synthetic(),
        artifacts,
        paths,
        context,
        available_bytes: sizing.bounds.available,
        verdict: resident.verdict.min(streaming.verdict),
        resident,
        streaming,
        default_residency,
        forecast: None,
    };
    drop(tokenizer);
    if question.probe && report.verdict != Verdict::WontFit {
        let fits = [&report.resident, &report.streaming];
        report.forecast = Some(forecast::of(&checkpoint, config, &sizing, context, fits, question.hit_rate)?);
    }
    Ok(report)
}

/// As a list of models needs it: of one that is to be served with nothing said.
pub(crate) fn quick(config: &ModelConfig) -> Result<Report, Exit> {
    let server = mach_server::ServerConfig::default();
    let clients = Clients {
        account: None,
        connections: server.max_connections,
        head: server.max_head,
        unread: None,
        store: 0,
    };
    let sequences = mach_engine::EngineConfig::default().max_batch;
    let question =
        Question { context: Some(USUAL), sequences, prefix: None, clients, probe: false, hit_rate: None };
    check(config, &question)
}

/// Tokens of a usual long conversation.
const USUAL: usize = 8192;
