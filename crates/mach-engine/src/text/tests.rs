use std::sync::Arc;

use proptest::prelude::*;

use super::stop::StopMatcher;
use super::stream::TextStream;
use super::utf8::Utf8Decoder;
use crate::TextTokenizer;

fn demo() -> (tokenizers::Tokenizer, TextTokenizer) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tokenizer.json");
    let inner = tokenizers::Tokenizer::from_file(path).unwrap();
    let wrapped = TextTokenizer::new(inner.clone(), 16384).unwrap();
    (inner, wrapped)
}

/// Matches one character at a time, by looking at the whole text so far.
fn stop_reference(text: &str, stops: &[String]) -> (String, bool) {
    for (at, c) in text.char_indices() {
        let end = at + c.len_utf8();
        let cut = stops.iter().filter(|s| text[..end].ends_with(s.as_str())).map(|s| end - s.len()).min();
        if let Some(cut) = cut {
            return (text[..cut].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

proptest! {
    #[test]
    fn stops_do_not_depend_on_how_text_is_cut(
        pieces in prop::collection::vec("[abé]{0,4}", 0..12),
        stops in prop::collection::vec("[abé]{1,4}", 0..4),
    ) {
        let mut matcher = StopMatcher::new(stops.clone());
        let mut out = String::new();
        let (want, stopped) = stop_reference(&pieces.concat(), &stops);
        for piece in &pieces {
            out.push_str(&matcher.push(piece));
            prop_assert!(want.starts_with(&out), "leaked {:?} of {:?}", out, want);
        }
        out.push_str(&matcher.finish());
        prop_assert_eq!((out, matcher.stopped()), (want, stopped));
    }

    #[test]
    fn decoding_does_not_depend_on_how_bytes_are_cut(pieces in prop::collection::vec(prop::collection::vec(
        prop_oneof![any::<u8>(), 0x80u8..0xc0, 0xe0u8..0xf5, Just(b'a')], 0..4), 0..12)) {
        let mut decoder = Utf8Decoder::default();
        let mut out = String::new();
        for piece in &pieces {
            decoder.push(piece, &mut out);
        }
        decoder.finish(&mut out);
        prop_assert_eq!(out, String::from_utf8_lossy(&pieces.concat()).into_owned());
    }
}

#[test]
fn streams_equal_the_tokenizers_own_decoding() {
    let (inner, tokenizer) = demo();
    let mut runner = proptest::test_runner::TestRunner::default();
    runner
        .run(&prop::collection::vec(0u32..16384, 0..60), |ids| {
            let mut stream = TextStream::new(Vec::new(), Arc::default());
            let mut text = String::new();
            for &id in &ids {
                text.push_str(&stream.push(id, Some(id), &tokenizer).text);
            }
            text.push_str(&stream.finish().text);
            prop_assert_eq!(text, inner.decode(&ids, true).unwrap());
            Ok(())
        })
        .unwrap();
}

#[test]
fn characters_are_never_cut() {
    let (_, tokenizer) = demo();
    let text = "naïve 日本語 👩‍👩‍👧 zß水🍌";
    let ids = tokenizer.encode(text, false).unwrap();
    let mut stream = TextStream::new(Vec::new(), Arc::default());
    let mut out = String::new();
    for &id in &ids {
        let piece = stream.push(id, Some(id), &tokenizer).text;
        assert!(!piece.contains('\u{fffd}'));
        out.push_str(&piece);
    }
    assert_eq!(out + &stream.finish().text, text);
}

#[test]
fn tokens_come_out_with_their_text_and_not_inside_a_stop_string() {
    let (_, tokenizer) = demo();
    let ids = tokenizer.encode("one two three four five", false).unwrap();
    let mut stream = TextStream::new(vec!["three f".to_owned()], Arc::default());
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for &id in &ids {
        let out = stream.push(id, Some(id), &tokenizer);
        text.push_str(&out.text);
        tokens.extend(out.tokens);
        if stream.stopped() {
            break;
        }
    }
    assert_eq!(text, "one two ");
    let shown: Vec<u8> = tokens.iter().flat_map(|&id| tokenizer.bytes(id).to_vec()).collect();
    assert!(String::from_utf8(shown).unwrap().starts_with("one two"));
    assert!(!tokens.contains(ids.last().unwrap()));
    assert_eq!(stream.finish().text, "");
}

#[test]
fn a_tokenizer_larger_than_the_model_is_refused() {
    let (inner, _) = demo();
    let error = TextTokenizer::new(inner, 100).unwrap_err().to_string();
    assert!(error.contains("outside the model's vocabulary of 100"), "{error}");
}

#[test]
fn control_tokens_are_hidden_unless_a_parser_looks_for_them() {
    let (_, tokenizer) = demo();
    let ids = tokenizer.encode("a<|im_start|>b<|im_end|>", false).unwrap();
    let text = |show: Arc<[u32]>| -> String {
        let mut stream = TextStream::<()>::new(Vec::new(), show);
        ids.iter().map(|&id| stream.push(id, None, &tokenizer).text).collect()
    };
    assert_eq!(text(Arc::default()), "ab");
    assert_eq!(text([tokenizer.id("<|im_start|>").unwrap()].into()), "a<|im_start|>b");
}

#[test]
fn a_token_is_out_when_all_of_it_is_or_the_text_ends_in_it() {
    let (_, tokenizer) = demo();
    let [he, x, y] = ["he", "x", "y"].map(|text| tokenizer.id(text).unwrap());
    let stream = || TextStream::new(vec!["ex".to_owned()], Arc::default());
    // The `e` may belong to the stop string.
    let mut goes_on = stream();
    let first = goes_on.push(he, Some("he"), &tokenizer);
    assert_eq!((first.text.as_str(), first.tokens), ("h", vec![]));
    let second = goes_on.push(y, Some("y"), &tokenizer);
    assert_eq!((second.text.as_str(), second.tokens), ("ey", vec!["he", "y"]));
    let mut ends = stream();
    ends.push(he, Some("he"), &tokenizer);
    let last = ends.push(x, Some("x"), &tokenizer);
    assert_eq!(
        (last.text.as_str(), last.tokens),
        ("", vec!["he"]),
        "the token of the stop string alone stays"
    );
    assert!(ends.stopped() && ends.finish().tokens.is_empty());
}
