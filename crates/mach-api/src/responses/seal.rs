//! Texts that clients carry without reading them: what the model thought, and what a conversation came to.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

/// Bytes of a nonce.
const NONCE: usize = 24;

/// What a sealed text is; one kind is not taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What the model thought.
    Reasoning,
    /// What a conversation came to.
    Compaction,
}

impl Kind {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Reasoning => b"mach: reasoning, 1",
            Self::Compaction => b"mach: compaction, 1",
        }
    }
}

/// Encrypts and authenticates texts by a key of the server's (XChaCha20-Poly1305). The nonce is a keyed hash of the text, so that
/// a text is sealed to the same bytes each time, and no nonce serves two texts.
pub struct Seal {
    cipher: XChaCha20Poly1305,
    nonces: [u8; 32],
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

impl Seal {
    /// By this key.
    pub fn new(key: &[u8; 32]) -> Self {
        let cipher = XChaCha20Poly1305::new(&blake3::derive_key("mach: sealed texts, cipher", key).into());
        Self { cipher, nonces: blake3::derive_key("mach: sealed texts, nonces", key) }
    }

    /// By a key that nobody else has, and that ends with this.
    pub fn fleeting() -> Self {
        let half = || *uuid::Uuid::new_v4().as_bytes();
        let mut key = [0; 32];
        key[..16].copy_from_slice(&half());
        key[16..].copy_from_slice(&half());
        Self::new(&key)
    }

    /// Seals a text.
    pub fn close(&self, kind: Kind, text: &str) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.nonces);
        hasher.update(kind.name()).update(text.as_bytes());
        let mut nonce = [0; NONCE];
        hasher.finalize_xof().fill(&mut nonce);
        let payload = Payload { msg: text.as_bytes(), aad: kind.name() };
        // Only a text of more than 2^38 bytes is refused.
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload).unwrap_or_default();
        let mut bytes = nonce.to_vec();
        bytes.extend(sealed);
        STANDARD_NO_PAD.encode(bytes)
    }

    /// The text, if it was sealed by this key and is whole.
    pub fn open(&self, kind: Kind, sealed: &str) -> Option<String> {
        let bytes = STANDARD_NO_PAD.decode(sealed).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE)?;
        let nonce: [u8; NONCE] = nonce.try_into().ok()?;
        let payload = Payload { msg: sealed, aad: kind.name() };
        String::from_utf8(self.cipher.decrypt(&XNonce::from(nonce), payload).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_sealed_is_read_back_and_nothing_else(text in ".{0,60}", at in any::<prop::sample::Index>(), other in "[A-Za-z0-9+/]") {
            let seal = Seal::new(&[7; 32]);
            let sealed = seal.close(Kind::Reasoning, &text);
            prop_assert_eq!(seal.open(Kind::Reasoning, &sealed), Some(text.clone()));
            prop_assert_eq!(&seal.close(Kind::Reasoning, &text), &sealed);
            prop_assert_eq!(seal.open(Kind::Compaction, &sealed), None);
            prop_assert_eq!(Seal::new(&[8; 32]).open(Kind::Reasoning, &sealed), None);
            let at = at.index(sealed.len());
            let changed = format!("{}{other}{}", &sealed[..at], &sealed[at + 1..]);
            prop_assert!(changed == sealed || seal.open(Kind::Reasoning, &changed).is_none());
            prop_assert_eq!(seal.open(Kind::Reasoning, &sealed[..at]), None);
        }
    }
}
