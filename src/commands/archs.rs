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
            let checkpoint = Checkpoint::open(path).map_err(Exit::input)?;
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
    let mut out =
        format!("{:<14} {:<12} {:<12} {:<12} module\n", "model_type", "cache", "speculation", "batching");
    for card in cards {
        out += &format!(
            "{:<14} {:<12} {:<12} {:<12} {}\n",
            card.model_type,
            card.kv_cache_kind,
            card.specdec_kind,
            card.continuous_batching,
            card.model_module
        );
    }
    out
}
