//! Which weights a model has, to the last byte: states on disk are read and written under that name alone.
//!
//! What `mach convert` wrote vouches for itself. Other files are hashed, once: a hash is kept beside the cache under what its
//! file was then. Until it is known the cache has memory alone, so a start waits for nothing.

use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mach_checkpoint::{Checkpoint, MANIFEST_FILE, WeightFile};
use mach_prefix::{KeptHashes, PrefixCache, PrefixConfig, chain, yield_to_others};
use tracing::{info, warn};

/// Files up to this many bytes are hashed at once: it takes some hundredths of a second.
const AT_ONCE: u64 = 64 << 20;
/// A file that changed so shortly before it was hashed may change again and look the same: its hash is not kept.
const SETTLED: Duration = Duration::from_secs(2);

/// The files that say which weights a model has, as they were before it was loaded.
#[derive(Debug, Clone)]
pub(crate) struct WeightFiles {
    /// Those whose bytes nothing vouches for.
    model: Vec<WeightFile>,
    draft: Vec<WeightFile>,
    /// Whatever else has to stay what it is.
    others: Vec<WeightFile>,
}

impl WeightFiles {
    /// To be called before anything is loaded.
    pub(crate) fn of(checkpoint: &Checkpoint, draft: Option<&Path>) -> Self {
        let draft =
            draft.into_iter().flat_map(crate::prefix::safetensors).filter_map(WeightFile::at).collect();
        let manifest = WeightFile::at(checkpoint.dir().join(MANIFEST_FILE));
        let others = checkpoint.files().into_iter().chain(manifest).collect();
        WeightFiles { model: checkpoint.unverified_files(), draft, others }
    }

    /// Forgets a draft that is not used.
    pub(crate) fn without_draft(mut self) -> Self {
        self.draft.clear();
        self
    }

    fn hashed(&self) -> impl Iterator<Item = &WeightFile> {
        self.model.iter().chain(&self.draft)
    }

    fn are_unchanged(&self) -> bool {
        self.hashed().chain(&self.others).all(WeightFile::is_unchanged)
    }
}

/// The identity in the making.
#[derive(Debug)]
pub(crate) struct Identity {
    namespace: chain::Hash,
    files: WeightFiles,
    kept: KeptHashes,
    settled: Duration,
}

impl Identity {
    /// For a cache with these settings; `None` if it keeps nothing on disk.
    pub(crate) fn new(config: &PrefixConfig, files: WeightFiles) -> Option<Self> {
        let kept = KeptHashes::beside(config.directory.as_ref()?);
        Some(Identity { namespace: config.namespace, files, kept, settled: SETTLED })
    }

    /// Opens the disk of `cache` as soon as the identity is known. Whether that is now.
    pub(crate) fn settle(self, cache: &Arc<PrefixCache>) -> bool {
        let unknown = self.files.hashed().filter(|file| self.kept.get(&file.stamp.to_bytes()).is_none());
        let bytes: u64 = unknown.map(|file| file.stamp.bytes).sum();
        let weak = Arc::downgrade(cache);
        if bytes <= AT_ONCE {
            self.open(&weak, false);
            return true;
        }
        info!(bytes, "the model's files are hashed; until then the prefix cache has memory alone");
        let work = move || {
            yield_to_others();
            self.open(&weak, true);
        };
        if let Err(error) = std::thread::Builder::new().name("mach-identity".into()).spawn(work) {
            warn!(%error, "the model's files cannot be hashed; the prefix cache has memory alone");
        }
        false
    }

    fn open(self, cache: &Weak<PrefixCache>, slowly: bool) {
        let started = Instant::now();
        match self.compute(cache, slowly) {
            Ok(identity) => {
                if slowly {
                    info!(seconds = started.elapsed().as_secs_f64(), "the model's files are hashed");
                }
                let files = self.files;
                if let Some(cache) = cache.upgrade() {
                    cache.open_disk(identity, Arc::new(move || files.are_unchanged()));
                }
            }
            Err(error) if cache.strong_count() > 0 => {
                warn!(%error, "it is not known which weights these are; the prefix cache has memory alone");
            }
            Err(_) => {}
        }
    }

    /// Ends early when the cache is gone. `slowly` leaves half of the time to others.
    fn compute(&self, cache: &Weak<PrefixCache>, slowly: bool) -> io::Result<chain::Hash> {
        let mut parts = vec![self.namespace];
        for file in self.files.hashed() {
            let stamp = file.stamp.to_bytes();
            if let Some(known) = self.kept.get(&stamp) {
                parts.push(known);
                continue;
            }
            let begun = SystemTime::now();
            let mut last = Instant::now();
            let hash = file.hash(&mut |_| {
                if slowly {
                    std::thread::sleep(last.elapsed());
                }
                last = Instant::now();
                match cache.strong_count() {
                    0 => Err(io::Error::other("the server stops")),
                    _ => Ok(()),
                }
            })?;
            parts.push(hash);
            if is_settled(file, begun, self.settled)
                && let Err(error) = self.kept.keep(&stamp, &hash)
            {
                warn!(%error, "the hash of a model's file cannot be kept: it is computed again at the next start");
            }
        }
        if !self.files.are_unchanged() {
            return Err(io::Error::other("the model's files have changed since it was loaded"));
        }
        Ok(chain::namespace(parts.iter().map(|part| part.as_slice())))
    }
}

fn is_settled(file: &WeightFile, now: SystemTime, settled: Duration) -> bool {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos() as i128);
    now - file.stamp.changed.max(file.stamp.modified) >= settled.as_nanos() as i128
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Seek, SeekFrom, Write};
    use std::path::PathBuf;

    use mach_models::SequenceState;
    use mach_prefix::Blank;

    use super::*;

    const FIXTURE: &str = "fixtures/qwen3_moe/bf16";

    fn copy() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(FIXTURE).join(name);
            fs::copy(from, dir.path().join(name)).unwrap();
        }
        dir
    }

    fn identity(model: &Path, cache: &Path, settled: Duration) -> Identity {
        let files = WeightFiles::of(&Checkpoint::open(model).unwrap(), None);
        Identity { namespace: [7; 32], files, kept: KeptHashes::beside(cache), settled }
    }

    fn config(cache: &Path) -> PrefixConfig {
        PrefixConfig { directory: Some(cache.to_owned()), disk_later: true, ..PrefixConfig::default() }
    }

    fn cache(config: PrefixConfig) -> Arc<PrefixCache> {
        Arc::new(PrefixCache::open(config, Blank { state: SequenceState::without_layers(), draft: None }))
    }

    fn computed(identity: &Identity) -> io::Result<chain::Hash> {
        let cache = cache(PrefixConfig::default());
        identity.compute(&Arc::downgrade(&cache), false)
    }

    /// Changes a byte in place and puts the time of modification back.
    fn edit(file: &Path, at: u64) {
        std::thread::sleep(Duration::from_millis(20));
        let modified = fs::metadata(file).unwrap().modified().unwrap();
        let byte = fs::read(file).unwrap()[at as usize];
        let mut open = fs::File::options().write(true).open(file).unwrap();
        open.seek(SeekFrom::Start(at)).unwrap();
        open.write_all(&[byte ^ 1]).unwrap();
        open.set_modified(modified).unwrap();
    }

    fn weights(model: &tempfile::TempDir) -> PathBuf {
        model.path().join("model.safetensors")
    }

    #[test]
    fn a_change_of_any_byte_is_another_identity() {
        let (model, beside) = (copy(), tempfile::tempdir().unwrap());
        let now = || computed(&identity(model.path(), beside.path(), Duration::ZERO)).unwrap();
        let len = fs::metadata(weights(&model)).unwrap().len();
        let mut all = vec![now()];
        assert_eq!(now(), all[0], "kept or computed");
        // Of them most are outside of what a fingerprint samples.
        for at in (1..40).map(|i| len - 1 - i * (len / 60)) {
            edit(&weights(&model), at);
            all.push(now());
        }
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        let fresh = tempfile::tempdir().unwrap();
        let again = computed(&identity(model.path(), fresh.path(), Duration::ZERO)).unwrap();
        assert_eq!(Some(&again), all.last(), "what is kept does not matter");
    }

    #[test]
    fn a_hash_is_kept_once_its_file_is_settled() {
        let (model, beside) = (copy(), tempfile::tempdir().unwrap());
        let kept = |identity: &Identity| {
            identity.files.hashed().all(|file| identity.kept.get(&file.stamp.to_bytes()).is_some())
        };
        let long = identity(model.path(), beside.path(), Duration::from_secs(3600));
        computed(&long).unwrap();
        assert!(!kept(&long));
        let short = identity(model.path(), beside.path(), Duration::ZERO);
        computed(&short).unwrap();
        assert!(kept(&short) && kept(&long));
        edit(&weights(&model), fs::metadata(weights(&model)).unwrap().len() / 2);
        assert!(!kept(&identity(model.path(), beside.path(), Duration::ZERO)));
    }

    #[test]
    fn a_model_that_changed_since_it_was_opened_has_none() {
        let (model, beside) = (copy(), tempfile::tempdir().unwrap());
        computed(&identity(model.path(), beside.path(), Duration::ZERO)).unwrap();
        // Its old hash is kept, and no longer what the file is.
        let opened = identity(model.path(), beside.path(), Duration::ZERO);
        edit(&weights(&model), fs::metadata(weights(&model)).unwrap().len() / 2);
        assert!(computed(&opened).is_err());
        let config = config(beside.path());
        let cache = cache(config);
        opened.settle(&cache);
        assert!(cache.stats().l2.is_none(), "memory alone");
    }

    #[test]
    fn the_disk_opens_under_the_identity_while_the_files_stay() {
        let (model, beside) = (copy(), tempfile::tempdir().unwrap());
        let config = config(beside.path());
        let cache = cache(config.clone());
        assert!(cache.stats().l2.is_none());
        let identity = identity(model.path(), beside.path(), Duration::ZERO);
        let name = chain::hex(&computed(&identity).unwrap()[..16]);
        assert!(identity.settle(&cache));
        assert!(cache.stats().l2.unwrap().writable && beside.path().join(name).is_dir());
        assert!(
            Identity::new(
                &PrefixConfig::default(),
                WeightFiles::of(&Checkpoint::open(model.path()).unwrap(), None)
            )
            .is_none()
        );
    }

    #[test]
    fn nobody_hashes_for_a_cache_that_is_gone() {
        let (model, beside) = (copy(), tempfile::tempdir().unwrap());
        let cache = cache(PrefixConfig::default());
        let weak = Arc::downgrade(&cache);
        drop(cache);
        assert!(identity(model.path(), beside.path(), Duration::ZERO).compute(&weak, true).is_err());
    }
}
