//! Prints one line a checkpoint and activation path: a digest of the bits of its logits over a fixed token sequence.
//!
//! Under the numerics contract the lines depend on the checkpoint alone. Every instruction set of this machine is run and must
//! agree, or the exit code is 1; comparing the output of two machines compares their arithmetic bit by bit.
//! `scripts/aarch64-linux.sh` does so between this machine and an emulated Arm one.
//!
//!     cargo run --release -p mach-models --example digest -- [--vector] DIR...
//!
//! `--vector` leaves the scalar instruction set out, which is slow on larger checkpoints.

use std::path::Path;
use std::process::ExitCode;

use mach_checkpoint::Checkpoint;
use mach_cpu::load;
use mach_kernels::Isa;
use mach_kernels::attention::turbo::LEAST_HEAD_DIM;
use mach_models::{Activations, LoadOptions, LogitRows, ModelError, NoObserver, Segment};

/// Tokens of the sequence: two chunks of different length, then single ones.
const CHUNKS: [usize; 6] = [17, 5, 1, 1, 1, 1];

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

/// FNV-1a over the bits of all logits; nothing for heads too narrow to be quantized.
fn digest(
    dir: &Path,
    activations: Activations,
    kv: Option<&str>,
    isa: Isa,
) -> Result<Option<u64>, ModelError> {
    let checkpoint = Checkpoint::open(dir)?;
    if kv.is_some() && checkpoint.config().head_dim < LEAST_HEAD_DIM {
        return Ok(None);
    }
    let options = LoadOptions {
        activations,
        threads: 2,
        isa: Some(isa.name().to_owned()),
        turboquant_kv: kv.and_then(|kv| kv.parse().ok()),
        ..Default::default()
    };
    let mut model = load(&checkpoint, &options, &mut |_| {})?;
    let vocab = model.config().vocab_size.max(1) as u64;
    let mut state = model.new_state();
    let (mut word, mut hash) = (1u64, 0xcbf2_9ce4_8422_2325u64);
    for chunk in CHUNKS {
        let tokens: Vec<u32> = (0..chunk)
            .map(|_| {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((word >> 33) % vocab) as u32
            })
            .collect();
        let mut segments = [Segment::prompt(&mut state, &tokens, LogitRows::All)];
        let logits = model.forward(&mut segments, &mut NoObserver)?;
        for byte in logits.data.iter().flat_map(|x| x.to_bits().to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    Ok(Some(hash))
}
