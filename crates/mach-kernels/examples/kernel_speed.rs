//! Speed of single kernels beside the ceilings of this machine, interleaved round by round. For tuning.
//!
//!     cargo run --release -p mach-kernels --example kernel_speed -- [threads] [rounds] [row,rows,delta,attention]

use std::time::Instant;

use mach_io::HugeBuf;
use mach_kernels::attention::{AttentionScratch, KvCache, KvShape, KvType, attend};
use mach_kernels::ceiling::{int8_dot, read_bandwidth};
use mach_kernels::delta::{DeltaInputs, DeltaScratch, DeltaShape, DeltaState, DeltaWeights, gated_delta};
use mach_kernels::linear::{MatRef, Product, multiply};
use mach_kernels::quantize::Operand;
use mach_kernels::{Cores, Isa};
use mach_quant::{Bits, Codec, FloatType, MatrixLayout, Order};

fn affine(bits: Bits) -> Codec {
    Codec::Affine { bits, group: 64, scales: FloatType::Bf16 }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let number =
        |i: usize, default: usize| std::env::args().nth(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (threads, rounds) = (number(1, 2), number(2, 5));
    let only = std::env::args().nth(3).unwrap_or_default();
    let wanted = |what: &str| only.is_empty() || only.split(',').any(|o| o == what);
    let isa = Isa::best();
    let mut cores = Cores::new(threads, isa);
    println!("{isa}, {threads} threads; best of {rounds} rounds, ceilings of the same round in brackets");

    // One row: bound by memory. The matrix is far larger than the caches.
    let cols = 2048;
    for (name, codec) in [
        ("affine 4 bit", affine(Bits::B4)),
        ("affine 2 bit", affine(Bits::B2)),
        ("affine 3 bit", affine(Bits::B3)),
        ("affine 5 bit", affine(Bits::B5)),
        ("affine 6 bit", affine(Bits::B6)),
        ("affine 8 bit", affine(Bits::B8)),
        ("mxfp4", Codec::Mxfp4),
    ] {
        if !wanted("row") {
            break;
        }
        let rows = (400 << 20) / (cols * codec.bits() / 8) / 16 * 16;
        let layout = MatrixLayout { rows, cols, codec, order: Order::Tiles };
        let mut data = HugeBuf::zeroed(layout.bytes())?;
        fill(&mut data);
        let x: Vec<f32> = (0..cols).map(|i| (i as f32).sin()).collect();
        let mut out = vec![0.0; rows];
        let mut operand = Operand::default();
        for _ in 0..rounds {
            let ceiling = read_bandwidth(&[threads], 512 << 20, 2)?[0].bytes_per_second;
            operand.prepare(&mut cores, &layout, &x, cols, 1);
            let mut best = f64::MAX;
            for _ in 0..3 {
                let start = Instant::now();
                let matrix = MatRef::new(layout, &data);
                let product = Product { matrix, operand: &operand, out: &mut out, stride: rows };
                multiply(&mut cores, &mut [product]);
                best = best.min(start.elapsed().as_secs_f64());
            }
            let speed = layout.bytes() as f64 / best;
            println!(
                "row x {name}: {:.1} GB/s ({:.0} % of {:.1})",
                speed / 1e9,
                100.0 * speed / ceiling,
                ceiling / 1e9
            );
        }
    }

    // Many rows: bound by the int8 units.
    for (name, codec) in [
        ("affine 4 bit", affine(Bits::B4)),
        ("affine 2 bit", affine(Bits::B2)),
        ("affine 3 bit", affine(Bits::B3)),
        ("affine 5 bit", affine(Bits::B5)),
        ("affine 6 bit", affine(Bits::B6)),
        ("affine 8 bit", affine(Bits::B8)),
        ("mxfp4", Codec::Mxfp4),
    ] {
        for m in [2, 3, 4, 5, 7, 8, 16, 64, 512] {
            if !wanted("rows") {
                break;
            }
            let rows = 8192;
            let layout = MatrixLayout { rows, cols, codec, order: Order::Tiles };
            let mut data = HugeBuf::zeroed(layout.bytes())?;
            fill(&mut data);
            let x: Vec<f32> = (0..m * cols).map(|i| (i as f32).sin()).collect();
            let mut out = vec![0.0; m * rows];
            let (mut operand, mut best, mut ceiling) = (Operand::default(), f64::MAX, 0.0f64);
            for _ in 0..rounds {
                ceiling = ceiling.max(int8_dot(threads, 1).macs_per_second);
                for _ in 0..5 {
                    let start = Instant::now();
                    operand.prepare(&mut cores, &layout, &x, cols, m);
                    let matrix = MatRef::new(layout, &data);
                    let product = Product { matrix, operand: &operand, out: &mut out, stride: rows };
                    multiply(&mut cores, &mut [product]);
                    best = best.min(start.elapsed().as_secs_f64());
                }
            }
            let speed = (rows * cols * m) as f64 / best;
            println!(
                "{m} rows x {name}: {:.0} GMAC/s ({:.0} % of {:.0})",
                speed / 1e9,
                100.0 * speed / ceiling,
                ceiling / 1e9
            );
        }
    }

    let shape = DeltaShape { key_heads: 16, value_heads: 32, key_dim: 128, value_dim: 128, taps: 4 };
    for rows in [1, 512] {
        if !wanted("delta") {
            break;
        }
        let (channels, width) = (shape.channels(), 32 * 128);
        let (u, z, ab) = (vec![0.1; rows * channels], vec![0.1; rows * width], vec![0.1; rows * 32]);
        let (conv, norm, bias, a) = (vec![0.1; 4 * channels], vec![1.0; 128], vec![0.1; 32], vec![-0.1; 32]);
        let weights = DeltaWeights { conv: &conv, dt_bias: &bias, neg_exp_a: &a, norm: &norm, eps: 1e-6 };
        let (mut state, mut scratch, mut out) =
            (DeltaState::new(&shape), DeltaScratch::default(), vec![0.0; rows * width]);
        let inputs = DeltaInputs { u: &u, z: &z, b: &ab, a: &ab };
        let mut best = f64::MAX;
        for _ in 0..rounds * 2 {
            let start = Instant::now();
            gated_delta(&mut cores, &shape, &weights, &mut state, &mut scratch, &inputs, rows, &mut out);
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!(
            "gated delta, {rows} rows (32 heads of 128 x 128): {:.1} us a row",
            best * 1e6 / rows as f64
        );
    }

    let kv = KvShape { heads: 2, head_dim: 256, kind: KvType::Bf16 };
    for (rows, context) in [(1, 512), (1, 8192), (512, 512)] {
        if !wanted("attention") {
            break;
        }
        let mut cache = KvCache::new(kv);
        let data = vec![0.01; context * 512];
        cache.append(isa, &data, &data, context);
        let (q, mut out) = (vec![0.01; rows * 16 * 256], vec![0.0; rows * 16 * 256]);
        let (mut scratch, mut best) = (AttentionScratch::default(), f64::MAX);
        for _ in 0..rounds * 2 {
            let start = Instant::now();
            attend(&mut cores, &mut scratch, &cache, &q, 16, rows, 0.0625, &mut out);
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!(
            "attention, {rows} rows at context {context} (16 heads over 2, 256 wide): {:.1} us a row",
            best * 1e6 / rows as f64
        );
    }
    Ok(())
}

fn fill(data: &mut [u8]) {
    for (i, b) in data.iter_mut().enumerate() {
        // As bf16 scales these are around 1 and 0.1: denormal ones are slow on some processors, and no model has them.
        *b = if i % 2 == 1 {
            0x3F - (i / 2 % 4 == 3) as u8
        } else {
            (i.wrapping_mul(2_654_435_761) >> 13) as u8
        };
    }
}
