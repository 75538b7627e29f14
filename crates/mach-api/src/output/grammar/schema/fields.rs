//! Lists of what may follow each other, of which some may be left out and the number may be bounded.

use super::super::lark::Lark;
use super::Unsupported;

/// States of one list.
const MOST: usize = 100_000;
/// Counts beyond which a bound is none.
const LONGEST: u64 = 1_000_000;

/// What may follow, in its order.
pub(super) struct Fields<'f> {
    /// Rules, and whether they must be there.
    pub(super) items: &'f [(String, bool)],
    /// A rule for any number of others behind them.
    pub(super) extra: Option<&'f str>,
    pub(super) least: u64,
    pub(super) most: Option<u64>,
    /// Between two, as the grammar writes it; empty if nothing is.
    pub(super) comma: &'f str,
}

/// `body`, from `least` to `most` times.
pub(super) fn times(body: &str, least: u64, most: Option<u64>) -> String {
    match (least, most.filter(|&most| most <= LONGEST)) {
        (_, Some(0)) => String::new(),
        (0, None) => format!("({body})*"),
        (1, None) => format!("({body})+"),
        (1, Some(1)) => body.to_owned(),
        (least, None) => format!("({body}){{{least},}}"),
        (least, Some(most)) => format!("({body}){{{least},{most}}}"),
    }
}

impl Fields<'_> {
    /// The rule for the list; `None` if there is no such.
    pub(super) fn rule(&self, lark: &mut Lark<'_>) -> Result<Option<String>, Unsupported> {
        let most = self.most.unwrap_or(u64::MAX);
        if self.least > most || self.least > LONGEST {
            return Ok(None);
        }
        let cap = if self.most.is_some() && !self.items.is_empty() { most } else { self.least.max(1) };
        let cap = cap.min(self.items.len() as u64 + self.least.max(1));
        if (self.items.len() as u64 + 1).saturating_mul(cap + 1) > MOST as u64 {
            return Err((
                String::new(),
                "has too many properties for such bounds of their number".to_owned(),
            ));
        }
        // What may follow behind all items, by how many there were.
        let mut rest: Vec<Option<String>> = (0..=cap).map(|count| self.end(count, most, lark)).collect();
        for (item, required) in self.items.iter().rev() {
            let with = |count: u64, rest: &[Option<String>]| {
                let next = (count + 1).min(cap);
                let next = rest[next as usize].as_ref().filter(|_| count < most)?;
                let comma = if count > 0 { self.comma } else { "" };
                Some(format!("{comma} {item} {next}"))
            };
            let state = |count: u64, lark: &mut Lark<'_>| {
                let without = rest[count as usize].clone().filter(|_| !required);
                match (with(count, &rest), without) {
                    (Some(with), Some(without)) => Some(lark.rule(&format!("{with} | {without}"))),
                    (Some(with), None) => Some(lark.rule(&with)),
                    (None, without) => without,
                }
            };
            rest = (0..=cap).map(|count| state(count, lark)).collect();
        }
        Ok(rest.swap_remove(0))
    }

    fn end(&self, count: u64, most: u64, lark: &mut Lark<'_>) -> Option<String> {
        let least = self.least.saturating_sub(count);
        let most = self.most.map(|_| most.saturating_sub(count));
        let Some(extra) = self.extra.filter(|_| most != Some(0)) else {
            return (least == 0).then(|| "\"\"".to_owned());
        };
        let more = format!("{} {extra}", self.comma);
        if count > 0 || self.comma.is_empty() {
            return Some(lark.rule(&times(&more, least, most)));
        }
        let more = times(&more, least.saturating_sub(1), most.map(|most| most - 1));
        let some = format!("{extra} {more}");
        Some(lark.rule(&if least == 0 { format!("\"\" | {some}") } else { some }))
    }
}
