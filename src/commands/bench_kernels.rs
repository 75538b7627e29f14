//! `mach bench CKPT --device gpu --kernels`: where the time of a prompt and of a token goes on a GPU, kernel by kernel.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use mach_bench::token_ids;
use mach_checkpoint::Checkpoint;
use mach_gpu::PassTimes;
use mach_models::{LoadOptions, LogitRows, NoObserver, Segment};

use crate::device::Chosen;

/// Tokens decoded; the last half counts.
const DECODED: usize = 16;

struct Passes {
    prompt: PassTimes,
    decode: Vec<PassTimes>,
}

fn passes(
    device: &Chosen,
    checkpoint: &Checkpoint,
    load: &LoadOptions,
    prompt: usize,
    timed: bool,
) -> Result<Passes> {
    let Some((mut model, profile)) = device.load_profiled(checkpoint, load, timed)? else {
        bail!("--kernels: the model does not run on a GPU (--device gpu)");
    };
    let ids = token_ids(1, prompt + DECODED, model.config().vocab_size);
    let (prompt, decoded) = ids.split_at(prompt);
    let mut taken = PassTimes::default();
    // The first prompt compiles what it meets.
    for _ in 0..2 {
        let mut state = model.new_state();
        model.forward(&mut [Segment::prompt(&mut state, prompt, LogitRows::Last)], &mut NoObserver)?;
        taken = profile.take().pop().unwrap_or_default();
        for id in decoded {
            model.forward(&mut [Segment::decode(&mut state, std::slice::from_ref(id))], &mut NoObserver)?;
        }
    }
    let decode = profile.take().split_off(DECODED / 2);
    Ok(Passes { prompt: taken, decode })
}

fn table(name: &str, passes: &[PassTimes]) {
    let count = passes.len().max(1) as f64;
    let mut kernels: BTreeMap<&str, (usize, Duration)> = BTreeMap::new();
    for timing in passes.iter().flat_map(|pass| &pass.kernels) {
        let kernel = kernels.entry(timing.name).or_default();
        *kernel = (kernel.0 + 1, kernel.1 + timing.took);
    }
    let total: Duration = kernels.values().map(|(_, took)| *took).sum();
    let us = |time: Duration| 1e6 * time.as_secs_f64() / count;
    println!("{name}: {:.1} us in kernels, each timed by itself", us(total));
    let mut kernels: Vec<_> = kernels.into_iter().collect();
    kernels.sort_by_key(|(_, (_, took))| std::cmp::Reverse(*took));
    for (kernel, (times, took)) in kernels {
        let share = 100.0 * took.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        println!("  {kernel:<20} {:>7.1} x  {:>10.1} us  {share:>5.1} %", times as f64 / count, us(took));
    }
}

fn host(name: &str, passes: &[PassTimes]) {
    let count = passes.len().max(1) as f64;
    let us = |part: fn(&PassTimes) -> Duration| {
        passes.iter().map(|pass| 1e6 * part(pass).as_secs_f64()).sum::<f64>() / count
    };
    println!(
        "{name}, the host: {:.1} us recording, {:.1} us waiting for the device, {:.1} us reading back",
        us(|pass| pass.recorded),
        us(|pass| pass.waited),
        us(|pass| pass.read)
    );
}

/// Prints both tables.
pub(crate) fn run(device: &Chosen, checkpoint: &Checkpoint, load: &LoadOptions, prompt: usize) -> Result<()> {
    let plain = passes(device, checkpoint, load, prompt, false)?;
    host(&format!("a prompt of {prompt} tokens"), std::slice::from_ref(&plain.prompt));
    host("a decoded token", &plain.decode);
    let timed = passes(device, checkpoint, load, prompt, true)?;
    table(&format!("a prompt of {prompt} tokens"), std::slice::from_ref(&timed.prompt));
    table("a decoded token", &timed.decode);
    Ok(())
}
