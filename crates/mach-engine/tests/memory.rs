//! What tokenizing takes is never more than was said before. One test: the allocator is counted for the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use mach_engine::TextTokenizer;
use tokenizers::{PreTokenizerWrapper, Tokenizer};

/// Counts what is allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most bytes that were allocated at one time beyond those before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let out = work();
    (out, PEAK.load(Ordering::Relaxed).saturating_sub(before))
}

#[test]
fn tokenizing_takes_no_more_than_was_said() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tokenizer.json");
    let inner = Tokenizer::from_file(path).unwrap();
    let mut whole = inner.clone();
    // One that must see its texts as a whole.
    let digits = r#"{"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true}]}"#;
    whole.with_pre_tokenizer(Some(serde_json::from_str::<PreTokenizerWrapper>(digits).unwrap()));
    let (windows, whole) =
        (TextTokenizer::new(inner, 16384).unwrap(), TextTokenizer::new(whole, 16384).unwrap());
    let refused = windows.encode_within(&"a".repeat(1 << 20), false, &mut |_| false);
    assert!(refused.is_err(), "a word of a megabyte is asked for");
    assert!(windows.memory(1 << 20) < 48 << 20 && whole.memory(1 << 20) > 256 << 20);
    let n = 1 << 18;
    let texts = [
        "Some words that are not very long. ".repeat(n / 35),
        "a\n".repeat(n / 2),
        "0123456789".repeat(n / 10),
        " ".repeat(n),
        "天地玄黄".repeat(n / 12),
        "!a?b".repeat(n / 4),
        "<|im_end|>".repeat(n / 10),
    ];
    for text in &texts {
        for (tokenizer, kind) in [(&windows, "windows"), (&whole, "whole")] {
            for text in [text.as_str(), text.get(..24_000).unwrap_or(text)] {
                // What it remembers of words is not the text's.
                tokenizer.encode(text, true).unwrap();
                let mut more = 0;
                let mut room = |bytes: usize| {
                    more = bytes;
                    true
                };
                let (_, took) = peak(|| tokenizer.encode_within(text, true, &mut room).unwrap());
                let said = tokenizer.memory(text.len()) + more;
                assert!(took <= said, "{kind} {:?}: {took} of {said}", text.get(..12));
            }
        }
    }
}
