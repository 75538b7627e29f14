//! Classification: the answer is one of a few known texts.

use std::collections::BTreeMap;

use crate::{DraftError, Drafting, Proposed, Proposer};

#[derive(Debug, Default)]
struct Node {
    children: BTreeMap<u32, Node>,
}

/// Walks the trie of allowed answers along the answer so far and proposes what must follow, up to the next branch.
/// Silent once the answer has left the trie.
#[derive(Debug)]
pub struct LabelProposer {
    root: Node,
    prompt: usize,
}

impl LabelProposer {
    /// For a prompt of `prompt` tokens and the token sequences of the allowed answers.
    pub fn new<'a>(prompt: usize, answers: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut root = Node::default();
        for answer in answers {
            let mut node = &mut root;
            for &token in answer {
                node = node.children.entry(token).or_default();
            }
        }
        LabelProposer { root, prompt }
    }
}

impl Proposer for LabelProposer {
    fn name(&self) -> &'static str {
        "label"
    }

    fn propose(&mut self, drafting: Drafting<'_>, out: &mut Proposed) -> Result<(), DraftError> {
        let mut node = &self.root;
        for token in drafting.tokens.get(self.prompt..).unwrap_or_default() {
            match node.children.get(token) {
                Some(child) => node = child,
                None => return Ok(()),
            }
        }
        let mut left = drafting.most;
        while left > 0
            && node.children.len() == 1
            && let Some((&token, child)) = node.children.first_key_value()
        {
            out.tokens.push(token);
            node = child;
            left -= 1;
        }
        Ok(())
    }
}
