//! Where models lie on this machine: directories, and the cache that Hugging Face's programs keep.

use std::path::{Component, Path, PathBuf};

use crate::Exit;

/// The checkpoint's directory: the path as given, or the newest snapshot of `org/name` in the model cache.
pub(crate) fn locate(given: &Path) -> Result<PathBuf, Exit> {
    if given.exists() {
        return Ok(given.to_owned());
    }
    let Some(repo) = repository(given) else { return Ok(given.to_owned()) };
    let Some(hub) = directory() else { return Ok(given.to_owned()) };
    match snapshot(&hub.join(folder(&repo))) {
        Some(snapshot) => Ok(snapshot),
        None => Err(Exit::input(format!(
            "{repo}: there is no such directory, nor is it in the model cache ({}); `hf download {repo}` brings it",
            hub.display()
        ))),
    }
}

/// A model of the cache: `org/name` and its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cached {
    pub(crate) repo: String,
    pub(crate) dir: PathBuf,
}

/// The models of a cache that have a snapshot, by name.
pub(crate) fn cached(hub: &Path) -> Vec<Cached> {
    let folders = std::fs::read_dir(hub).into_iter().flatten().flatten();
    let mut models: Vec<Cached> = folders
        .filter_map(|folder| {
            let name = folder.file_name();
            let repo = name.to_str()?.strip_prefix("models--")?.replacen("--", "/", 1);
            Some(Cached { repo, dir: snapshot(&folder.path())? })
        })
        .collect();
    models.sort_by(|a, b| a.repo.cmp(&b.repo));
    models
}

/// The cache's directory, as Hugging Face's programs find it.
pub(crate) fn directory() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(variable("HF_HOME")?.join("hub")))
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(variable("HOME")?.join(".cache/huggingface/hub")))
}

/// `org/name` if the path is two plain names.
fn repository(path: &Path) -> Option<String> {
    let mut names = Vec::new();
    for part in path.components() {
        let Component::Normal(name) = part else { return None };
        names.push(name.to_str()?);
    }
    match names.as_slice() {
        [org, name] => Some(format!("{org}/{name}")),
        _ => None,
    }
}

fn folder(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

/// The snapshot that `main` means, else the one that was changed last.
fn snapshot(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    if let Ok(commit) = std::fs::read_to_string(folder.join("refs/main")) {
        let main = snapshots.join(commit.trim());
        if !commit.trim().is_empty() && main.is_dir() {
            return Some(main);
        }
    }
    let dirs = std::fs::read_dir(snapshots).ok()?.flatten().filter(|entry| entry.path().is_dir());
    dirs.max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok()).map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_the_cache_are_found_by_name() {
        let hub = tempfile::tempdir().unwrap();
        let model = hub.path().join("models--org--a-name");
        std::fs::create_dir_all(model.join("snapshots/abc")).unwrap();
        std::fs::create_dir_all(model.join("snapshots/def")).unwrap();
        std::fs::create_dir_all(hub.path().join("models--org--empty")).unwrap();
        std::fs::create_dir_all(hub.path().join("datasets--org--other/snapshots/x")).unwrap();
        let found = cached(hub.path());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].repo, "org/a-name");
        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::write(model.join("refs/main"), "abc\n").unwrap();
        assert_eq!(cached(hub.path())[0].dir, model.join("snapshots/abc"));
        std::fs::write(model.join("refs/main"), "gone").unwrap();
        assert!(cached(hub.path())[0].dir.starts_with(model.join("snapshots")));
        assert_eq!(cached(&hub.path().join("nothing")), []);
    }

    #[test]
    fn only_two_plain_names_are_a_repository() {
        assert_eq!(repository(Path::new("org/name")).as_deref(), Some("org/name"));
        for path in ["name", "a/b/c", "/a/b", "./name", "../name", ""] {
            assert_eq!(repository(Path::new(path)), None, "{path}");
        }
        assert_eq!(folder("org/a-name"), "models--org--a-name");
    }
}
