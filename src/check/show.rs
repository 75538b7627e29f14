//! The report for people.

use std::fmt;

use super::fit::Parts;
use super::forecast::Speeds;
use super::{Fit, Report};

/// Bytes as decimal gigabytes.
fn gb(bytes: usize) -> String {
    if bytes < 100_000_000 {
        format!("{:.1} MB", bytes as f64 / 1e6)
    } else {
        format!("{:.2} GB", bytes as f64 / 1e9)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.checkpoint)?;
        let synthetic = if self.synthetic { ", synthetic: random weights" } else { "" };
        let (layout, bytes) = (self.layout, gb(self.tensor_bytes as usize));
        writeln!(f, "  {} ({layout} experts, {bytes} of tensors{synthetic})", self.model_type)?;
        writeln!(f, "\nartifacts")?;
        for artifact in &self.artifacts {
            let mark = match (artifact.present, artifact.valid) {
                (_, Some(true)) => "ok",
                (true, _) => "BAD",
                (false, _) => "-",
            };
            write!(f, "  {:<15} {mark:<4} {}", artifact.name, artifact.detail)?;
            match &artifact.command {
                Some(command) => writeln!(f, "; made by: {command}")?,
                None => writeln!(f)?,
            }
        }
        writeln!(f, "\npaths")?;
        for path in &self.paths {
            let runs = if path.runs { "runs" } else { "no" };
            let (device, residency, decode, reason) =
                (path.device, path.residency, &path.decode_path, &path.reason);
            writeln!(f, "  {device:<4} {residency:<15} {decode:<12} {runs:<5} {reason}")?;
        }
        let available = self.available_bytes.map_or("unknown".to_owned(), gb);
        writeln!(f, "\nmemory for a conversation of {} tokens; available: {available}", self.context)?;
        show_fit(f, "all experts in memory (--no-streaming)", &self.resident)?;
        show_fit(f, "experts streamed (--streaming)", &self.streaming)?;
        if let Some(forecast) = &self.forecast {
            let drive = forecast
                .drive_bytes_per_second
                .map_or("no sidecar to read".to_owned(), |b| format!("{:.2} GB/s", b / 1e9));
            writeln!(f, "\nforecast, without a draft, at {} tokens", forecast.at_tokens)?;
            writeln!(f, "  memory {:.1} GB/s, drive {drive}", forecast.dram_bytes_per_second / 1e9)?;
            writeln!(f, "  {} read for a token at least", gb(forecast.bytes_per_token as usize))?;
            show_speeds(f, "in memory", forecast.resident.as_ref())?;
            show_speeds(f, "streamed", forecast.streaming.as_ref())?;
        }
        let choice = match self.default_residency {
            Some(residency) => format!("; a server that is told nothing chooses {residency}"),
            None => String::new(),
        };
        write!(f, "\nverdict: {}{choice}", self.verdict)
    }
}

fn show_fit(f: &mut fmt::Formatter<'_>, title: &str, fit: &Fit) -> fmt::Result {
    writeln!(f, "  {title}: {}", fit.verdict)?;
    if let Some(reason) = &fit.reason {
        writeln!(f, "    {reason}")?;
    }
    let Some(memory) = fit.memory else { return Ok(()) };
    let Parts { resident_weights, bank, arena, kv, draft, prefix_cache, scratch, process, vram } = memory;
    let parts = [
        ("weights", resident_weights),
        ("experts", bank),
        ("arena", arena),
        ("kv", kv),
        ("draft", draft),
        ("prefix cache", prefix_cache),
        ("scratch", scratch),
        ("process", process),
        ("vram", vram.unwrap_or(0)),
    ];
    let parts = parts.into_iter().filter(|&(_, bytes)| bytes > 0);
    let parts: Vec<String> = parts.map(|(name, bytes)| format!("{name} {}", gb(bytes))).collect();
    writeln!(f, "    {}", parts.join(", "))?;
    writeln!(
        f,
        "    {} of {} experts of {}; expected peak {}, never more than {}; longest conversation {} tokens",
        fit.bank_experts,
        fit.experts,
        gb(fit.expert_bytes),
        gb(memory.total()),
        gb(fit.budget_bytes.unwrap_or(0)),
        fit.longest_context,
    )
}

fn show_speeds(f: &mut fmt::Formatter<'_>, title: &str, speeds: Option<&Speeds>) -> fmt::Result {
    let Some(speeds) = speeds else { return writeln!(f, "  {title}: not forecast") };
    let Speeds { prefill, decode, decode_of_ceiling, hit_rate, hit_rate_source } = speeds;
    writeln!(
        f,
        "  {title}: prefill {prefill:.1} tokens/s, decode {decode:.1} tokens/s ({:.0} % of the ceiling); hit rate {hit_rate:.2}: {hit_rate_source}",
        100.0 * decode_of_ceiling,
    )
}
