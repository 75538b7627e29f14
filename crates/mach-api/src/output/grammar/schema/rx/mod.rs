//! Sets of texts: what a string or a number may be written as.
//!
//! Beside what regular expressions have there are intersection and complement, which the grammar's terminals know as well.

mod matching;
mod writing;

use std::collections::HashMap;

use matching::Matching;
use regex_syntax::hir::{ClassUnicode, ClassUnicodeRange};

/// Steps of matching one text, beyond which it is given up.
const FUEL: u32 = 300_000;

/// A set of texts.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::output::grammar) enum Rx {
    /// One text.
    Text(String),
    /// One letter out of a class.
    Class(ClassUnicode),
    Concat(Vec<Rx>),
    Alt(Vec<Rx>),
    Repeat(Box<Rx>, u32, Option<u32>),
    And(Vec<Rx>),
    /// Every other text.
    Not(Box<Rx>),
}

/// How letters stand in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::output::grammar) enum Quote {
    /// As they are.
    Plain,
    /// As between the quotes of a JSON string.
    Json,
}

/// A class of these ranges.
pub(super) fn class(ranges: &[(char, char)]) -> ClassUnicode {
    ClassUnicode::new(ranges.iter().map(|&(a, b)| ClassUnicodeRange::new(a, b)))
}

impl Rx {
    pub(in crate::output::grammar) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn empty() -> Self {
        Self::Text(String::new())
    }

    /// No text at all.
    pub(super) fn never() -> Self {
        Self::Alt(Vec::new())
    }

    pub(super) fn is_never(&self) -> bool {
        matches!(self, Self::Alt(list) if list.is_empty())
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Text(text) if text.is_empty())
    }

    pub(super) fn range(from: char, to: char) -> Self {
        Self::Class(class(&[(from, to)]))
    }

    /// Every letter.
    pub(super) fn letter() -> Self {
        Self::range('\0', char::MAX)
    }

    /// Every text.
    pub(in crate::output::grammar) fn any() -> Self {
        Self::Repeat(Box::new(Self::letter()), 0, None)
    }

    pub(super) fn is_any(&self) -> bool {
        matches!(self, Self::Repeat(inner, 0, None) if **inner == Self::letter())
    }

    pub(super) fn repeat(self, least: u32, most: Option<u32>) -> Self {
        match (least, most) {
            (_, Some(0)) => Self::empty(),
            (1, Some(1)) => self,
            _ => Self::Repeat(Box::new(self), least, most),
        }
    }

    pub(super) fn optional(self) -> Self {
        self.repeat(0, Some(1))
    }

    pub(in crate::output::grammar) fn concat(list: impl IntoIterator<Item = Self>) -> Self {
        let mut out: Vec<Self> = Vec::new();
        for item in list {
            match (item, out.last_mut()) {
                (item, _) if item.is_never() => return item,
                (item, _) if item.is_empty() => {}
                (Self::Text(text), Some(Self::Text(last))) => last.push_str(&text),
                (Self::Concat(list), _) => out.extend(list),
                (item, _) => out.push(item),
            }
        }
        match out.len() {
            0 => Self::empty(),
            1 => out.remove(0),
            _ => Self::Concat(out),
        }
    }

    pub(in crate::output::grammar) fn alt(list: impl IntoIterator<Item = Self>) -> Self {
        let mut out = Vec::new();
        for item in list {
            match item {
                Self::Alt(list) => out.extend(list),
                item => out.push(item),
            }
        }
        if out.len() == 1 { out.remove(0) } else { Self::Alt(out) }
    }

    pub(in crate::output::grammar) fn and(list: impl IntoIterator<Item = Self>) -> Self {
        let mut out = Vec::new();
        for item in list {
            match item {
                item if item.is_never() => return item,
                item if item.is_any() => {}
                Self::And(list) => out.extend(list),
                item => out.push(item),
            }
        }
        match out.len() {
            0 => Self::any(),
            1 => out.remove(0),
            _ => Self::And(out),
        }
    }

    pub(in crate::output::grammar) fn not(self) -> Self {
        match self {
            Self::Not(inner) => *inner,
            rx => Self::Not(Box::new(rx)),
        }
    }

    /// The texts that hold one of these.
    pub(in crate::output::grammar) fn holding(inner: Self) -> Self {
        Self::concat([Self::any(), inner, Self::any()])
    }

    /// Bounds of the number of letters: texts outside are not in the set.
    pub(super) fn lengths(&self) -> (u64, u64) {
        let sum = |list: &[Self]| {
            list.iter()
                .map(Self::lengths)
                .fold((0u64, 0u64), |all, one| (all.0.saturating_add(one.0), all.1.saturating_add(one.1)))
        };
        match self {
            Self::Text(text) => {
                let count = text.chars().count() as u64;
                (count, count)
            }
            Self::Class(_) => (1, 1),
            Self::Concat(list) => sum(list),
            Self::Alt(list) if list.is_empty() => (1, 0),
            Self::Alt(list) => list
                .iter()
                .map(Self::lengths)
                .fold((u64::MAX, 0), |all, one| (all.0.min(one.0), all.1.max(one.1))),
            Self::Repeat(inner, least, most) => {
                let (low, high) = inner.lengths();
                let high = match most {
                    Some(most) => high.saturating_mul(u64::from(*most)),
                    None if high == 0 => 0,
                    None => u64::MAX,
                };
                (low.saturating_mul(u64::from(*least)), high)
            }
            Self::And(list) => list
                .iter()
                .map(Self::lengths)
                .fold((0, u64::MAX), |all, one| (all.0.max(one.0), all.1.min(one.1))),
            Self::Not(_) => (0, u64::MAX),
        }
    }

    /// How many nodes the expression has.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Text(text) => 1 + text.len() / 8,
            Self::Class(class) => 1 + class.ranges().len() / 4,
            Self::Concat(list) | Self::Alt(list) | Self::And(list) => {
                1 + list.iter().map(Self::size).sum::<usize>()
            }
            Self::Repeat(inner, ..) | Self::Not(inner) => 1 + inner.size(),
        }
    }

    /// Letters that the expression has when groups that are repeated are written out; one letter out of a class may be repeated as
    /// often as it likes, unless that is repeated in turn.
    pub(super) fn written_out(&self) -> u64 {
        match self {
            Self::Repeat(inner, ..) if matches!(**inner, Self::Class(_)) => 1,
            _ => self.letters(),
        }
    }

    fn letters(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Class(_) => 1,
            // Not repeated itself.
            Self::Concat(list) | Self::Alt(list) | Self::And(list) => {
                list.iter().map(Self::written_out).fold(0, u64::saturating_add)
            }
            Self::Not(inner) => inner.written_out(),
            Self::Repeat(inner, least, most) => inner.repeated().saturating_mul(times(*least, *most)),
        }
    }

    /// The same inside of a group that is repeated.
    fn repeated(&self) -> u64 {
        match self {
            Self::Concat(list) | Self::Alt(list) | Self::And(list) => {
                list.iter().map(Self::repeated).fold(0, u64::saturating_add)
            }
            Self::Not(inner) => inner.repeated(),
            _ => self.letters(),
        }
    }

    /// Whether a text is in the set; `None` if that is too costly to find out.
    pub(in crate::output::grammar) fn matches(&self, text: &str) -> Option<bool> {
        let letters: Vec<char> = text.chars().collect();
        let mut matching = Matching { letters: &letters, fuel: FUEL, known: HashMap::new() };
        let ends = matching.ends(self, 0)?;
        Some(ends[letters.len()])
    }

    /// All texts of the set, if there are at most `most`.
    pub(super) fn listed(&self, most: usize) -> Option<Vec<String>> {
        match self {
            Self::Text(text) => Some(vec![text.clone()]),
            Self::Class(class) => {
                let count: u64 = class.iter().map(|r| r.end() as u64 - r.start() as u64 + 1).sum();
                let all = || class.iter().flat_map(|r| r.start()..=r.end()).map(String::from).collect();
                (count <= most as u64).then(all)
            }
            Self::Concat(list) => {
                let mut all = vec![String::new()];
                for item in list {
                    let texts = item.listed(most)?;
                    if all.len() * texts.len() > most {
                        return None;
                    }
                    all = all.iter().flat_map(|a| texts.iter().map(move |b| format!("{a}{b}"))).collect();
                }
                Some(all)
            }
            Self::Alt(list) => {
                let mut all = Vec::new();
                for item in list {
                    all.extend(item.listed(most)?);
                    if all.len() > most {
                        return None;
                    }
                }
                Some(all)
            }
            Self::Repeat(inner, least, Some(high)) if *high as usize <= most => {
                let each = (*least..=*high).map(|n| Self::Concat(vec![(**inner).clone(); n as usize]));
                Self::Alt(each.collect()).listed(most)
            }
            Self::And(list) => {
                let first = list.iter().find_map(|item| item.listed(most))?;
                let kept =
                    first.into_iter().filter(|t| list.iter().all(|item| item.matches(t) == Some(true)));
                Some(kept.collect())
            }
            Self::Repeat(..) | Self::Not(_) => None,
        }
    }

    /// Without intersection and complement: a regular expression.
    pub(super) fn pure(&self) -> bool {
        match self {
            Self::Text(_) | Self::Class(_) => true,
            Self::Concat(list) | Self::Alt(list) => list.iter().all(Self::pure),
            Self::Repeat(inner, ..) => inner.pure(),
            Self::And(_) | Self::Not(_) => false,
        }
    }
}
/// How often something is written out.
fn times(least: u32, most: Option<u32>) -> u64 {
    u64::from(most.unwrap_or(least.max(1)).max(least)).max(1)
}
