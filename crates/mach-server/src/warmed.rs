//! Who warmed which prefix: a caller sees its own.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use mach_prefix::WarmedPrefix;

use crate::auth::Caller;

/// Prefixes that are remembered with their callers before those that are gone are forgotten.
const MOST: usize = 4096;

/// Callers by the keys of the prefixes that they warmed, since the start of the server.
#[derive(Debug, Default)]
pub(crate) struct Warmed(Mutex<HashMap<String, HashSet<Caller>>>);

impl Warmed {
    /// Notes that a caller warmed a prefix. `there`: what is warm now.
    pub(crate) fn note(&self, key: &str, caller: Caller, there: impl FnOnce() -> Vec<WarmedPrefix>) {
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        owners.entry(key.to_owned()).or_default().insert(caller);
        if owners.len() > MOST {
            let there: HashSet<String> = there().into_iter().map(|prefix| prefix.key).collect();
            owners.retain(|key, _| there.contains(key));
        }
    }

    /// What a caller may see: what it warmed, what is below the root of a salt that it names, and of the rest (what the operator
    /// warmed, or somebody before the last start) what is below its own root.
    pub(crate) fn seen_by(
        &self,
        caller: Caller,
        named: Option<[u8; 32]>,
        own: [u8; 32],
        all: Vec<WarmedPrefix>,
    ) -> Vec<WarmedPrefix> {
        let owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = |prefix: &WarmedPrefix| match (named, owners.get(&prefix.key)) {
            (Some(root), _) => prefix.root == root,
            (None, Some(owners)) => owners.contains(&caller),
            (None, None) => prefix.root == own,
        };
        all.into_iter().filter(seen).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(key: &str, root: u8) -> WarmedPrefix {
        WarmedPrefix { key: key.into(), root: [root; 32], tokens: 1, bytes: 1, levels: Vec::new() }
    }

    #[test]
    fn callers_see_their_own() {
        let (a, b) = (Caller::with_key(Some(b"a")), Caller::with_key(Some(b"b")));
        let warmed = Warmed::default();
        let all = || {
            vec![
                prefix("of a", 0),
                prefix("of both", 0),
                prefix("salted of b", 7),
                prefix("operator's", 0),
                prefix("old", 9),
            ]
        };
        warmed.note("of a", a, all);
        warmed.note("of both", a, all);
        warmed.note("of both", b, all);
        warmed.note("salted of b", b, all);
        let seen = |caller, named| -> Vec<String> {
            warmed.seen_by(caller, named, [0; 32], all()).into_iter().map(|prefix| prefix.key).collect()
        };
        assert_eq!(seen(a, None), ["of a", "of both", "operator's"]);
        assert_eq!(seen(b, None), ["of both", "salted of b", "operator's"]);
        assert_eq!(seen(Caller::with_key(None), None), ["operator's"]);
        // Who knows a salt may know what it is for.
        assert_eq!(seen(a, Some([7; 32])), ["salted of b"]);
        assert_eq!(seen(a, Some([9; 32])), ["old"]);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let warmed = Warmed::default();
        for i in 0..=MOST {
            warmed.note(&i.to_string(), Caller::with_key(None), || vec![prefix("3", 0)]);
        }
        assert_eq!(warmed.0.lock().unwrap().len(), 1);
    }
}
