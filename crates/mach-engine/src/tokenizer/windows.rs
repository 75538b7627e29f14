//! Long texts, tokenized window by window to the same tokens: a tokenizer takes hundreds of bytes for each byte of a text while it
//! works on it.
//!
//! A window begins where a word (a piece that the pre-tokenizer makes) begins, and only words that end well before the window does are
//! taken from it. That gives what the whole text gives if the split into words goes from left to right, and neither looks back nor far
//! ahead: one regular expression without lookbehind, anchors and lookahead but `(?!\S)`. Tokenizers of other kinds see every text
//! as a whole.

use serde_json::Value;
use tokenizers::{Encoding, Tokenizer};

use super::TokenizerError;

/// Bytes of a window.
const WINDOW: usize = 32 << 10;
/// Bytes at the end of a window that what follows may change, at least.
const MARGIN: usize = 1 << 10;
/// Words there, at least.
const WORDS: usize = 4;

/// How a tokenizer's long texts are taken apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    margin: usize,
}

impl Windows {
    /// `None` if texts must be seen as a whole.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let json = |part: serde_json::Result<Value>| part.ok();
        let normalizer = json(serde_json::to_value(tokenizer.get_normalizer()))?;
        if !(normalizer.is_null() || normalizer.get("type")? == "NFC") {
            return None;
        }
        if !splits_locally(&json(serde_json::to_value(tokenizer.get_pre_tokenizer()))?) {
            return None;
        }
        let added = tokenizer.get_added_tokens_decoder();
        if added.values().any(|token| token.single_word || token.lstrip || token.rstrip) {
            return None;
        }
        let longest = added.values().map(|token| token.content.len()).max().unwrap_or(0);
        Some(Self { margin: MARGIN.max(4 * longest) })
    }

    /// Appends the tokens of a text, without what a post-processor adds. `room` is asked before each window.
    pub(super) fn encode(
        self,
        tokenizer: &Tokenizer,
        mut text: &str,
        out: &mut Vec<u32>,
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), TokenizerError> {
        let failed = |e: tokenizers::Error| TokenizerError(e.to_string());
        let mut size = WINDOW.max(4 * self.margin);
        while text.len() > size {
            if !room(0) {
                return Err(TokenizerError("it was given up".into()));
            }
            let window = text.get(..text.floor_char_boundary(size)).unwrap_or(text);
            let encoding = tokenizer.encode(window, false).map_err(failed)?;
            let Some((tokens, at)) = self.cut(window, &encoding) else {
                // One word is longer than the window.
                size = size.saturating_mul(2);
                if !room(size.min(text.len())) {
                    return Err(TokenizerError("a word is longer than there is memory for".into()));
                }
                continue;
            };
            out.extend(encoding.get_ids().iter().take(tokens));
            text = text.get(at..).unwrap_or_default();
            size = WINDOW.max(4 * self.margin);
        }
        out.extend(tokenizer.encode_fast(text, false).map_err(failed)?.get_ids());
        Ok(())
    }

    /// The last beginning of a word in a window that what follows cannot move: tokens and bytes before it.
    fn cut(self, window: &str, encoding: &Encoding) -> Option<(usize, usize)> {
        let (words, offsets) = (encoding.get_word_ids(), encoding.get_offsets());
        let last = window.len().checked_sub(self.margin)?;
        let mut behind = 0;
        for at in (1..words.len()).rev() {
            let (before, word) = (words.get(at - 1)?, words.get(at)?);
            if before == word {
                continue;
            }
            behind += 1;
            let (end, start) = (offsets.get(at - 1)?.1, offsets.get(at)?.0);
            let begins = window.get(start..).and_then(|rest| rest.chars().next());
            if behind > WORDS && start <= last && start == end && begins.is_some_and(stands_alone) {
                return Some((at, start)).filter(|(_, start)| *start > 0);
            }
        }
        None
    }
}

/// Whether a character is never changed by what is before it, however a text is normalized.
fn stands_alone(c: char) -> bool {
    c.is_ascii() || ('\u{4e00}'..='\u{9fff}').contains(&c)
}

fn splits_locally(pre_tokenizer: &Value) -> bool {
    let of_type = |value: &Value, name: &str| value.get("type").is_some_and(|kind| kind == name);
    let is =
        |value: &Value, field: &str, wanted: bool| value.get(field).and_then(Value::as_bool) == Some(wanted);
    let bytes = |value: &Value, splits: bool| {
        of_type(value, "ByteLevel") && is(value, "add_prefix_space", false) && is(value, "use_regex", splits)
    };
    let split = |value: &Value| {
        of_type(value, "Split")
            && is(value, "invert", false)
            && value.get("behavior").is_some_and(|behavior| behavior == "Isolated")
            && value.pointer("/pattern/Regex").and_then(Value::as_str).is_some_and(looks_right_ahead)
    };
    match pre_tokenizer.get("pretokenizers").and_then(Value::as_array).map(Vec::as_slice) {
        Some([one]) => bytes(one, true),
        Some([first, second]) => split(first) && bytes(second, false),
        _ => bytes(pre_tokenizer, true),
    }
}

/// Whether what a pattern matches depends on the match and the character behind it alone.
fn looks_right_ahead(pattern: &str) -> bool {
    let plain = pattern.replace(r"(?!\S)", "").replace("[^", "[");
    let looks = ["(?=", "(?!", "(?<", "^", "$", r"\b", r"\B", r"\A", r"\G", r"\z", r"\Z", r"\K"];
    !looks.iter().any(|look| plain.contains(look))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn demo() -> Tokenizer {
        Tokenizer::from_file(concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tokenizer.json")).unwrap()
    }

    fn check(tokenizer: &Tokenizer, text: &str) {
        let mut tokens = Vec::new();
        Windows::of(tokenizer).unwrap().encode(tokenizer, text, &mut tokens, &mut |_| true).unwrap();
        assert!(tokens == tokenizer.encode_fast(text, false).unwrap().get_ids(), "{} bytes", text.len());
    }

    #[test]
    fn patterns_that_look_around_are_seen() {
        assert!(looks_right_ahead(r" ?\p{L}+|[^\r\n]?\p{N}{1,3}|\s+(?!\S)|\s+"));
        for pattern in [r"^a", r"\s+(?=a)", r"(?<!a)b", r"a\b", r"a$", r"\s+(?!\S)a(?!b)"] {
            assert!(!looks_right_ahead(pattern), "{pattern}");
        }
    }

    #[test]
    fn tokens_that_take_in_what_is_beside_them_need_the_whole_text() {
        use tokenizers::AddedToken;
        assert!(Windows::of(&demo()).is_some());
        let plain = || AddedToken::from("<beside>", false);
        for (token, fits) in [
            (plain(), true),
            (plain().single_word(true), false),
            (plain().lstrip(true), false),
            (plain().rstrip(true), false),
        ] {
            let mut tokenizer = demo();
            tokenizer.add_tokens([token.clone()]).unwrap();
            assert_eq!(Windows::of(&tokenizer).is_some(), fits, "{token:?}");
        }
    }

    #[test]
    fn words_longer_than_a_window_and_texts_of_nothing_but_space() {
        let tokenizer = demo();
        let n = 3 * WINDOW;
        for text in [
            "a".repeat(n),
            " ".repeat(n),
            "\n".repeat(n),
            " \n".repeat(n),
            "x ".repeat(n) + &"é\u{301}".repeat(n),
            "<|im_end|>".repeat(n / 8),
            "天地玄黄，".repeat(n / 8),
            format!("{}b{}", " \n\t".repeat(n / 3 + 7), "\u{301}".repeat(n)),
        ] {
            check(&tokenizer, &text);
        }
    }

    #[test]
    fn words_are_left_at_the_end_of_a_window_however_long_they_are() {
        // The last word is longer than the margin: bytes alone would let the window end right before it.
        let tokenizer = demo();
        let windows = Windows::of(&tokenizer).unwrap();
        let window = "word ".repeat(100) + &"a".repeat(2 * windows.margin);
        let encoding = tokenizer.encode(window.as_str(), false).unwrap();
        let (tokens, at) = windows.cut(&window, &encoding).unwrap();
        let mut behind = encoding.get_word_ids()[tokens..].to_vec();
        behind.dedup();
        assert_eq!(behind.len(), WORDS + 1, "{:?}", &window[at..at + 20]);
        assert_eq!(encoding.get_offsets()[tokens].0, at);
        // With short words the bytes decide.
        let window = "word ".repeat(1000);
        let encoding = tokenizer.encode(window.as_str(), false).unwrap();
        let (_, at) = windows.cut(&window, &encoding).unwrap();
        assert!((window.len() - windows.margin - 5..=window.len() - windows.margin).contains(&at), "{at}");
    }

    #[test]
    fn a_long_text_can_be_given_up_between_its_windows() {
        let (tokenizer, text) = (demo(), "word ".repeat(2 * WINDOW));
        let given_up_after = |windows: usize| {
            let (mut tokens, mut asked) = (Vec::new(), 0);
            let mut room = |more| {
                assert_eq!(more, 0, "no word is long");
                asked += 1;
                asked <= windows
            };
            let done = Windows::of(&tokenizer).unwrap().encode(&tokenizer, &text, &mut tokens, &mut room);
            (done.is_ok(), asked, tokens.len())
        };
        let (whole, windows, tokens) = given_up_after(usize::MAX);
        assert!(whole && windows >= 9, "{windows} windows");
        let (done, asked, some) = given_up_after(3);
        assert_eq!((done, asked), (false, 4));
        assert!(some > 0 && some < tokens / 2, "{some} of {tokens}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn windows_give_the_tokens_of_the_whole(
            pieces in prop::collection::vec(
                (prop_oneof![
                    r"[a-zA-Z]{1,12}", r"[ \n\t\r]{1,6}", r"[0-9]{1,9}", r"[!-/:-@]{1,5}", r"\PC{1,6}",
                    Just("'ll".to_owned()), Just("<|im_start|>".to_owned()), Just("<|im_".to_owned()),
                    Just("e\u{301}\u{327}".to_owned()), Just("\u{1100}\u{1161}\u{11a8}".to_owned()),
                ], 1..40usize),
                200..1200,
            )
        ) {
            let text: String = pieces.iter().map(|(text, times)| text.repeat(*times)).collect();
            check(&demo(), &text);
        }
    }
}
