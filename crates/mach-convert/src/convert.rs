//! The two conversions, from beginning to end.

use std::path::{Path, PathBuf};

use mach_checkpoint::{Checkpoint, MANIFEST_FILE, MtpNaming, SIDECAR_DIR};
use mach_experts::{LayerEntry, MANIFEST_FORMAT, Manifest, RECORD_ALIGN, Sidecar, source_id};

use crate::ConvertError;
use crate::layers::{Layer, remove_journals};
use crate::matrix::Quantize;
use crate::resident::Resident;
use crate::staging::{Staging, parent, sync_dir, write_file};

/// Files that a converted checkpoint takes over as they are, where the source has them.
const COPIED: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "synthetic.json",
    "README.md",
    "LICENSE",
];

/// A checkpoint's draft model, taken over as it is.
const DRAFT: &str = "draft";

/// What to convert.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Directory to make; its parent exists, itself it does not or is empty.
    pub out: PathBuf,
    /// Rounds float weights; `None` keeps every bit.
    pub quantize: Option<Quantize>,
    /// Threads; 0 for all cores.
    pub threads: usize,
}

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done, those that were there already included.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// What a conversion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Bytes outside experts.
    pub resident_bytes: u64,
    /// Bytes of records.
    pub expert_bytes: u64,
    /// Layers with experts.
    pub layers: usize,
    /// Tensors of the source that the model does not use (vision, prediction heads that are not known) and that were left out.
    pub left_out: usize,
    /// The result was there already.
    pub unchanged: bool,
}

/// Writes `source` in engine format to `options.out`.
pub fn convert(
    source: &Checkpoint,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, ConvertError> {
    if let Some(quantize) = options.quantize {
        quantize.check()?;
    }
    refuse_converted(source)?;
    let out = options.out.as_path();
    let id = match options.quantize {
        None => source_id(source),
        Some(q) => format!("{}+affine{}g{}", source_id(source), q.bits, q.group),
    };
    let resident = Resident::of(source, options.quantize, &id)?;
    let layers = Layers::of(source, options.quantize)?;
    let mut report = Report {
        resident_bytes: resident.bytes(),
        expert_bytes: layers.bytes(),
        layers: layers.0.len(),
        left_out: left_out(source),
        unchanged: false,
    };
    if out.exists() && std::fs::read_dir(out).map_err(ConvertError::io(out))?.next().is_some() {
        if is_result(out, &id) {
            report.unchanged = true;
            return Ok(report);
        }
        return Err(ConvertError::Input(format!("{}: is there and not empty", out.display())));
    }
    let name = out
        .file_name()
        .ok_or_else(|| ConvertError::Input(format!("{}: not a directory name", out.display())))?;
    let mut partial = name.to_owned();
    partial.push(".partial");
    let staging = Staging::begin(out.with_file_name(partial), &id)?;
    check_space(staging.dir(), report.resident_bytes + report.expert_bytes)?;

    let mut meter = Meter { done: 0, total: report.resident_bytes + report.expert_bytes, progress };
    let sidecar = staging.dir().join(SIDECAR_DIR);
    std::fs::create_dir_all(&sidecar).map_err(ConvertError::io(&sidecar))?;
    let entries = layers.write(&sidecar, threads(options.threads), &mut meter)?;
    resident.write(staging.dir(), threads(options.threads), &mut |n| meter.add(n))?;
    copy_files(source.dir(), staging.dir())?;
    let manifest = manifest(source, &id, entries);
    write_manifest(&staging.dir().join(MANIFEST_FILE), &manifest)?;
    staging.finish(out, &[&sidecar])?;
    remove_journals(&out.join(SIDECAR_DIR), &manifest.layers);
    Ok(report)
}

/// Writes `expert_sidecar/` beside the tensors of a checkpoint, or writes it anew.
pub fn export_sidecar(
    checkpoint: &Checkpoint,
    threads_wanted: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, ConvertError> {
    refuse_converted(checkpoint)?;
    let id = source_id(checkpoint);
    let layers = Layers::of(checkpoint, None)?;
    if layers.0.is_empty() {
        let dir = checkpoint.dir().display();
        return Err(ConvertError::Input(format!("{dir}: there are no routed experts to write")));
    }
    let report = Report {
        resident_bytes: 0,
        expert_bytes: layers.bytes(),
        layers: layers.0.len(),
        left_out: 0,
        unchanged: false,
    };
    let out = checkpoint.dir().join(SIDECAR_DIR);
    let staging = Staging::begin(checkpoint.dir().join(format!("{SIDECAR_DIR}.partial")), &id)?;
    check_space(staging.dir(), report.expert_bytes)?;
    let mut meter = Meter { done: 0, total: report.expert_bytes, progress };
    let entries = layers.write(staging.dir(), threads(threads_wanted), &mut meter)?;
    let manifest = manifest(checkpoint, &id, entries);
    write_manifest(&staging.dir().join("manifest.json"), &manifest)?;
    // The old one makes room; should the machine stop right here, the staging directory has all that a second run needs.
    let old = checkpoint.dir().join(format!("{SIDECAR_DIR}.old"));
    if out.exists() {
        if old.exists() {
            std::fs::remove_dir_all(&old).map_err(ConvertError::io(&old))?;
        }
        std::fs::rename(&out, &old).map_err(ConvertError::io(&out))?;
    }
    staging.finish(&out, &[])?;
    if old.exists() {
        std::fs::remove_dir_all(&old).map_err(ConvertError::io(&old))?;
    }
    remove_journals(&out, &manifest.layers);
    Ok(report)
}

/// The layers that have experts.
struct Layers<'a>(Vec<Layer<'a>>);

impl<'a> Layers<'a> {
    fn of(checkpoint: &'a Checkpoint, quantize: Option<Quantize>) -> Result<Self, ConvertError> {
        let moe = checkpoint.config().moe_layers.iter().enumerate().filter(|(_, moe)| **moe);
        moe.map(|(layer, _)| Layer::of(checkpoint, layer, quantize)).collect::<Result<_, _>>().map(Self)
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(Layer::length).sum()
    }

    fn write(
        &self,
        dir: &Path,
        threads: usize,
        meter: &mut Meter<'_>,
    ) -> Result<Vec<LayerEntry>, ConvertError> {
        self.0.iter().map(|layer| layer.write(dir, threads, &mut |n| meter.add(n))).collect()
    }
}

struct Meter<'a> {
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl Meter<'_> {
    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        (self.progress)(Progress { bytes_done: self.done, bytes_total: self.total });
    }
}

fn threads(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

fn refuse_converted(source: &Checkpoint) -> Result<(), ConvertError> {
    match source.resident_index() {
        None => Ok(()),
        Some(_) => Err(ConvertError::Input(format!("{}: already in engine format", source.dir().display()))),
    }
}

/// Whether `out` is what converting the checkpoint `id` gives.
fn is_result(out: &Path, id: &str) -> bool {
    Checkpoint::open(out).is_ok_and(|checkpoint| {
        checkpoint.resident_index().is_some_and(|index| index.source == id)
            && Sidecar::open(&checkpoint).is_ok()
    })
}

/// Tensors outside the text model.
fn left_out(source: &Checkpoint) -> usize {
    let config = source.config();
    // The block for the token after the next, where it lies beside the text model.
    let block = source.family().mtp == MtpNaming::Root && source.has("mtp.fc.weight");
    let used = |name: &str| {
        name.starts_with(&config.tensor_prefix)
            || name.starts_with(&format!("{}.", config.head_module))
            || block && name.starts_with("mtp.")
    };
    let visual = format!("{}visual.", config.tensor_prefix);
    source.names().filter(|name| !used(name) || name.starts_with(&visual)).count()
}

fn manifest(source: &Checkpoint, id: &str, layers: Vec<LayerEntry>) -> Manifest {
    let config = source.config();
    Manifest {
        format: MANIFEST_FORMAT.0.to_owned(),
        version: MANIFEST_FORMAT.1,
        architecture: config.model_type.clone(),
        source: id.to_owned(),
        record_align: RECORD_ALIGN,
        num_experts: config.moe.num_experts,
        layers,
    }
}

fn write_manifest(path: &Path, manifest: &Manifest) -> Result<(), ConvertError> {
    use std::io::Write;
    let json = manifest.to_json()?;
    write_file(path, |file| file.write_all(&json))
}

/// Refuses to begin what cannot end: bytes in the staging directory count as written.
fn check_space(dir: &Path, bytes: u64) -> Result<(), ConvertError> {
    let there = size_of_files(dir).map_err(ConvertError::io(dir))?;
    let needed = bytes.saturating_sub(there);
    let stat = rustix::fs::statvfs(dir).map_err(|e| ConvertError::io(dir)(e.into()))?;
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    if available < needed {
        let dir = parent(dir).unwrap_or(dir).to_owned();
        return Err(ConvertError::Space { dir, needed, available });
    }
    Ok(())
}

fn size_of_files(dir: &Path) -> std::io::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        total += if meta.is_dir() { size_of_files(&entry.path())? } else { meta.len() };
    }
    Ok(total)
}

fn copy_files(from: &Path, to: &Path) -> Result<(), ConvertError> {
    for name in COPIED {
        copy(&from.join(name), &to.join(name))?;
    }
    let draft = from.join(DRAFT);
    if draft.is_dir() {
        let target = to.join(DRAFT);
        std::fs::create_dir_all(&target).map_err(ConvertError::io(&target))?;
        for entry in std::fs::read_dir(&draft).map_err(ConvertError::io(&draft))? {
            let entry = entry.map_err(ConvertError::io(&draft))?;
            copy(&entry.path(), &target.join(entry.file_name()))?;
        }
        sync_dir(&target)?;
    }
    Ok(())
}

/// Copies a regular file, if there is one.
fn copy(from: &Path, to: &Path) -> Result<(), ConvertError> {
    if !from.is_file() {
        return Ok(());
    }
    let mut source = std::fs::File::open(from).map_err(ConvertError::io(from))?;
    write_file(to, |file| std::io::copy(&mut source, file).map(|_| ()))
}
