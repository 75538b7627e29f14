//! Chained hashes over token ids: the hash after a block depends on everything before it.

/// A hash.
pub type Hash = [u8; 32];

/// Which cache: everything that decides what a state means beside its tokens. States of different namespaces never meet.
pub fn namespace<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Hash {
    let mut hasher = blake3::Hasher::new();
    // Builds that write segments otherwise share nothing.
    hasher.update(format!("mach prefix cache {}", crate::segment::VERSION).as_bytes());
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// The hash before the first token: the namespace and, if a request brings one, its salt.
pub fn root(namespace: &Hash, salt: Option<&str>) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(namespace);
    if let Some(salt) = salt {
        hasher.update(b"salt");
        hasher.update(salt.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// Hashes of a prompt at all its block edges.
#[derive(Debug, Clone)]
pub struct Chain {
    block: usize,
    /// `edges[i]`: after `i` blocks.
    edges: Vec<Hash>,
}

impl Chain {
    /// Of `tokens`, in blocks of `block` tokens (at least 1).
    pub fn new(root: &Hash, tokens: &[u32], block: usize) -> Self {
        let block = block.max(1);
        let mut edges = Vec::with_capacity(tokens.len() / block + 1);
        let mut last = *root;
        edges.push(last);
        for tokens in tokens.chunks_exact(block) {
            last = link(&last, tokens);
            edges.push(last);
        }
        Chain { block, edges }
    }

    /// The hash at the last block edge at or before `position`.
    pub fn edge_before(&self, position: usize) -> Option<&Hash> {
        self.edges.get(position / self.block)
    }

    /// Edges, the deepest first.
    pub fn deepest_first(&self) -> impl Iterator<Item = &Hash> {
        self.edges.iter().rev()
    }

    /// Edges after the first block and up to `position`.
    pub fn edges_up_to(&self, position: usize) -> impl Iterator<Item = &Hash> {
        self.edges.iter().take(position / self.block + 1).skip(1)
    }

    /// A name for the first `tokens.len()` tokens: the edge before their end, and what follows it.
    pub fn key(&self, tokens: &[u32]) -> Hash {
        let tail = tokens.get(tokens.len() / self.block * self.block..).unwrap_or_default();
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"key");
        hasher.update(self.edge_before(tokens.len()).unwrap_or(&[0; 32]));
        hasher.update(bytemuck::cast_slice(tail));
        *hasher.finalize().as_bytes()
    }
}

fn link(before: &Hash, tokens: &[u32]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before);
    hasher.update(bytemuck::cast_slice(tokens));
    *hasher.finalize().as_bytes()
}

/// A hash as 64 lower-case hexadecimal digits.
pub fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_lie_after_each_full_block() {
        let tokens: Vec<u32> = (0..14).collect();
        let chain = Chain::new(&[7; 32], &tokens, 4);
        // The root, and the ends of three blocks.
        let mut edges: Vec<Hash> = chain.deepest_first().copied().collect();
        edges.reverse();
        assert_eq!((edges.len(), edges[0]), (4, [7; 32]));
        for (position, last) in [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (12, 3), (14, 3)] {
            assert_eq!(chain.edge_before(position), Some(&edges[last]), "{position}");
            let up_to: Vec<&Hash> = chain.edges_up_to(position).collect();
            assert_eq!(up_to, edges[1..=last].iter().collect::<Vec<_>>(), "{position}");
        }
        assert_eq!(chain.edge_before(16), None);
        // They depend on all that is before them.
        let mut other = tokens.clone();
        other[5] = 99;
        let mut changed: Vec<Hash> = Chain::new(&[7; 32], &other, 4).deepest_first().copied().collect();
        changed.reverse();
        assert!(changed[1] == edges[1] && changed[2] != edges[2] && changed[3] != edges[3]);
    }

    #[test]
    fn keys_name_every_token() {
        let tokens: Vec<u32> = (0..14).collect();
        let chain = Chain::new(&[7; 32], &tokens, 4);
        let mut keys: Vec<Hash> = (0..=14).map(|n| chain.key(&tokens[..n])).collect();
        let mut other = tokens.clone();
        other[13] = 99;
        keys.push(Chain::new(&[7; 32], &other, 4).key(&other));
        keys.push(Chain::new(&[8; 32], &tokens, 4).key(&tokens));
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 17);
    }
}
