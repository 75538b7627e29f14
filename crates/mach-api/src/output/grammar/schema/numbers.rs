//! What a schema says of numbers.

use serde_json::{Value, json};

use super::decimal::Decimal;
use super::range::{self, Bound};
use super::rx::Rx;

/// Values that are written out one by one.
const LISTED: i128 = 512;
/// Endings that are.
const ENDINGS: i128 = 1000;
/// Whole digits of a bound.
const DIGITS: usize = 40;
/// Up to here doubles know every whole number.
const DOUBLE: i128 = 9_007_199_254_740_991;

/// Bounds and steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Numbers {
    low: Option<Bound>,
    high: Option<Bound>,
    steps: Vec<Decimal>,
}

/// The grammar of numbers.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::output::grammar) enum NumberRule {
    /// The texts of the numbers, as an expression.
    Texts(Rx),
    /// A schema of llguidance's: it knows steps that texts alone do not show.
    Schema(Value),
}

impl Numbers {
    pub(super) fn at_least(&mut self, at: Decimal, within: bool) {
        let tighter = |(low, open): &Bound| at > *low || (at == *low && *open && !within);
        if self.low.as_ref().is_none_or(tighter) {
            self.low = Some((at, within));
        }
    }

    pub(super) fn at_most(&mut self, at: Decimal, within: bool) {
        let tighter = |(high, open): &Bound| at < *high || (at == *high && *open && !within);
        if self.high.as_ref().is_none_or(tighter) {
            self.high = Some((at, within));
        }
    }

    pub(super) fn multiple_of(&mut self, step: Decimal) {
        self.steps.push(step);
    }

    /// The same with every step.
    pub(super) fn without_steps(&self) -> Self {
        Self { steps: Vec::new(), ..self.clone() }
    }

    /// The numbers but `none`; `Err` if a step cannot be enforced.
    pub(super) fn rule(&self, whole: bool, none: &[Decimal]) -> Result<NumberRule, &'static str> {
        let rule = self.all(whole)?;
        if none.is_empty() {
            return Ok(rule);
        }
        let NumberRule::Texts(rx) = rule else { return Err("cannot be enforced beside excluded numbers") };
        let digits = |digits: &[u8]| digits.iter().map(|&d| char::from(d)).collect::<String>();
        let same = |number: &Decimal| {
            let sign = if number.negative { "-" } else { "" };
            let whole = if number.whole.is_empty() { "0".to_owned() } else { digits(&number.whole) };
            let zeros = Rx::text("0").repeat(0, None);
            let part = if number.part.is_empty() {
                Rx::concat([Rx::text("."), zeros]).optional()
            } else {
                Rx::concat([Rx::text("."), Rx::text(digits(&number.part)), zeros])
            };
            Rx::concat([Rx::text(format!("{sign}{whole}")), part])
        };
        let none: Vec<Rx> = none.iter().map(same).collect();
        // Another way to write an excluded number.
        let exponent = Rx::holding(Rx::alt([Rx::text("e"), Rx::text("E")]));
        Ok(NumberRule::Texts(Rx::and([rx, Rx::alt(none.into_iter().chain([exponent])).not()])))
    }

    /// Bounds that no number is written as long as say nothing.
    fn all(&self, whole: bool) -> Result<NumberRule, &'static str> {
        let far = |bound: &Bound| bound.0.whole.len() > DIGITS;
        let (low_far, high_far) =
            (self.low.as_ref().filter(|b| far(b)), self.high.as_ref().filter(|b| far(b)));
        if low_far.is_some_and(|(low, _)| !low.negative) || high_far.is_some_and(|(high, _)| high.negative) {
            return Err("has too many digits to be enforced");
        }
        if low_far.is_some() || high_far.is_some() {
            let near = |bound: &Option<Bound>| bound.clone().filter(|bound| !far(bound));
            return Self { low: near(&self.low), high: near(&self.high), steps: self.steps.clone() }
                .all(whole);
        }
        let (low, high) = (self.low.as_ref(), self.high.as_ref());
        if !self.steps.is_empty() {
            return self.stepped(whole);
        }
        Ok(NumberRule::Texts(match (whole, low, high) {
            (true, ..) => range::integers(low, high),
            (false, None, None) => range::unbounded(),
            (false, ..) => range::decimals(low, high),
        }))
    }

    fn stepped(&self, whole: bool) -> Result<NumberRule, &'static str> {
        const LONG: &str = "has too many digits to be enforced";
        let places = self.steps.iter().map(|step| step.part.len()).max().unwrap_or(0);
        if places > 12 {
            return Err(LONG);
        }
        let unit = 10i128.pow(places as u32);
        let mut step = 1i128;
        for one in &self.steps {
            step = common(step, one.scaled(places).ok_or(LONG)?.abs()).ok_or(LONG)?;
        }
        let whole_step = || Some(common(step, unit)? / unit);
        if whole || places == 0 {
            return self.whole_steps(whole_step().ok_or(LONG)?);
        }
        if unit % step == 0 && unit / step <= ENDINGS {
            return Ok(NumberRule::Texts(Rx::and([
                range::decimals(self.low.as_ref(), self.high.as_ref()),
                fractions(step, unit, places),
            ])));
        }
        if step == 1 {
            let digits = || Rx::range('0', '9');
            let part = Rx::concat([Rx::text("."), digits().repeat(1, Some(places as u32))]).optional();
            let rx = Rx::concat([Rx::text("-").optional(), digits().repeat(1, None), part]);
            let within = range::decimals(self.low.as_ref(), self.high.as_ref());
            return Ok(NumberRule::Texts(Rx::and([within, rx])));
        }
        // Whole numbers alone are fewer than there are, but such.
        self.whole_steps(whole_step().ok_or(LONG)?)
    }

    fn whole_steps(&self, step: i128) -> Result<NumberRule, &'static str> {
        let (low, high) = range::whole_bounds(self.low.as_ref(), self.high.as_ref());
        let within = || range::integers(self.low.as_ref(), self.high.as_ref());
        if step == 1 {
            return Ok(NumberRule::Texts(within()));
        }
        let (Some(low), Some(high)) = (low.to_i128(), high.to_i128()) else {
            return Err("cannot be enforced beside such bounds");
        };
        let (first, last) = (-(-low).div_euclid(step), high.div_euclid(step));
        if last - first < LISTED {
            return Ok(NumberRule::Texts(Rx::alt((first..=last).map(|n| Rx::text((n * step).to_string())))));
        }
        for length in 1..=4usize {
            let unit = 10i128.pow(length as u32);
            if unit % step == 0 && unit / step <= ENDINGS {
                let ends = (0..unit / step).map(|n| Rx::text(format!("{:0length$}", n * step)));
                let long = Rx::concat([Rx::range('0', '9').repeat(0, None), Rx::alt(ends)]);
                let short = (0..unit / step).map(|n| Rx::text((n * step).to_string()));
                let size = Rx::alt(std::iter::once(long).chain(short));
                let rx = Rx::concat([Rx::text("-").optional(), size]);
                return Ok(NumberRule::Texts(Rx::and([within(), rx])));
            }
        }
        if step > i128::from(u32::MAX) {
            return Err("is too large to be enforced");
        }
        let (low, high) = (low.max(-DOUBLE) as i64, high.min(DOUBLE) as i64);
        Ok(NumberRule::Schema(
            json!({"type": "integer", "multipleOf": step as i64, "minimum": low, "maximum": high}),
        ))
    }
}

/// Numbers whose part behind the point is a multiple of `step / unit`.
fn fractions(step: i128, unit: i128, places: usize) -> Rx {
    let parts = (1..unit / step).flat_map(|n| {
        let all = format!("{:0places$}", n * step);
        let short = all.trim_end_matches('0').to_owned();
        let both = if short == all { vec![all] } else { vec![short, all] };
        both.into_iter().map(|part| Rx::text(format!(".{part}")))
    });
    let zeros = Rx::concat([Rx::text("."), Rx::text("0").repeat(1, Some(places as u32))]);
    let part = Rx::alt([Rx::empty(), zeros].into_iter().chain(parts));
    Rx::concat([Rx::text("-").optional(), Rx::range('0', '9').repeat(1, None), part])
}

/// The least common multiple.
fn common(a: i128, b: i128) -> Option<i128> {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    if x == 0 { None } else { (a / x).checked_mul(b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(low: &str, high: &str, step: &str) -> Numbers {
        let mut numbers = Numbers::default();
        numbers.at_least(Decimal::parse(low).unwrap(), true);
        numbers.at_most(Decimal::parse(high).unwrap(), true);
        if !step.is_empty() {
            numbers.multiple_of(Decimal::parse(step).unwrap());
        }
        numbers
    }

    #[test]
    fn steps_are_kept() {
        for (numbers, whole, yes, no) in [
            (of("0", "20", "5"), true, &["0", "20", "15"][..], &["25", "3", "-5"][..]),
            (of("-1000000", "1000000", "25"), true, &["-75", "0", "999975"], &["-76", "1000025"]),
            (of("0", "100000", "0.01"), false, &["0.07", "1.50", "3"], &["0.001", "1.005"]),
            (of("0", "100000", "0.25"), false, &["0.25", "1.5", "1.50", "3", "3.00"], &["0.3", "1.26"]),
            (of("0", "1000", "0.3"), false, &["3", "0"], &["0.4", "1"]),
            (
                of("-9223372036854775808", "9223372036854775807", "1000"),
                true,
                &["-9223372036854775000", "0"],
                &["100"],
            ),
        ] {
            let NumberRule::Texts(rx) = numbers.rule(whole, &[]).unwrap() else { panic!() };
            yes.iter().for_each(|text| assert_eq!(rx.matches(text), Some(true), "{text}"));
            no.iter().for_each(|text| assert_eq!(rx.matches(text), Some(false), "{text}"));
        }
        assert!(matches!(of("0", "1e15", "7").rule(true, &[]), Ok(NumberRule::Schema(_))));
        let none = [Decimal::parse("2").unwrap()];
        let NumberRule::Texts(rx) = of("0", "3", "").rule(false, &none).unwrap() else { panic!() };
        assert_eq!(
            (rx.matches("2.0"), rx.matches("2"), rx.matches("2.01")),
            (Some(false), Some(false), Some(true))
        );
    }
}
