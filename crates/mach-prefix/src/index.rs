//! The longest cached prefix of a prompt.

use std::collections::HashMap;

use crate::chain::{Chain, Hash};

/// Positions at which a snapshot can be gone on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Its own position.
    pub(crate) end: usize,
    /// Any earlier one as well.
    pub(crate) cut: bool,
    /// Nothing has to be computed when the prompt ends at `end`.
    pub(crate) logits: bool,
}

impl Reach {
    /// The furthest position for `prompt`, of which at least the last token is left over unless logits are there.
    pub(crate) fn furthest(&self, tokens: &[u32], prompt: &[u32]) -> Option<usize> {
        let limit = prompt.len().saturating_sub(1);
        let whole = self.end <= limit || (self.logits && self.end == prompt.len());
        if whole && prompt.get(..self.end)? == tokens.get(..self.end)? {
            return Some(self.end);
        }
        if !self.cut {
            return None;
        }
        let same = tokens.iter().take(self.end).zip(prompt).take_while(|(a, b)| a == b).count();
        Some(same.min(limit)).filter(|&n| n > 0)
    }
}

/// Snapshots by the block edges that they can be found from.
#[derive(Debug, Default)]
pub(crate) struct Index {
    edges: HashMap<Hash, Vec<Hash>>,
}

impl Index {
    fn edges<'a>(chain: &'a Chain, reach: &Reach) -> Vec<&'a Hash> {
        let mut edges: Vec<&Hash> =
            if reach.cut { chain.edges_up_to(reach.end).collect() } else { Vec::new() };
        if edges.is_empty() {
            edges.extend(chain.edge_before(reach.end));
        }
        edges
    }

    pub(crate) fn insert(&mut self, chain: &Chain, reach: &Reach, key: Hash) {
        for edge in Self::edges(chain, reach) {
            self.edges.entry(*edge).or_default().push(key);
        }
    }

    pub(crate) fn remove(&mut self, chain: &Chain, reach: &Reach, key: &Hash) {
        for edge in Self::edges(chain, reach) {
            if let Some(keys) = self.edges.get_mut(edge) {
                keys.retain(|k| k != key);
                if keys.is_empty() {
                    self.edges.remove(edge);
                }
            }
        }
    }

    /// The snapshot that reaches furthest into the prompt, and how far. `reach` judges a candidate.
    pub(crate) fn longest(
        &self,
        chain: &Chain,
        reach: impl Fn(&Hash) -> Option<usize>,
    ) -> Option<(Hash, usize)> {
        for edge in chain.deepest_first() {
            let keys = self.edges.get(edge).map(Vec::as_slice).unwrap_or_default();
            let best = keys.iter().filter_map(|key| Some((*key, reach(key)?))).max_by_key(|&(_, end)| end);
            if best.is_some() {
                return best;
            }
        }
        None
    }
}
