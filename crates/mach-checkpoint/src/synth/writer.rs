//! Writing the shards: two threads, each with its own file and one big buffer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use serde_json::{Map, json};

use super::tensors::Planned;
use super::{SynthError, SynthProgress};

/// Bytes made and written at a time.
const BUFFER: usize = 8 << 20;
/// Making the bytes takes less time than writing them; two threads keep the drive busy.
const THREADS: usize = 2;

/// Writes all tensors and the index; returns the number of shards and the bytes of tensor data.
pub(super) fn write_shards(
    out: &Path,
    tensors: Vec<Planned>,
    largest: u64,
    progress: &mut dyn FnMut(SynthProgress),
) -> Result<(usize, u64), SynthError> {
    let total: u64 = tensors.iter().map(|t| t.bytes as u64).sum();
    // At least two shards, one a thread.
    let limit = largest.min(total.div_ceil(THREADS as u64));
    let mut shards: Vec<Vec<Planned>> = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        if filled >= limit || (filled > 0 && filled + tensor.bytes as u64 > largest) {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += tensor.bytes as u64;
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }

    let count = shards.len();
    let name = |i: usize| format!("model-{:05}-of-{count:05}.safetensors", i + 1);
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|_| {
                let (sender, shards, next) = (sender.clone(), &shards, &next);
                scope.spawn(move || -> Result<(), SynthError> {
                    while let Some((i, shard)) = next_of(shards, next) {
                        if let Err(error) = write_shard(&out.join(name(i)), shard, &sender) {
                            // No further shard is begun.
                            next.store(shards.len(), Ordering::Relaxed);
                            return Err(error);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        drop(sender);
        let mut done = 0;
        for bytes in receiver {
            done += bytes;
            progress(SynthProgress { bytes_done: done, bytes_total: total });
        }
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;

    let weight_map: BTreeMap<&str, String> = shards
        .iter()
        .enumerate()
        .flat_map(|(i, shard)| shard.iter().map(move |t| (t.name.as_str(), name(i))))
        .collect();
    let index = out.join("model.safetensors.index.json");
    let text = json!({"metadata": {"total_size": total}, "weight_map": weight_map}).to_string();
    std::fs::write(&index, text).map_err(SynthError::io(&index))?;
    Ok((count, total))
}

fn next_of<'a, T>(items: &'a [T], next: &AtomicUsize) -> Option<(usize, &'a T)> {
    let i = next.fetch_add(1, Ordering::Relaxed);
    items.get(i).map(|item| (i, item))
}

fn write_shard(path: &Path, tensors: &[Planned], progress: &mpsc::Sender<u64>) -> Result<(), SynthError> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "mlx", "synthetic": "true"}));
    let mut offset = 0;
    for t in tensors {
        let entry = json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [offset, offset + t.bytes]});
        header.insert(t.name.clone(), entry);
        offset += t.bytes;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(64) + 56, b' '); // data starts at a multiple of 64
    let mut file = File::create(path).map_err(SynthError::io(path))?;
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(SynthError::io(path))?;
    file.write_all(&header).map_err(SynthError::io(path))?;
    let mut buffer = vec![0; BUFFER];
    for t in tensors {
        for start in (0..t.bytes).step_by(BUFFER) {
            let length = BUFFER.min(t.bytes - start);
            let Some(part) = buffer.get_mut(..length) else { continue };
            t.content.fill(start, part);
            file.write_all(part).map_err(SynthError::io(path))?;
            // The receiver lives until all senders are gone.
            let _ = progress.send(length as u64);
        }
    }
    Ok(())
}
