//! Prints one line a checkpoint and activation path: a digest of the bits of its logits over a fixed token sequence.
//!
//! Under the numerics contract the lines depend on the checkpoint alone. Every instruction set of this machine is run and must
//! agree, or the exit code is 1; comparing the output of two machines compares their arithmetic bit by bit.
//! `scripts/aarch64-linux.sh` does so between this machine and an emulated Arm one.
//!
//!     cargo run --release -p mach-cpu --example digest -- [--vector] DIR...
//!
//! `--vector` leaves the scalar instruction set out, which is slow on larger checkpoints.

mod logits;

use std::path::Path;
use std::process::ExitCode;

use logits::digest;
use mach_kernels::Isa;
use mach_models::Activations;

fn main() -> ExitCode {
    let mut ok = true;
    let (flags, dirs): (Vec<_>, Vec<_>) = std::env::args_os().skip(1).partition(|word| word == "--vector");
    let isas: Vec<Isa> =
        Isa::available().into_iter().filter(|&isa| flags.is_empty() || isa != Isa::SCALAR).collect();
    for dir in dirs.iter().map(Path::new) {
        for (name, activations, kv) in [
            ("int8", Activations::Int8, None),
            ("f32", Activations::F32, None),
            ("int8 k4v3", Activations::Int8, Some("k4v3")),
        ] {
            let mut first = None;
            for &isa in &isas {
                match digest(dir, activations, kv, isa) {
                    Ok(None) => {}
                    Ok(Some(found)) => {
                        let expected = *first.get_or_insert(found);
                        if found != expected {
                            println!(
                                "{} {name}: {isa} gives {found:016x}, not {expected:016x}",
                                dir.display()
                            );
                            ok = false;
                        }
                    }
                    Err(error) => {
                        println!("{} {name} {isa}: {error}", dir.display());
                        ok = false;
                    }
                }
            }
            if let Some(found) = first {
                println!("{} {name} {found:016x}", dir.display());
            }
        }
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
