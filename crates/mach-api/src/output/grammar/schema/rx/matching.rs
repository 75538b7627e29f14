//! Whether a text is in a set.

use std::collections::HashMap;

use super::Rx;

/// Where the texts of a set that begin at a place may end.
pub(super) struct Matching<'t> {
    pub(super) letters: &'t [char],
    pub(super) fuel: u32,
    pub(super) known: HashMap<(*const Rx, usize), Vec<bool>>,
}

impl Matching<'_> {
    fn spend(&mut self, steps: usize) -> Option<()> {
        self.fuel = self.fuel.checked_sub(u32::try_from(steps).ok()?)?;
        Some(())
    }

    /// For each place whether a text of the set reaches from `from` to it.
    pub(super) fn ends(&mut self, rx: &Rx, from: usize) -> Option<Vec<bool>> {
        let key = (std::ptr::from_ref(rx), from);
        if let Some(known) = self.known.get(&key) {
            return Some(known.clone());
        }
        self.spend(self.letters.len() + 1)?;
        let mut out = vec![false; self.letters.len() + 1];
        match rx {
            Rx::Text(text) => {
                let count = text.chars().count();
                let rest = &self.letters[from..];
                if count <= rest.len() && text.chars().eq(rest[..count].iter().copied()) {
                    out[from + count] = true;
                }
            }
            Rx::Class(class) => {
                let within = |c: char| class.iter().any(|range| (range.start()..=range.end()).contains(&c));
                if self.letters.get(from).is_some_and(|&c| within(c)) {
                    out[from + 1] = true;
                }
            }
            Rx::Concat(list) => {
                out[from] = true;
                for item in list {
                    out = self.step(item, &out)?;
                }
            }
            Rx::Alt(list) => {
                for item in list {
                    let ends = self.ends(item, from)?;
                    out.iter_mut().zip(ends).for_each(|(out, end)| *out |= end);
                }
            }
            Rx::And(list) => {
                out[from..].fill(true);
                for item in list {
                    let ends = self.ends(item, from)?;
                    out.iter_mut().zip(ends).for_each(|(out, end)| *out &= end);
                }
            }
            Rx::Not(inner) => {
                let ends = self.ends(inner, from)?;
                out[from..].iter_mut().zip(&ends[from..]).for_each(|(out, end)| *out = !end);
            }
            Rx::Repeat(inner, least, most) => {
                let mut at = vec![false; self.letters.len() + 1];
                at[from] = true;
                let mut count = 0;
                if *least == 0 {
                    out[from] = true;
                }
                // Rounds that reach nothing new change nothing any more.
                while most.is_none_or(|most| count < most) {
                    let next = self.step(inner, &at)?;
                    count += 1;
                    let mut new = false;
                    if count >= *least {
                        for (out, next) in out.iter_mut().zip(&next) {
                            new |= *next && !*out;
                            *out |= *next;
                        }
                    }
                    let stuck = next == at && count < *least;
                    if stuck {
                        out.iter_mut().zip(&next).for_each(|(out, next)| *out |= next);
                    }
                    if stuck || (count >= *least && !new) || !next.contains(&true) {
                        break;
                    }
                    at = next;
                }
            }
        }
        self.known.insert(key, out.clone());
        Some(out)
    }

    /// From every place of `at` on.
    fn step(&mut self, rx: &Rx, at: &[bool]) -> Option<Vec<bool>> {
        let mut out = vec![false; at.len()];
        for (from, _) in at.iter().enumerate().filter(|(_, there)| **there) {
            let ends = self.ends(rx, from)?;
            out.iter_mut().zip(ends).for_each(|(out, end)| *out |= end);
        }
        Some(out)
    }
}
