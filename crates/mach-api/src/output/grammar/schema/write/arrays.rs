//! Rules for arrays.

use serde_json::Value;

use super::super::Unsupported;
use super::super::fields::{Fields, times};
use super::super::leaves::{Arrays, Conj, Leaf, Parts};
use super::super::numbers::NumberRule;
use super::super::rewrite::{ARRAY, BOOLEAN, INTEGER, NULL, NUMBER, OBJECT, STRING};
use super::{GrammarWriter, quoted};

/// Items that are told apart in any order, and in the schema's order.
const ORDERS: usize = 6;
const DISTINCT: usize = 256;

impl<'a> GrammarWriter<'_, '_, 'a> {
    pub(super) fn array(&mut self, arrays: &Arrays<'a>) -> Result<Option<String>, Unsupported> {
        let comma = self.comma();
        let longest = arrays.sources.iter().map(|(prefix, _)| prefix.len()).max().unwrap_or(0);
        let item = |i: usize| -> Conj<'a> {
            arrays.sources.iter().filter_map(|(prefix, rest)| prefix.get(i).or(*rest)).collect()
        };
        let rest: Conj<'a> = arrays.sources.iter().filter_map(|(_, rest)| *rest).collect();
        let most = arrays.most.unwrap_or(u64::MAX);
        if arrays.least > most {
            return Ok(None);
        }
        if let Some(at) = arrays.unique.filter(|_| most > 1) {
            if longest == 0
                && arrays.contains.is_empty()
                && let Some(values) = self.distinct(&rest)?
            {
                return self.different(&values, arrays);
            }
            self.schemas.refuse(
                at,
                "uniqueItems",
                "can be enforced for few values only, like those of an `enum`",
            )?;
        }
        if let [(at, inner, least)] = arrays.contains[..] {
            if longest == 0 && least == 1 && arrays.least.max(arrays.most.unwrap_or(0)) <= 32 {
                return self.containing(&rest, inner, arrays);
            }
            self.schemas.refuse(at, "contains", "cannot be enforced beside such lengths")?;
        } else if let Some((at, ..)) = arrays.contains.first() {
            self.schemas.refuse(at, "contains", "cannot be enforced more than once")?;
        }
        // From the end: what may follow behind so many items.
        let mut tail = self.more(longest as u64, arrays, &rest)?;
        for i in (0..longest).rev() {
            let end = i as u64 >= arrays.least;
            let item = if i as u64 >= most { None } else { self.value(&item(i))? };
            let body = item
                .zip(tail)
                .map(|(item, tail)| format!("{} {item} {tail}", if i > 0 { comma } else { "" }));
            tail = match (body, end) {
                (Some(body), true) => Some(self.lark.rule(&format!("\"\" | {body}"))),
                (Some(body), false) => Some(self.lark.rule(&body)),
                (None, true) => Some("\"\"".to_owned()),
                (None, false) => None,
            };
        }
        Ok(tail.map(|tail| format!("\"[\" {tail} \"]\"")))
    }

    /// Items behind the first `count`.
    fn more(
        &mut self,
        count: u64,
        arrays: &Arrays<'a>,
        rest: &[&'a Value],
    ) -> Result<Option<String>, Unsupported> {
        let least = arrays.least.saturating_sub(count);
        let most = arrays.most.map(|most| most.saturating_sub(count));
        let item = if most == Some(0) { None } else { self.value(rest)? };
        let Some(item) = item else { return Ok((least == 0).then(|| "\"\"".to_owned())) };
        let comma = self.comma();
        let more = format!("{comma} {item}");
        if count > 0 {
            return Ok(Some(self.lark.rule(&times(&more, least, most))));
        }
        let some = format!("{item} {}", times(&more, least.saturating_sub(1), most.map(|most| most - 1)));
        Ok(Some(self.lark.rule(&if least == 0 { format!("\"\" | {some}") } else { some })))
    }

    /// Arrays in which at least one item meets `inner` too.
    fn containing(
        &mut self,
        rest: &[&'a Value],
        inner: &'a Value,
        arrays: &Arrays<'a>,
    ) -> Result<Option<String>, Unsupported> {
        let comma = self.comma();
        let all: Conj<'a> = rest.iter().copied().chain([inner]).collect();
        let Some(inner) = self.value(&all)? else { return Ok(None) };
        let Some(item) = self.value(rest)? else { return Ok(None) };
        let (before, behind) = (format!("{item} {comma}"), format!("{comma} {item}"));
        let least = arrays.least.max(1);
        let mut options = Vec::new();
        for count in 0..arrays.most.unwrap_or(least) {
            let last = arrays.most.is_none() && count + 1 == least;
            let front = if last { times(&before, count, None) } else { times(&before, count, Some(count)) };
            let back =
                times(&behind, least.saturating_sub(1 + count), arrays.most.map(|most| most - 1 - count));
            options.push(format!("{front} {inner} {back}"));
        }
        let rule = self.lark.rule(&options.join(" | "));
        Ok(Some(format!("\"[\" {rule} \"]\"")))
    }

    /// The values that items may have, if they are few.
    fn distinct(&mut self, conj: &[&'a Value]) -> Result<Option<Vec<String>>, Unsupported> {
        let mut out: Vec<String> = Vec::new();
        for leaf in self.schemas.leaves(conj)?.iter() {
            match leaf {
                Leaf::Value(value) => out.push(self.literal(value)),
                Leaf::Parts(parts) if parts.types & (ARRAY | OBJECT) == 0 => {
                    let mut texts = Vec::new();
                    if parts.types & (INTEGER | NUMBER) != 0 {
                        let whole = parts.types & NUMBER == 0;
                        match self.number(parts)? {
                            NumberRule::Texts(rx) if whole => match rx.listed(DISTINCT) {
                                Some(list) => texts.extend(list.iter().map(|text| quoted(text))),
                                None => return Ok(None),
                            },
                            _ => return Ok(None),
                        }
                    }
                    if parts.types & STRING != 0 {
                        match parts.strings.rx(&parts.none).listed(DISTINCT) {
                            Some(list) => {
                                texts.extend(list.into_iter().map(|text| self.literal(&Value::from(text))));
                            }
                            None => return Ok(None),
                        }
                    }
                    let rest = Parts { types: parts.types & (NULL | BOOLEAN), ..parts.as_ref().clone() };
                    self.parts(&rest, &mut texts)?;
                    out.extend(texts);
                }
                Leaf::Parts(_) => return Ok(None),
            }
            if out.len() > DISTINCT {
                return Ok(None);
            }
        }
        let mut seen = std::collections::HashSet::new();
        out.retain(|text| seen.insert(text.clone()));
        Ok(Some(out))
    }

    /// Arrays of different values: in any order if they are very few, else in the schema's.
    fn different(&mut self, values: &[String], arrays: &Arrays<'a>) -> Result<Option<String>, Unsupported> {
        let comma = self.comma();
        let most = arrays.most.unwrap_or(u64::MAX).min(values.len() as u64);
        if arrays.least > most {
            return Ok(None);
        }
        if values.len() > ORDERS {
            let items: Vec<(String, bool)> = values.iter().map(|value| (value.clone(), false)).collect();
            let fields = Fields {
                items: &items,
                extra: None,
                least: arrays.least,
                most: arrays.most.map(|_| most),
                comma,
            };
            return Ok(fields.rule(self.lark)?.map(|rule| format!("\"[\" {rule} \"]\"")));
        }
        // Behind each set of values that were there: more of the others.
        let sets = 1usize << values.len();
        let mut rules: Vec<Option<String>> = vec![None; sets];
        for set in (0..sets).rev() {
            let count = u64::from(set.count_ones());
            let mut options = Vec::new();
            if count >= arrays.least && count <= most {
                options.push("\"\"".to_owned());
            }
            for (i, value) in values.iter().enumerate().filter(|(i, _)| set >> i & 1 == 0 && count < most) {
                if let Some(rest) = &rules[set | 1 << i] {
                    options.push(format!("{} {value} {rest}", if count > 0 { comma } else { "" }));
                }
            }
            rules[set] = (!options.is_empty()).then(|| self.lark.rule(&options.join(" | ")));
        }
        Ok(rules.swap_remove(0).map(|rule| format!("\"[\" {rule} \"]\"")))
    }
}
