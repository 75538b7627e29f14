//! Sets of texts: what a string or a number may be written as.
//!
//! Beside what regular expressions have there are intersection and complement, which the grammar's terminals know as well.

use std::collections::HashMap;
use std::fmt::Write;

use regex_syntax::hir::{ClassUnicode, ClassUnicodeRange};

/// Steps of matching one text, beyond which it is given up.
const FUEL: u32 = 2_000_000;

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

    /// Nodes.
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

    /// As an expression for a terminal of the grammar.
    pub(in crate::output::grammar) fn lark(&self, quote: Quote) -> String {
        let all = |list: &[Self], between: &str| {
            let list: Vec<String> = list.iter().map(|item| item.lark(quote)).collect();
            format!("({})", list.join(between))
        };
        match self {
            rx if rx.is_empty() => "\"\"".to_owned(),
            rx if rx.pure() => {
                let mut out = "/".to_owned();
                rx.regex(quote, &mut out);
                out.push('/');
                out
            }
            Self::Concat(list) => all(list, " "),
            Self::Alt(list) => all(list, " | "),
            Self::And(list) => all(list, " & "),
            // Only whole letters: the complement of the terminals is one of bytes.
            Self::Not(inner) => format!("({} & ~{})", Self::any().lark(quote), inner.lark(quote)),
            Self::Repeat(inner, least, most) => {
                let inner = inner.lark(quote);
                let most = most.map_or(String::new(), |most| most.to_string());
                if (*least, most.as_str()) == (0, "") {
                    format!("({inner})*")
                } else {
                    format!("({inner}){{{least},{most}}}")
                }
            }
            Self::Text(_) | Self::Class(_) => String::new(),
        }
    }

    /// As a regular expression between slashes.
    fn regex(&self, quote: Quote, out: &mut String) {
        // A `String` takes every write.
        match self {
            Self::Text(text) => text.chars().for_each(|c| letter(c, quote, out)),
            Self::Class(class) => class_regex(class, quote, out),
            Self::Concat(list) => {
                for item in list {
                    let group = matches!(item, Self::Alt(_));
                    out.push_str(if group { "(?:" } else { "" });
                    item.regex(quote, out);
                    out.push_str(if group { ")" } else { "" });
                }
            }
            // A class without letters.
            Self::Alt(list) if list.is_empty() => out.push_str("[a&&b]"),
            Self::Alt(list) => {
                for (i, item) in list.iter().enumerate() {
                    out.push_str(if i > 0 { "|" } else { "" });
                    item.regex(quote, out);
                }
            }
            Self::Repeat(inner, least, most) => {
                out.push_str("(?:");
                inner.regex(quote, out);
                out.push(')');
                match (least, most) {
                    (0, None) => out.push('*'),
                    (1, None) => out.push('+'),
                    (0, Some(1)) => out.push('?'),
                    (least, Some(most)) if least == most => {
                        let _ = write!(out, "{{{least}}}");
                    }
                    (least, most) => {
                        let most = most.map_or(String::new(), |most| most.to_string());
                        let _ = write!(out, "{{{least},{most}}}");
                    }
                }
            }
            Self::And(_) | Self::Not(_) => {}
        }
    }
}

fn plain(c: char, out: &mut String) {
    if c.is_ascii_alphanumeric() || matches!(c, ' ' | '_' | ',' | ':' | ';' | '=' | '"' | '\'' | '%' | '@') {
        out.push(c);
    } else {
        let _ = write!(out, "\\x{{{:x}}}", c as u32);
    }
}

/// Letters that JSON strings hold only with a backslash.
fn escape(c: char) -> Option<String> {
    Some(match c {
        '"' => "\\\"".into(),
        '\\' => "\\\\".into(),
        '\n' => "\\n".into(),
        '\r' => "\\r".into(),
        '\t' => "\\t".into(),
        '\u{8}' => "\\b".into(),
        '\u{c}' => "\\f".into(),
        c if c < ' ' || c == '\u{7f}' => format!("\\u{:04x}", c as u32),
        _ => return None,
    })
}

fn letter(c: char, quote: Quote, out: &mut String) {
    match escape(c).filter(|_| quote == Quote::Json) {
        Some(text) => text.chars().for_each(|c| plain(c, out)),
        None => plain(c, out),
    }
}

fn class_regex(class: &ClassUnicode, quote: Quote, out: &mut String) {
    let single = |class: &ClassUnicode| match class.ranges() {
        [range] if range.start() == range.end() => Some(range.start()),
        _ => None,
    };
    if let Some(c) = single(class) {
        let escaped = quote == Quote::Json && escape(c).is_some();
        out.push_str(if escaped { "(?:" } else { "" });
        letter(c, quote, out);
        out.push_str(if escaped { ")" } else { "" });
        return;
    }
    let ranges = |class: &ClassUnicode, out: &mut String| {
        out.push('[');
        for range in class.iter() {
            plain(range.start(), out);
            if range.end() > range.start() {
                out.push('-');
                plain(range.end(), out);
            }
        }
        out.push(']');
    };
    let mut quoted = class.clone();
    quoted.intersect(&self::class(&[('\0', '\u{1f}'), ('"', '"'), ('\\', '\\'), ('\u{7f}', '\u{7f}')]));
    if quote == Quote::Plain || quoted.ranges().is_empty() {
        match class.ranges().is_empty() {
            true => out.push_str("[a&&b]"),
            false => ranges(class, out),
        }
        return;
    }
    let mut rest = class.clone();
    rest.difference(&quoted);
    let (mut short, mut long) = (String::new(), Vec::new());
    for c in quoted.iter().flat_map(|range| range.start()..=range.end()) {
        match escape(c) {
            Some(text) if text.len() == 2 => plain(text.chars().nth(1).unwrap_or(c), &mut short),
            _ => long.push(c),
        }
    }
    let mut options = Vec::new();
    if !rest.ranges().is_empty() {
        let mut text = String::new();
        ranges(&rest, &mut text);
        options.push(text);
    }
    if !short.is_empty() {
        options.push(format!("\\x{{5c}}[{short}]"));
    }
    // All of them, as mostly, are few words.
    if long.len() == 28 {
        options.push("\\x{5c}u00(?:0[0-7bef]|1[0-9a-f]|7f)".to_owned());
    } else {
        options.extend(long.iter().map(|&c| format!("\\x{{5c}}u{:04x}", c as u32)));
    }
    let _ = write!(out, "(?:{})", options.join("|"));
}

/// Where the texts of a set that begin at a place may end.
struct Matching<'t> {
    letters: &'t [char],
    fuel: u32,
    known: HashMap<(*const Rx, usize), Vec<bool>>,
}

impl Matching<'_> {
    fn spend(&mut self, steps: usize) -> Option<()> {
        self.fuel = self.fuel.checked_sub(u32::try_from(steps).ok()?)?;
        Some(())
    }

    /// For each place whether a text of the set reaches from `from` to it.
    fn ends(&mut self, rx: &Rx, from: usize) -> Option<Vec<bool>> {
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
        for from in 0..at.len() {
            if at[from] {
                let ends = self.ends(rx, from)?;
                out.iter_mut().zip(ends).for_each(|(out, end)| *out |= end);
            }
        }
        Some(out)
    }
}
