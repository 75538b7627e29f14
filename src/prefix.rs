//! Flags of the prefix cache.

use std::path::{Path, PathBuf};

use clap::Args;
use mach_api::chat::{Limits, WarmRequest};
use mach_checkpoint::{Checkpoint, MANIFEST_FILE};
use mach_prefix::{PrefixConfig, chain};
use serde_json::Value;

use crate::Exit;

const GB: f64 = 1e9;

/// Prefixes of earlier prompts, in memory and on disk. Changes the speed, never the answer.
#[derive(Debug, Clone, Args)]
pub struct PrefixArgs {
    /// Compute every prompt in full
    #[arg(long, conflicts_with_all = ["prefix_cache_max_gb", "prefix_cache_max_entries", "prefix_cache_block_size",
        "disk_kv_dir", "remember_turns", "warm_prefix"])]
    pub no_prefix_cache: bool,

    /// Memory for cached prefixes in GB; half of what the memory budget leaves for state if not given
    #[arg(long, value_name = "GB")]
    pub prefix_cache_max_gb: Option<f64>,

    /// Most snapshots in memory
    #[arg(long, default_value_t = PrefixConfig::default().max_entries, value_name = "N")]
    pub prefix_cache_max_entries: usize,

    /// Tokens of a block; prefixes are found by hashes at block edges
    #[arg(long, default_value_t = PrefixConfig::default().block, value_name = "TOKENS")]
    pub prefix_cache_block_size: usize,

    /// Directory of prefixes on disk; below the user's cache directory if not given
    #[arg(long, value_name = "DIR")]
    pub disk_kv_dir: Option<PathBuf>,

    /// Disk space for this model's prefixes in GB; 0 keeps none on disk
    #[arg(long, default_value_t = 8.0, value_name = "GB")]
    pub disk_kv_budget_gb: f64,

    /// Use the prefix cache; the default
    #[arg(long, conflicts_with = "no_prefix_cache")]
    pub prefix_cache: bool,

    /// Put the tokens that an answer was generated with in the place of its text when it comes back as a message. More is found in
    /// the cache; answers then depend on what this server has answered before
    #[arg(long)]
    pub remember_turns: bool,

    /// JSON file with a prefix to keep warm ({messages, tools} or {prompt}), or a list of them; may be given more than once
    #[arg(long, value_name = "FILE")]
    pub warm_prefix: Vec<PathBuf>,
}

impl PrefixArgs {
    /// Settings that do not depend on the model; 0 bytes of memory stand for a share of what is left.
    pub(crate) fn validate(&self) -> Result<Option<PrefixConfig>, Exit> {
        if self.no_prefix_cache {
            return Ok(None);
        }
        let bytes = |flag: &str, gb: f64, least: f64| match gb {
            gb if gb >= least && gb <= 1e6 => Ok(gb * GB),
            _ => Err(Exit::input(format!("{flag}: must be a number of gigabytes, at least {least}"))),
        };
        let memory =
            self.prefix_cache_max_gb.map(|gb| bytes("--prefix-cache-max-gb", gb, 0.001)).transpose()?;
        let disk = bytes("--disk-kv-budget-gb", self.disk_kv_budget_gb, 0.0)? as u64;
        if self.prefix_cache_max_entries == 0 {
            return Err(Exit::input("--prefix-cache-max-entries: must be at least 1"));
        }
        if !(16..=65536).contains(&self.prefix_cache_block_size) {
            return Err(Exit::input("--prefix-cache-block-size: must be between 16 and 65536"));
        }
        let directory = || self.disk_kv_dir.clone().or_else(default_directory);
        Ok(Some(PrefixConfig {
            block: self.prefix_cache_block_size,
            stride: 8 * self.prefix_cache_block_size,
            max_bytes: memory.map_or(0, |bytes| bytes as usize),
            max_entries: self.prefix_cache_max_entries,
            directory: if disk > 0 { directory() } else { None },
            disk_budget: disk,
            remember_turns: self.remember_turns,
            ..PrefixConfig::default()
        }))
    }

    /// The prefixes in the files of `--warm-prefix`.
    pub(crate) fn prefixes(&self) -> Result<Vec<WarmRequest>, Exit> {
        let mut all = Vec::new();
        for file in &self.warm_prefix {
            let named = |error: &dyn std::fmt::Display| {
                Exit::input(format!("--warm-prefix {}: {error}", file.display()))
            };
            let bytes = std::fs::read(file).map_err(|e| named(&e))?;
            let values = match serde_json::from_slice(&bytes).map_err(|e| named(&e))? {
                Value::Array(list) => list,
                one => vec![one],
            };
            for value in values {
                let parsed = WarmRequest::from_value(value, &Limits::default());
                all.push(parsed.map_err(|e| named(&e.message))?);
            }
        }
        Ok(all)
    }
}

/// `mach/prefix` where the user's caches are.
fn default_directory() -> Option<PathBuf> {
    caches().map(|caches| caches.join("prefix"))
}

/// `mach` where the user's caches are.
pub(crate) fn caches() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let caches = if cfg!(target_os = "macos") {
        variable("HOME").map(|home| home.join("Library/Caches"))
    } else {
        variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))
    };
    caches.map(|caches| caches.join("mach"))
}

/// Fills in what depends on the model: the namespace of everything but the contents of weight files, which
/// [`Identity`](crate::identity::Identity) adds for what goes to disk.
pub(crate) fn complete(
    config: &mut PrefixConfig,
    checkpoint: &Checkpoint,
    numerics: &str,
    draft: Option<&Path>,
) {
    let template = checkpoint.chat_template().ok().flatten().map(|t| t.source).unwrap_or_default();
    let draft = draft.map(description).unwrap_or_default();
    // Tokens of remembered answers mean nothing under another vocabulary, and streamed experts come from the sidecar.
    let read = |name: &str| std::fs::read(checkpoint.dir().join(name)).unwrap_or_default();
    config.namespace = chain::namespace([
        checkpoint.fingerprint().as_slice(),
        template.as_bytes(),
        numerics.as_bytes(),
        &draft,
        &read("tokenizer.json"),
        &read(MANIFEST_FILE),
    ]);
    config.disk_later = true;
}

/// Prefixes of sequences that the model's own block drafts for are kept apart from those of others.
pub(crate) fn with_block(config: &mut PrefixConfig) {
    config.namespace = chain::namespace([config.namespace.as_slice(), b"mtp"]);
}

/// The safetensors of a directory, in order.
pub(crate) fn safetensors(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path());
    let mut files: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    files
}

/// A draft's settings and its weights' names. Their contents are the identity's.
fn description(draft: &Path) -> Vec<u8> {
    let mut parts = vec![std::fs::read(draft.join("config.json")).unwrap_or_default()];
    let names =
        safetensors(draft).into_iter().filter_map(|f| Some(f.file_name()?.as_encoded_bytes().to_vec()));
    parts.extend(names);
    chain::namespace(parts.iter().map(Vec::as_slice)).to_vec()
}

#[cfg(test)]
mod tests {
    use mach_models::{Activations, LoadOptions};
    use mach_quant::TurboQuant;

    use super::*;

    #[test]
    fn everything_that_decides_a_state_is_in_the_namespace() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        let copy = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json", "chat_template.jinja", "resident.safetensors"] {
            std::fs::copy(demo.join(name), copy.path().join(name)).unwrap();
        }
        let sidecar = copy.path().join(MANIFEST_FILE);
        std::fs::create_dir_all(sidecar.parent().unwrap()).unwrap();
        std::fs::copy(demo.join(MANIFEST_FILE), sidecar).unwrap();
        let of = |load: &LoadOptions, draft: Option<&Path>| {
            let mut config = PrefixConfig::default();
            let numerics = mach_cpu::numerics(load);
            complete(&mut config, &Checkpoint::open(copy.path()).unwrap(), &numerics, draft);
            config.namespace
        };
        let usual = LoadOptions::default();
        let draft = demo.join("draft");
        let mut all = vec![of(&usual, None)];
        assert_eq!(of(&usual, None), all[0], "it is a function of its parts");
        for activations in [Activations::F32, Activations::Int8] {
            let load = LoadOptions { activations, ..usual.clone() };
            if activations == usual.activations {
                assert_eq!(of(&load, None), all[0]);
            } else {
                all.push(of(&load, None));
            }
        }
        for kv in ["k4v3", "k4v4"] {
            all.push(of(
                &LoadOptions { turboquant_kv: Some(kv.parse::<TurboQuant>().unwrap()), ..usual.clone() },
                None,
            ));
        }
        all.push(of(&usual, Some(&draft)));
        for name in ["tokenizer.json", "chat_template.jinja", "config.json", MANIFEST_FILE] {
            let file = copy.path().join(name);
            let mut bytes = std::fs::read(&file).unwrap();
            bytes.push(b'\n');
            std::fs::write(&file, bytes).unwrap();
            all.push(of(&usual, None));
        }
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "two of them share a namespace");
    }
}
