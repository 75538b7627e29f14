//! The head of a segment file.
//!
//! ```text
//! 0    magic "MACHSEG1"
//! 8    version u32, head length u32 (a multiple of 4096)
//! 16   namespace [32]
//! 48   root [32]
//! 80   key [32]
//! 112  position u64, body length u64, creation (Unix seconds) u64
//! 136  flags u32 (1 draft, 2 can be cut, 4 anchor, 8 warmed), block u32, logits u32, chunk length u32
//! 152  number of the words that follow the checksums u32, zero u32
//! 160  token ids, u32 each
//!      CRC32C of every chunk of the body, u32 each
//!      the hottest experts, u16 words
//!      zeros
//! end  BLAKE3 of everything before, 32 bytes
//! ```
//!
//! All little-endian. The body follows, padded with zeros to a multiple of 4096: the sections of the target's state, of the
//! draft's context, and the logits. Their lengths follow from the model and the position.

use crate::chain::Hash;

/// Heads, bodies and chunks are multiples of this, so that files can be read past the page cache.
pub const ALIGN: usize = 4096;
/// Bytes of the body that share a checksum.
pub const CHUNK: usize = 4 << 20;
/// The version that is written and read.
pub const VERSION: u32 = 2;

const MAGIC: &[u8; 8] = b"MACHSEG1";
const FIXED: usize = 160;
const MOST_HEAD: usize = 256 << 20;

/// What a segment says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Which cache it belongs to.
    pub namespace: Hash,
    /// Namespace and salt.
    pub root: Hash,
    /// Name of the tokens.
    pub key: Hash,
    /// Unix seconds.
    pub created: u64,
    /// The draft's context follows the state.
    pub draft: bool,
    /// Any shorter prefix can be had from it.
    pub cut: bool,
    /// A warmed or system prefix.
    pub anchor: bool,
    /// A warmed one.
    pub warmed: bool,
    /// Tokens of a block.
    pub block: u32,
    /// Number of logits at the end of the body.
    pub logits: u32,
    /// Tokens that the state has seen.
    pub tokens: Vec<u32>,
    /// Bytes of the body, padding aside.
    pub body: u64,
    /// CRC32C of every chunk of the body.
    pub checksums: Vec<u32>,
    /// The experts that the tokens used most, as [`HotExperts::to_words`](mach_experts::HotExperts::to_words) gives them.
    pub hot: Vec<u16>,
}

/// Why bytes are no segment head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Too short, or lengths that contradict each other.
    #[error("truncated")]
    Truncated,
    /// Something else.
    #[error("not a segment")]
    Magic,
    /// Written by another version.
    #[error("of version {0}, not {VERSION}")]
    Version(u32),
    /// Its checksum does not match.
    #[error("the head is damaged")]
    Damaged,
}

/// What a segment that is being written begins with, so that it can be told from files that are not mach's.
pub fn beginning() -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.resize(ALIGN, 0);
    out
}

/// Whether these first bytes are those of a segment of any version, whole or not.
pub fn is_begun(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// Length of the head whose first bytes these are.
pub fn head_len(start: &[u8]) -> Result<usize, HeadError> {
    if start.len() < FIXED {
        return Err(HeadError::Truncated);
    }
    if start.get(..8) != Some(MAGIC) {
        return Err(HeadError::Magic);
    }
    let version = u32_at(start, 8).ok_or(HeadError::Truncated)?;
    if version != VERSION {
        return Err(HeadError::Version(version));
    }
    let len = u32_at(start, 12).ok_or(HeadError::Truncated)? as usize;
    if len < FIXED + 32 || !len.is_multiple_of(ALIGN) || len > MOST_HEAD {
        return Err(HeadError::Damaged);
    }
    Ok(len)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn hash_at(bytes: &[u8], at: usize) -> Option<Hash> {
    bytes.get(at..at + 32)?.try_into().ok()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |b: &[u8]| b.try_into().map(u32::from_le_bytes).unwrap_or_default();
    bytes.chunks_exact(4).map(word).collect()
}

fn short_words(bytes: &[u8]) -> Vec<u16> {
    let word = |b: &[u8]| b.try_into().map(u16::from_le_bytes).unwrap_or_default();
    bytes.chunks_exact(2).map(word).collect()
}

impl Head {
    /// Bytes of the head in the file.
    pub fn len(&self) -> usize {
        (FIXED + 4 * (self.tokens.len() + self.checksums.len()) + 2 * self.hot.len() + 32)
            .next_multiple_of(ALIGN)
    }

    /// Never: a head has a fixed part.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Bytes of the whole file.
    pub fn file_len(&self) -> u64 {
        self.len() as u64 + self.body.next_multiple_of(ALIGN as u64)
    }

    /// The head as it is written.
    pub fn to_bytes(&self) -> Vec<u8> {
        let len = self.len();
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((len as u32).to_le_bytes());
        for hash in [&self.namespace, &self.root, &self.key] {
            out.extend_from_slice(hash);
        }
        for number in [self.tokens.len() as u64, self.body, self.created] {
            out.extend(number.to_le_bytes());
        }
        let flags = u32::from(self.draft) | u32::from(self.cut) << 1 | u32::from(self.anchor) << 2;
        let flags = flags | u32::from(self.warmed) << 3;
        for number in [flags, self.block, self.logits, CHUNK as u32, self.hot.len() as u32, 0] {
            out.extend(number.to_le_bytes());
        }
        for word in self.tokens.iter().chain(&self.checksums) {
            out.extend(word.to_le_bytes());
        }
        for word in &self.hot {
            out.extend(word.to_le_bytes());
        }
        out.resize(len - 32, 0);
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        out
    }

    /// Reads a head from exactly its bytes.
    pub fn parse(bytes: &[u8]) -> Result<Head, HeadError> {
        use HeadError::{Damaged, Truncated};
        let len = head_len(bytes)?;
        let bytes = bytes.get(..len).ok_or(Truncated)?;
        let (content, hash) = bytes.split_at(len - 32);
        if blake3::hash(content).as_bytes() != hash {
            return Err(Damaged);
        }
        let number = |at: usize| u64_at(content, at).and_then(|n| usize::try_from(n).ok()).ok_or(Truncated);
        let (position, body) = (number(112)?, number(120)?);
        let flags = u32_at(content, 136).ok_or(Truncated)?;
        if u32_at(content, 148) != Some(CHUNK as u32) {
            return Err(Damaged);
        }
        let tokens_end = position.checked_mul(4).and_then(|n| n.checked_add(FIXED)).ok_or(Damaged)?;
        let end =
            body.div_ceil(CHUNK).checked_mul(4).and_then(|n| n.checked_add(tokens_end)).ok_or(Damaged)?;
        let hot = u32_at(content, 152).ok_or(Truncated)? as usize;
        let hot_end = hot.checked_mul(2).and_then(|n| n.checked_add(end)).ok_or(Damaged)?;
        let head = Head {
            namespace: hash_at(content, 16).ok_or(Truncated)?,
            root: hash_at(content, 48).ok_or(Truncated)?,
            key: hash_at(content, 80).ok_or(Truncated)?,
            created: u64_at(content, 128).ok_or(Truncated)?,
            draft: flags & 1 != 0,
            cut: flags & 2 != 0,
            anchor: flags & 4 != 0,
            warmed: flags & 8 != 0,
            block: u32_at(content, 140).ok_or(Truncated)?,
            logits: u32_at(content, 144).ok_or(Truncated)?,
            tokens: words(content.get(FIXED..tokens_end).ok_or(Damaged)?),
            body: body as u64,
            checksums: words(content.get(tokens_end..end).ok_or(Damaged)?),
            hot: short_words(content.get(end..hot_end).ok_or(Damaged)?),
        };
        if head.len() != len { Err(Damaged) } else { Ok(head) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            namespace: [1; 32],
            root: [2; 32],
            key: [3; 32],
            created: 1_700_000_000,
            draft: true,
            cut: false,
            anchor: true,
            warmed: false,
            block: 256,
            logits: 9,
            tokens: (0..1000).collect(),
            body: 2 * CHUNK as u64 + 1,
            checksums: vec![7, 8, 9],
            hot: vec![0, 2, 5, 6, 1, 3],
        }
    }

    #[test]
    fn a_head_comes_back() {
        let bytes = head().to_bytes();
        assert_eq!((head_len(&bytes), Head::parse(&bytes)), (Ok(bytes.len()), Ok(head())));
        assert_eq!(head().file_len(), (bytes.len() + 2 * CHUNK + ALIGN) as u64);
    }

    #[test]
    fn what_a_head_holds_is_counted() {
        for (tokens, checksums, hot) in [(0, 0, 0), (3000, 0, 0), (0, 3, 0), (0, 0, 5000), (1000, 1, 2500)] {
            let head = Head {
                tokens: (0..tokens).collect(),
                checksums: (0..checksums).collect(),
                hot: (0..hot).collect(),
                body: u64::from(checksums) * CHUNK as u64,
                ..head()
            };
            let bytes = head.to_bytes();
            let content = FIXED + 4 * (tokens + checksums) as usize + 2 * usize::from(hot) + 32;
            assert_eq!((bytes.len(), head.len()), (content.next_multiple_of(ALIGN), bytes.len()));
            assert_eq!(Head::parse(&bytes), Ok(head));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let bytes = head().to_bytes();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(Head::parse(&bad).is_err(), "bit {} of byte {at}", at % 8);
        }
        for len in (0..bytes.len()).step_by(97) {
            assert!(Head::parse(&bytes[..len]).is_err());
        }
    }
}
