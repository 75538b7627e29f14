//! States that say they can be cut, and then cannot: a miss, never a search without end.

mod common;

use std::any::Any;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use common::{empty, insert, open, tokens};
use mach_models::device::{LayerState, StateSink, StateSource};
use mach_models::{ModelError, SequenceState};
use mach_prefix::segment::Head;
use mach_prefix::{Blank, Kind, Level, PrefixCache, PrefixConfig};

/// A layer of one byte for every position, which no device can cut when it comes to it.
#[derive(Debug, Clone)]
struct Uncut(Vec<u8>);

impl LayerState for Uncut {
    fn copy(&self) -> Box<dyn LayerState> {
        Box::new(self.clone())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn bytes(&self) -> usize {
        self.0.len()
    }
    fn own_bytes(&self) -> usize {
        self.0.len()
    }
    fn pages(&self, _: &mut dyn FnMut(usize, usize)) {}
    fn truncate(&mut self, position: usize) {
        self.0.truncate(position);
    }
    fn take_copies(&mut self, _: &[usize]) -> Vec<Box<dyn LayerState>> {
        Vec::new()
    }
    fn cut(&self, _: usize) -> Option<Box<dyn LayerState>> {
        None
    }
    fn can_be_cut(&self) -> bool {
        true
    }
    fn blank(&self, position: usize) -> Box<dyn LayerState> {
        Box::new(Uncut(vec![0; position]))
    }
    fn exported_bytes(&self) -> usize {
        self.0.len()
    }
    fn export<'a>(&'a self, sink: StateSink<'_, 'a>) -> Result<(), ModelError> {
        sink(self.0.as_slice().into());
        Ok(())
    }
    fn import<'a>(&'a mut self, source: StateSource<'_, 'a>) {
        source(&mut self.0);
    }
}

fn uncut(position: usize) -> SequenceState {
    SequenceState::new(vec![Box::new(Uncut(Vec::new()))]).blank(position)
}

fn of_uncut(dir: &Path) -> PrefixCache {
    let config = PrefixConfig { block: 4, directory: Some(dir.to_owned()), ..PrefixConfig::default() };
    PrefixCache::open(config, Blank { state: uncut(0), draft: None })
}

/// Fails where the work never ends.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(work()));
    receive.recv_timeout(Duration::from_secs(30)).expect("it goes round and round")
}

#[test]
fn a_cut_that_fails_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let cache = of_uncut(dir.path());
    let image = mach_prefix::Image { state: uncut(300), draft: None, logits: None, hot: None };
    let snapshot = mach_prefix::Snapshot {
        root: cache.root(None),
        tokens: tokens(1, 300).into(),
        image,
        kind: Kind::PromptEnd,
    };
    let key = cache.insert(snapshot);
    cache.save(&key);
    cache.close();
    // The same beginning, then something else: only a cut could help.
    let mut prompt = tokens(1, 200);
    prompt.extend(tokens(2, 100));
    let (cache, asked) = (of_uncut(dir.path()), prompt.clone());
    let (found, cache) = in_time(move || (cache.lookup(&cache.root(None), &asked).is_some(), cache));
    assert!(!found && cache.stats().misses == 1);
    let cache = of_uncut(dir.path());
    in_time(move || cache.preload(&cache.root(None), &prompt));
    // What needs no cut is found.
    let cache = of_uncut(dir.path());
    let whole = in_time(move || cache.lookup(&cache.root(None), &tokens(1, 301))).expect("whole");
    assert_eq!((whole.level, whole.image.position()), (Level::L2, 300));
}

#[test]
fn a_segment_that_lies_about_cuts_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(Some(dir.path()), false, |_| ());
    let key = insert(&cache, &tokens(1, 300), false, false, Kind::PromptEnd);
    cache.save(&key);
    cache.close();
    let file = cache.file(&key).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let mut head = Head::parse(&bytes).unwrap();
    assert!(!head.cut && !empty(false).can_be_cut());
    head.cut = true;
    let lie = head.to_bytes();
    bytes[..lie.len()].copy_from_slice(&lie);
    fs::write(&file, bytes).unwrap();
    let mut prompt = tokens(1, 200);
    prompt.extend(tokens(2, 100));
    let cache = open(Some(dir.path()), false, |_| ());
    let (found, cache) = in_time(move || (cache.lookup(&cache.root(None), &prompt).is_some(), cache));
    assert!(!found);
    assert_eq!(cache.stats().l2.unwrap().quarantined, 1);
    assert!(!file.exists());
}
