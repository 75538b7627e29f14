//! What tests of shaders share: an adapter, and inputs.
#![allow(dead_code)]

use std::time::Duration;

use mach_gpu::{Choice, Context, GpuError, Pipelines};

/// Long enough for a software adapter on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// The best adapter, a software one too. `None`, and a line that says so, where there is none.
pub(crate) fn context() -> Option<Context> {
    match Context::find(Choice::Auto).or_else(|_| Context::find(Choice::Index(0))) {
        Ok(context) => Some(context),
        Err(error @ (GpuError::NoLoader(_) | GpuError::NoDriver(_) | GpuError::NoAdapter)) => {
            eprintln!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// As [`context`], without some features.
pub(crate) fn context_without(lacking: wgpu::Features) -> Option<Context> {
    let index = context()?.facts().index;
    let found = mach_gpu::adapters().unwrap().into_iter().nth(index).unwrap();
    Some(Context::open_without(&found, lacking).unwrap())
}

/// Of the forms that the adapter is exact with.
pub(crate) fn pipelines() -> Option<Pipelines> {
    pipelines_of(context()?)
}

/// Of the forms that this one is exact with.
pub(crate) fn pipelines_of(context: Context) -> Option<Pipelines> {
    let found = mach_gpu::probe::probe(&context).unwrap();
    assert!(found.exact(), "{found:?}");
    Some(Pipelines::new(&context, found.forms))
}

/// Integers without a pattern (Chris Wellons, "Prospecting for hash functions").
pub(crate) fn hash(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// `n` numbers of both signs with magnitudes in 2^-`spread` to 2^`spread`.
pub(crate) fn floats(n: usize, seed: u32, spread: u32) -> Vec<f32> {
    (0..n as u32)
        .map(|i| {
            let h = hash(i.wrapping_mul(3).wrapping_add(hash(seed)));
            let e = hash(h ^ seed) % (2 * spread + 1);
            f32::from_bits((h & 0x807f_ffff) | ((127 - spread + e) << 23))
        })
        .collect()
}

/// `n` numbers in -`bound` to `bound`.
pub(crate) fn uniform(n: usize, seed: u32, bound: f32) -> Vec<f32> {
    (0..n as u32)
        .map(|i| {
            (hash(i.wrapping_mul(5).wrapping_add(hash(seed))) as f32 / u32::MAX as f32 * 2.0 - 1.0) * bound
        })
        .collect()
}

/// How many differ, and the first that does.
pub(crate) fn differing(got: &[f32], want: &[f32]) -> Option<String> {
    assert_eq!(got.len(), want.len());
    let different =
        |i: &usize| got[*i].to_bits() != want[*i].to_bits() && !(got[*i].is_nan() && want[*i].is_nan());
    let count = (0..got.len()).filter(different).count();
    let at = (0..got.len()).find(different)?;
    Some(format!("{count} of {} differ, the first at {at}: {} is not {}", got.len(), got[at], want[at]))
}
