//! `mach archs`: the model families that this build knows.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use mach_checkpoint::{Checkpoint, FAMILIES, FamilyCard};

use crate::Exit;

/// Arguments of `mach archs`.
#[derive(Debug, Clone, Args)]
pub struct ArchsArgs {
    /// Checkpoint to look at; without one, all families are listed
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: Option<PathBuf>,

    /// Print JSON: a list of families, or the family of the checkpoint
    #[arg(long)]
    pub json: bool,
}

/// Runs the command. A checkpoint of no known family is an error.
pub fn run(args: &ArchsArgs) -> Result<(), Exit> {
    let text = match &args.checkpoint {
        Some(path) => {
            let checkpoint = Checkpoint::open(&crate::hub::locate(path)?).map_err(Exit::input)?;
            let card = checkpoint.family().card();
            if args.json { json(&card)? } else { table(&[card]) }
        }
        None => {
            let cards: Vec<_> = FAMILIES.iter().map(|row| row.card()).collect();
            if args.json { json(&cards)? } else { table(&cards) }
        }
    };
    // A closed stdout is no reason to complain.
    let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Result<String, Exit> {
    serde_json::to_string_pretty(value).map_err(Exit::failure)
}

fn table(cards: &[FamilyCard]) -> String {
    let yes = |it: bool| if it { "yes" } else { "no" };
    let mut rows = vec![
        [
            "model_type",
            "swiglu",
            "stacked",
            "expert_bias",
            "wrapped",
            "bits/group",
            "kv_cache",
            "draft",
            "batching",
            "module",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    rows.extend(cards.iter().map(|card| {
        vec![
            card.model_type.to_owned(),
            card.swiglu_variant.to_string(),
            yes(card.stacked_supported).to_owned(),
            yes(card.has_expert_bias).to_owned(),
            yes(card.text_config_wrapped).to_owned(),
            format!("{}/{}", card.default_bits, card.default_group_size),
            card.kv_cache_kind.to_string(),
            card.specdec_kind.to_string(),
            // A reason would not fit a column.
            if card.continuous_batching.reason().is_none() { "ok" } else { "no" }.to_owned(),
            card.model_module.to_owned(),
        ]
    }));
    columns(&rows)
}

/// Rows of cells as lines, each column as wide as its widest cell.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        out += cells.collect::<Vec<_>>().join("  ").trim_end();
        out += "\n";
    }
    out
}
