//! Who asks lately: the ends of conversations that go on are worth more than what is left of others.

use std::collections::HashMap;

use crate::chain::Hash;

/// Conversations whose ends count as anchors.
const RECENT: usize = 4;
/// Conversations that are remembered.
const KNOWN: usize = 256;

/// A request of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionTurn {
    session: Hash,
    number: u64,
}

/// The last request of each conversation.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    last: HashMap<Hash, u64>,
    next: u64,
}

impl Sessions {
    /// A request comes.
    pub(crate) fn turn(&mut self, session: Hash) -> SessionTurn {
        self.next += 1;
        if self.last.len() >= KNOWN && !self.last.contains_key(&session) {
            let oldest = self.last.iter().min_by_key(|(_, number)| **number).map(|(session, _)| *session);
            oldest.map(|oldest| self.last.remove(&oldest));
        }
        self.last.insert(session, self.next);
        SessionTurn { session, number: self.next }
    }

    /// Whether a request is the last one of a conversation that was at work lately.
    pub(crate) fn current(&self) -> impl Fn(&SessionTurn) -> bool + '_ {
        let mut numbers: Vec<u64> = self.last.values().copied().collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        let least = numbers.get(RECENT - 1).copied().unwrap_or(0);
        move |turn| turn.number >= least && self.last.get(&turn.session) == Some(&turn.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_requests_of_those_who_asked_lately_count() {
        let mut sessions = Sessions::default();
        let turns: Vec<_> = (0..10).map(|i| sessions.turn([i; 32])).collect();
        let current = |sessions: &Sessions| turns.iter().map(sessions.current()).collect::<Vec<_>>();
        assert_eq!(current(&sessions), [false, false, false, false, false, false, true, true, true, true]);
        let newer = sessions.turn([5; 32]);
        assert!(sessions.current()(&newer) && !sessions.current()(&turns[5]));
        assert_eq!(current(&sessions), [false, false, false, false, false, false, false, true, true, true]);
        for i in 0..=u8::MAX {
            sessions.turn([i; 32]);
            sessions.turn([i.wrapping_add(100); 32]);
        }
        assert!(sessions.last.len() <= KNOWN);
    }
}
