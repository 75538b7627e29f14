//! The vocabulary as llguidance sees it.

use std::sync::Arc;

use llguidance::toktrie::{INVALID_TOKEN, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::TextTokenizer;

/// Bytes of a token, beyond which the trie cannot hold it. Such tokens are never allowed.
const LONGEST_TOKEN: usize = 1000;

/// All tokens in a trie.
pub(super) struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<TextTokenizer>,
}

impl Vocabulary {
    /// `ends`: the tokens that end an answer.
    pub(super) fn new(tokenizer: Arc<TextTokenizer>, size: usize, ends: &[u32]) -> Self {
        let word = |id: u32| {
            let bytes = tokenizer.bytes(id);
            match (bytes.len() > LONGEST_TOKEN, tokenizer.is_special(id)) {
                (true, _) => Vec::new(),
                // The mark of tokens that text does not spell.
                (false, true) => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
                (false, false) => bytes.to_vec(),
            }
        };
        let words: Vec<Vec<u8>> = (0..size as u32).map(word).collect();
        let info = TokRxInfo::new(size as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let trie = TokTrie::from(&info, &words);
        let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(ends) };
        Self { trie, tokenizer }
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let encode = |text: &str| self.tokenizer.encode(text, false).unwrap_or_default();
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
    }

    /// The model chooses its tokens itself, so text is not forced into the tokenizer's own split.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
