//! `mach models`: the checkpoints on this machine.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use mach_checkpoint::ExpertTensors;
use serde::Serialize;

use super::archs::columns;
use crate::Exit;
use crate::args::ModelArgs;
use crate::check::Verdict;
use crate::hub;

/// Arguments of `mach models`.
#[derive(Debug, Clone, Args)]
pub struct ModelsArgs {
    /// Directory with checkpoints in it, beside the model cache; may be given more than once
    #[arg(long, value_name = "DIR")]
    pub models_dir: Vec<PathBuf>,

    /// Leave out the model cache
    #[arg(long)]
    pub no_cache: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A checkpoint that was found.
#[derive(Debug, Serialize)]
struct Found {
    /// What the commands take: `org/name` in the cache, else the path.
    model: String,
    path: PathBuf,
    /// Bytes of its files.
    bytes: u64,
    model_type: Option<String>,
    layout: Option<ExpertTensors>,
    /// Whether `mach convert` wrote it.
    engine_format: bool,
    /// Whether its experts can be streamed now.
    expert_sidecar: bool,
    resident: Option<Verdict>,
    streaming: Option<Verdict>,
    /// Why it cannot be run.
    reason: Option<String>,
}

/// Runs the command.
pub fn run(args: &ModelsArgs) -> Result<(), Exit> {
    let mut found = Vec::new();
    let hub = hub::directory().filter(|_| !args.no_cache);
    for model in hub.iter().flat_map(|hub| hub::cached(hub)) {
        found.push(look(model.repo, model.dir));
    }
    for dir in &args.models_dir {
        let entries = std::fs::read_dir(dir)
            .map_err(|e| Exit::input(format!("--models-dir {}: {e}", dir.display())))?;
        let mut dirs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        dirs.push(dir.clone());
        dirs.sort();
        let models = dirs.into_iter().filter(|dir| dir.join("config.json").is_file());
        found.extend(models.map(|dir| look(dir.display().to_string(), dir)));
    }
    let text = if args.json {
        serde_json::to_string_pretty(&found).map_err(Exit::failure)?
    } else if found.is_empty() {
        let hub = hub.map_or("none".to_owned(), |hub| hub.display().to_string());
        format!("no checkpoints (model cache: {hub}); --models-dir names another place")
    } else {
        table(&found)
    };
    // A closed stdout is no reason to complain.
    let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
    Ok(())
}

fn look(model: String, path: PathBuf) -> Found {
    let mut found = Found {
        model,
        bytes: bytes(&path),
        model_type: None,
        layout: None,
        engine_format: false,
        expert_sidecar: false,
        resident: None,
        streaming: None,
        reason: None,
        path,
    };
    let report = ModelArgs::of(&found.path).validate().and_then(|config| crate::check::quick(&config));
    match report {
        Ok(report) => {
            found.engine_format = report.layout == ExpertTensors::Engine;
            found.expert_sidecar =
                report.artifacts.iter().any(|a| a.name == "expert_sidecar" && a.valid == Some(true));
            found.model_type = Some(report.model_type);
            found.layout = Some(report.layout);
            (found.resident, found.streaming) =
                (Some(report.resident.verdict), Some(report.streaming.verdict));
        }
        Err(exit) => found.reason = Some(exit.message),
    }
    found
}

/// Bytes of the files of a directory and of those below it. The cache's files are links to others.
fn bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match std::fs::metadata(entry.path()) {
        Ok(file) if file.is_file() => file.len(),
        // Links to directories could lead back here.
        Ok(_) if entry.file_type().is_ok_and(|kind| kind.is_dir()) => bytes(&entry.path()),
        _ => 0,
    });
    sizes.sum()
}

fn table(found: &[Found]) -> String {
    let head = ["model", "family", "GB", "experts", "sidecar", "in memory", "streamed"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for model in found {
        let verdict = |verdict: Option<Verdict>| verdict.map_or("-".to_owned(), |v| v.to_string());
        rows.push(vec![
            model.model.clone(),
            model.model_type.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{:.2}", model.bytes as f64 / 1e9),
            model.layout.map_or("-".to_owned(), |layout| layout.to_string()),
            if model.expert_sidecar { "yes" } else { "no" }.to_owned(),
            verdict(model.resident),
            verdict(model.streaming),
        ]);
    }
    let mut out = columns(&rows);
    for model in found {
        if let Some(reason) = &model.reason {
            out += &format!("\n{}: {reason}", model.model);
        }
    }
    out
}
