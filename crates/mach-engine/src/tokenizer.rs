//! Text to token ids, and token ids to the bytes they stand for.

mod windows;

use serde_json::Value;
use tokenizers::{PostProcessorWrapper, Tokenizer};

use self::windows::Windows;
use crate::text::TextStream;

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("tokenizer: {0}")]
pub struct TokenizerError(String);

/// A tokenizer with the bytes of every token at hand, so that text can be made token by token without decoding again
/// what came before.
pub struct TextTokenizer {
    inner: Tokenizer,
    /// Where each id's bytes begin in `bytes`; one more entry than ids.
    starts: Vec<u32>,
    bytes: Vec<u8>,
    special: Vec<bool>,
    /// Bytes of the longest token.
    longest: usize,
    /// How long texts are taken apart, if that leaves their tokens as they are.
    windows: Option<(Windows, Around)>,
}

/// What the tokenizer puts around a plain text.
#[derive(Debug, Clone, Default)]
struct Around {
    before: Vec<u32>,
    after: Vec<u32>,
}

/// Bytes that tokenizing takes for each byte of a text, where it is seen as a whole: a word of one byte is the worst.
const WHOLE: usize = 420;
/// The same in windows: text, tokens and the vector that they grow in; and what a window takes.
const WINDOWED: (usize, usize) = (16, 24 << 20);

/// Bytes of a text that one byte of a token may stand for: normalizing composes letters (three bytes of each part of a Hangul
/// syllable become three in all).
const SHRINKAGE: usize = 4;

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer").field("ids", &self.special.len()).finish_non_exhaustive()
    }
}

/// How the vocabulary's strings stand for bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Alphabet {
    /// One visible character a byte, as in GPT-2.
    ByteLevel,
    /// Plain text with marks for spaces and `<0x41>` for a byte, as in SentencePiece: what is put in whose place.
    ByteFallback(Vec<(String, String)>),
}

impl TextTokenizer {
    /// Wraps a tokenizer for a model with `vocab_size` rows of logits.
    pub fn new(inner: Tokenizer, vocab_size: usize) -> Result<Self, TokenizerError> {
        let mut inner = inner;
        // Left on, these would cut or pad prompts.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| TokenizerError(e.to_string()))?;
        let alphabet = alphabet(&inner)?;
        let vocab = inner.get_vocab(true);
        let added = inner.get_added_tokens_decoder();
        if let Some((token, id)) = vocab.iter().find(|(_, id)| **id as usize >= vocab_size) {
            return Err(TokenizerError(format!(
                "token {token:?} has id {id}, outside the model's vocabulary of {vocab_size}"
            )));
        }
        let mut tokens: Vec<Option<Vec<u8>>> = vec![None; vocab_size];
        let mut special = vec![false; vocab_size];
        for (token, id) in &vocab {
            if let Some(slot) = tokens.get_mut(*id as usize) {
                *slot = Some(token_bytes(token, &alphabet));
            }
        }
        for (id, token) in &added {
            if let (Some(slot), Some(flag)) = (tokens.get_mut(*id as usize), special.get_mut(*id as usize)) {
                // Control tokens are names; others are text that the decoder reads as any.
                *slot = Some(if token.special {
                    token.content.clone().into_bytes()
                } else {
                    token_bytes(&token.content, &alphabet)
                });
                *flag = token.special;
            }
        }
        let windows = Windows::of(&inner).zip(around(&inner));
        if windows.is_some() {
            // It adds what is known now, and moves offsets, which are to be those of the text.
            inner.with_post_processor(None::<PostProcessorWrapper>);
        }
        let mut starts = vec![0];
        let mut bytes = Vec::new();
        for token in &tokens {
            bytes.extend(token.as_deref().unwrap_or_default());
            starts.push(u32::try_from(bytes.len()).map_err(|_| TokenizerError("too much text".into()))?);
        }
        let longest = starts.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap_or(0) as usize;
        Ok(Self { inner, starts, bytes, special, longest, windows })
    }

    /// The most bytes that tokenizing a text of this length takes, its tokens included, if no word in it is very long.
    pub fn memory(&self, bytes: usize) -> usize {
        match &self.windows {
            // What has the size of a window is seen as a whole.
            Some(_) => {
                bytes.saturating_mul(WHOLE).min(bytes.saturating_mul(WINDOWED.0).saturating_add(WINDOWED.1))
            }
            None => bytes.saturating_mul(WHOLE),
        }
    }

    /// Bytes of a text that the most tokens say, beyond which [`exceeds`](Self::exceeds) holds.
    pub fn longest_text(&self, tokens: usize) -> usize {
        tokens.saturating_mul(self.longest.max(1)).saturating_mul(SHRINKAGE)
    }

    /// Whether a text is so long that so many tokens cannot say it, which is told without looking at it.
    pub fn exceeds(&self, text: &str, tokens: usize) -> bool {
        text.len() > self.longest_text(tokens)
    }

    /// Token ids of a text. Text that spells a special token becomes that token, as in `transformers`.
    /// `add_special` adds what the tokenizer puts around a plain text (nothing for most chat models); rendered templates
    /// bring their own.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_within(text, add_special, &mut |_| true)
    }

    /// The same where memory is counted: `room` is asked for bytes beyond [`memory`](Self::memory), all of them at each time, which a
    /// word that is longer than a window takes; for none of them before each window of a long text. An error if it says no.
    pub fn encode_within(
        &self,
        text: &str,
        add_special: bool,
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let Some((windows, around)) = &self.windows else {
            let encoding = self.inner.encode_fast(text, add_special);
            return Ok(encoding.map_err(|e| TokenizerError(e.to_string()))?.get_ids().to_vec());
        };
        let mut tokens = Vec::new();
        if add_special {
            tokens.extend(&around.before);
        }
        windows.encode(&self.inner, text, &mut tokens, &mut |bytes| room(bytes.saturating_mul(WHOLE)))?;
        if add_special {
            tokens.extend(&around.after);
        }
        Ok(tokens)
    }

    /// The bytes of a token; empty for ids without one.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(&a), Some(&b)) => self.bytes.get(a as usize..b as usize).unwrap_or_default(),
            _ => &[],
        }
    }

    /// The text of tokens as an answer streams it: one at a time, control tokens but those of `show` left out.
    pub fn stream(&self, ids: &[u32], show: &[u32]) -> String {
        let mut stream = TextStream::<()>::new(Vec::new(), show.into());
        let mut text: String = ids.iter().map(|&id| stream.push(id, None, self).text).collect();
        text.push_str(&stream.finish().text);
        text
    }

    /// Whether a token is a control token that answers do not show.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The id of a token written like this.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

/// What is put around a plain text, if it is the same around all.
fn around(tokenizer: &Tokenizer) -> Option<Around> {
    let ids = |text: &str, special: bool| Some(tokenizer.encode_fast(text, special).ok()?.get_ids().to_vec());
    let (plain, whole, nothing) = (ids("a", false)?, ids("a", true)?, ids("", true)?);
    let at = whole.windows(plain.len().max(1)).position(|part| part == plain)?;
    let (before, rest) = whole.split_at_checked(at)?;
    let after = rest.get(plain.len()..)?;
    (nothing == [before, after].concat()).then(|| Around { before: before.to_vec(), after: after.to_vec() })
}

/// Reads the alphabet off the decoder.
fn alphabet(tokenizer: &Tokenizer) -> Result<Alphabet, TokenizerError> {
    let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(|e| TokenizerError(e.to_string()))?;
    let mut steps = Vec::new();
    collect_steps(&decoder, &mut steps);
    let kind = |step: &&Value| step.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let kinds: Vec<String> = steps.iter().map(kind).collect();
    if kinds.iter().any(|k| k == "ByteLevel") {
        return Ok(Alphabet::ByteLevel);
    }
    if !kinds.iter().any(|k| k == "ByteFallback" || k == "Metaspace") {
        return Err(TokenizerError(format!(
            "decoder {kinds:?} is not supported; known: ByteLevel, ByteFallback, Metaspace"
        )));
    }
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let replaced = steps.iter().zip(&kinds).filter_map(|(step, kind)| match kind.as_str() {
        "Metaspace" => Some((text(step.get("replacement"))?, " ".to_owned())),
        "Replace" => Some((text(step.get("pattern")?.get("String"))?, text(step.get("content"))?)),
        _ => None,
    });
    Ok(Alphabet::ByteFallback(replaced.collect()))
}

fn collect_steps<'a>(decoder: &'a Value, steps: &mut Vec<&'a Value>) {
    if decoder.get("type").is_some() {
        steps.push(decoder);
    }
    for inner in decoder.get("decoders").and_then(Value::as_array).into_iter().flatten() {
        collect_steps(inner, steps);
    }
}

fn token_bytes(token: &str, alphabet: &Alphabet) -> Vec<u8> {
    match alphabet {
        Alphabet::ByteLevel => token
            .chars()
            .map(byte_of_char)
            .collect::<Option<Vec<u8>>>()
            .unwrap_or_else(|| token.as_bytes().to_vec()),
        Alphabet::ByteFallback(replaced) => {
            let byte = token
                .strip_prefix("<0x")
                .and_then(|t| t.strip_suffix('>'))
                .filter(|t| t.len() == 2)
                .and_then(|t| u8::from_str_radix(t, 16).ok());
            let plain =
                || replaced.iter().fold(token.to_owned(), |token, (from, to)| token.replace(from, to));
            byte.map_or_else(|| plain().into_bytes(), |byte| vec![byte])
        }
    }
}

/// Inverse of GPT-2's table: printable Latin-1 bytes stand for themselves, the other 68 bytes, in order, for the
/// characters from U+0100 on.
fn byte_of_char(c: char) -> Option<u8> {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(c) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|&b| printable(b)),
        code => (0..=255u8).filter(|&b| !printable(b)).nth(code as usize - 0x100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let mut seen = [false; 256];
        for code in 0..0x200u32 {
            if let Some(b) = char::from_u32(code).and_then(byte_of_char) {
                assert!(!std::mem::replace(&mut seen[b as usize], true));
            }
        }
        assert!(seen.iter().all(|&s| s));
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
    }

    #[test]
    fn byte_fallback_tokens() {
        let alphabet = Alphabet::ByteFallback(vec![("▁".into(), " ".into())]);
        assert_eq!(token_bytes("<0xE2>", &alphabet), [0xe2]);
        assert_eq!(token_bytes("▁a<0x", &alphabet), b" a<0x");
        assert_eq!(token_bytes("▁a", &Alphabet::ByteFallback(Vec::new())), "▁a".as_bytes());
    }

    #[test]
    fn added_tokens_decode_as_the_decoder_says() {
        let tokenizer = |decoder: &str| {
            let json = format!(
                r#"{{"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
                "post_processor": null, "decoder": {decoder},
                "added_tokens": [
                    {{"id": 0, "content": "▁▁", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": false}},
                    {{"id": 1, "content": "<▁end▁>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true}},
                    {{"id": 2, "content": "Ġé x", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": false}},
                    {{"id": 3, "content": "ĠĠ", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": false}}],
                "model": {{"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                    "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true,
                    "vocab": {{"▁▁": 0}}, "merges": []}}}}"#
            );
            let inner = Tokenizer::from_bytes(json).unwrap();
            (inner.clone(), TextTokenizer::new(inner, 4).unwrap())
        };
        let sentence_piece = r#"{"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}"#;
        let byte_level =
            r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"#;
        let (_, tokenizer_of_gemma) = tokenizer(sentence_piece);
        assert_eq!(tokenizer_of_gemma.bytes(0), b"  ");
        assert_eq!(tokenizer_of_gemma.bytes(1), "<▁end▁>".as_bytes());
        for decoder in [sentence_piece, byte_level] {
            let (inner, ours) = tokenizer(decoder);
            for ids in [[0, 2], [2, 3], [3, 0], [1, 0]] {
                assert_eq!(ours.stream(&ids, &[]), inner.decode(&ids, true).unwrap(), "{ids:?} {decoder}");
            }
        }
    }
}
