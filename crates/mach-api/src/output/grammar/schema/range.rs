//! Numbers between bounds, as texts.

use super::decimal::Decimal;
use super::rx::Rx;

/// A bound, and whether the number itself is within.
pub(super) type Bound = (Decimal, bool);

/// Whole digits of a number without bounds.
const WHOLE: u32 = 19;
/// Its digits behind the point: more than a double tells apart say nothing.
const PART: u32 = 17;
/// Digits that a double keeps apart.
const EXACT: usize = 15;

fn digits(from: u8, to: u8) -> Rx {
    Rx::range(char::from(from), char::from(to))
}

fn digit(d: u8) -> Rx {
    Rx::text(char::from(d))
}

fn any_digits(least: usize, most: usize) -> Rx {
    digits(b'0', b'9').repeat(least as u32, Some(most as u32))
}

/// A number without bounds: as long as one that a reader can keep.
pub(super) fn unbounded() -> Rx {
    let whole = Rx::alt([
        Rx::text("0"),
        Rx::concat([digits(b'1', b'9'), digits(b'0', b'9').repeat(0, Some(WHOLE - 1))]),
    ]);
    let part = Rx::concat([Rx::text("."), digits(b'0', b'9').repeat(1, Some(PART))]).optional();
    let sign = Rx::alt([Rx::text("+"), Rx::text("-")]).optional();
    let e = Rx::alt([Rx::text("e"), Rx::text("E")]);
    let exponent = Rx::concat([e, sign, digits(b'0', b'9').repeat(1, Some(2))]).optional();
    Rx::concat([Rx::text("-").optional(), whole, part, exponent])
}

/// Whole numbers between bounds; where there is none, those of 64 bits.
pub(super) fn integers(low: Option<&Bound>, high: Option<&Bound>) -> Rx {
    let (low, high) = whole_bounds(low, high);
    let negative = if low < Decimal::zero() {
        let nearest =
            if high < Decimal::zero() { high.clone().negated() } else { Decimal::whole(false, "1") };
        Rx::concat([Rx::text("-"), whole_between(&nearest.whole, &low.clone().negated().whole)])
    } else {
        Rx::never()
    };
    let positive = if high >= Decimal::zero() {
        let nearest = if low < Decimal::zero() { Decimal::zero() } else { low };
        whole_between(&nearest.whole, &high.whole)
    } else {
        Rx::never()
    };
    Rx::alt([negative, positive])
}

/// The least and the greatest whole number within bounds.
pub(super) fn whole_bounds(low: Option<&Bound>, high: Option<&Bound>) -> (Decimal, Decimal) {
    // Rounds towards the inside; `up` for lower bounds.
    let inside = |(at, within): &Bound, up: bool| {
        let away = at.negative != up;
        let cut = at.truncated();
        if (at.is_whole() && *within) || (!at.is_whole() && !away) {
            return cut;
        }
        match (away, cut.is_zero()) {
            // From zero a step leads to either side.
            (_, true) => Decimal::whole(!up, "1"),
            (true, false) => cut.further(),
            (false, false) => cut.nearer(),
        }
    };
    let low = low.map(|bound| inside(bound, true));
    let high = high.map(|bound| inside(bound, false));
    let beyond = |bound: &Decimal| Decimal {
        negative: bound.negative,
        whole: vec![b'9'; bound.whole.len() + 1],
        part: Vec::new(),
    };
    let (least, greatest) =
        (Decimal::whole(true, "9223372036854775808"), Decimal::whole(false, "9223372036854775807"));
    let least = match &high {
        Some(high) if *high < least => beyond(high),
        _ => least,
    };
    let greatest = match &low {
        Some(low) if *low > greatest => beyond(low),
        _ => greatest,
    };
    (low.unwrap_or(least), high.unwrap_or(greatest))
}

/// Whole numbers without sign, from `low` to `high`.
fn whole_between(low: &[u8], high: &[u8]) -> Rx {
    if low.len() > high.len() || (low.len() == high.len() && low > high) {
        return Rx::never();
    }
    let mut out = Vec::new();
    let mut low = low;
    if low.is_empty() {
        out.push(Rx::text("0"));
        if high.is_empty() {
            return Rx::alt(out);
        }
        low = b"1";
    }
    if low.len() == high.len() {
        out.push(same_length(Some(low), Some(high), low.len()));
        return Rx::alt(out);
    }
    out.push(same_length(Some(low), None, low.len()));
    if low.len() + 1 < high.len() {
        out.push(Rx::concat([digits(b'1', b'9'), any_digits(low.len(), high.len() - 2)]));
    }
    // No zero in front.
    let least: Vec<u8> = std::iter::once(b'1').chain(std::iter::repeat_n(b'0', high.len() - 1)).collect();
    out.push(same_length(Some(&least), Some(high), high.len()));
    Rx::alt(out)
}

/// Digits of one length, at or between what is given.
fn same_length(low: Option<&[u8]>, high: Option<&[u8]>, length: usize) -> Rx {
    if length == 0 {
        return Rx::empty();
    }
    if low.is_none_or(|l| l.iter().all(|&d| d == b'0')) && high.is_none_or(|h| h.iter().all(|&d| d == b'9')) {
        return any_digits(length, length);
    }
    let (first, last) = (low.map_or(b'0', |l| l[0]), high.map_or(b'9', |h| h[0]));
    let (low_rest, high_rest) = (low.map(|l| &l[1..]), high.map(|h| &h[1..]));
    if first == last {
        return Rx::concat([digit(first), same_length(low_rest, high_rest, length - 1)]);
    }
    let mut out = Vec::new();
    let (mut from, mut to) = (first, last);
    if low.is_some() {
        out.push(Rx::concat([digit(first), same_length(low_rest, None, length - 1)]));
        from += 1;
    }
    if high.is_some() {
        out.push(Rx::concat([digit(last), same_length(None, high_rest, length - 1)]));
        to -= 1;
    }
    if from <= to {
        out.push(Rx::concat([digits(from, to), any_digits(length - 1, length - 1)]));
    }
    Rx::alt(out)
}

/// Numbers between bounds, of which there is at least one.
pub(super) fn decimals(low: Option<&Bound>, high: Option<&Bound>) -> Rx {
    let largest = [low, high].into_iter().flatten().map(|(at, _)| at.whole.len()).max().unwrap_or(0);
    let longest = [low, high].into_iter().flatten().map(|(at, _)| at.part.len()).max().unwrap_or(0);
    let places = EXACT.saturating_sub(largest).max(longest + 1).min(PART as usize).max(longest);
    let far = Decimal { negative: false, whole: vec![b'9'; (largest + 1).max(EXACT)], part: Vec::new() };
    let low = low.cloned().unwrap_or_else(|| (far.clone().negated(), true));
    let high = high.cloned().unwrap_or((far, true));
    let zero = (Decimal::zero(), true);
    let flip = |(at, within): &Bound| (at.clone().negated(), *within);
    let negative = if low.0.negative {
        let nearest = if high.0.negative { flip(&high) } else { (Decimal::zero(), false) };
        Rx::concat([Rx::text("-"), sizes(&nearest, &flip(&low), places)])
    } else {
        Rx::never()
    };
    let positive = if high.0.negative {
        Rx::never()
    } else {
        sizes(if low.0.negative { &zero } else { &low }, &high, places)
    };
    Rx::alt([negative, positive])
}

/// Numbers without sign between bounds, with at most `places` digits behind the point.
fn sizes(low: &Bound, high: &Bound, places: usize) -> Rx {
    if low.0 > high.0 || (low.0 == high.0 && !(low.1 && high.1)) {
        return Rx::never();
    }
    let whole = |at: &Decimal| Rx::text(if at.whole.is_empty() { "0".into() } else { text(&at.whole) });
    let above = Some((low.0.part.as_slice(), low.1));
    let below = Some((high.0.part.as_slice(), high.1));
    if low.0.whole == high.0.whole {
        return Rx::concat([whole(&low.0), part(above, below, places)]);
    }
    let (first, last) = (low.0.truncated().further(), high.0.truncated().nearer());
    let between = if first <= last { whole_between(&first.whole, &last.whole) } else { Rx::never() };
    Rx::alt([
        Rx::concat([whole(&low.0), part(above, None, places)]),
        Rx::concat([between, part(None, None, places)]),
        Rx::concat([whole(&high.0), part(None, below, places)]),
    ])
}

fn text(digits: &[u8]) -> String {
    digits.iter().map(|&d| char::from(d)).collect()
}

/// Digits behind the point, and whether they themselves are within.
type Digits<'d> = Option<(&'d [u8], bool)>;

/// A point and digits, or nothing at all if that is within the bounds.
fn part(low: Digits<'_>, high: Digits<'_>, places: usize) -> Rx {
    let without = if holds_zero(low, high) { Rx::empty() } else { Rx::never() };
    Rx::alt([without, Rx::concat([Rx::text("."), some_digits(low, high, places)])])
}

fn holds_zero(low: Digits<'_>, high: Digits<'_>) -> bool {
    low.is_none_or(|(digits, within)| within && digits.is_empty())
        && high.is_none_or(|(digits, within)| within || !digits.is_empty())
}

/// One to `places` digits. Missing ones at the end count as zeros, on either side.
fn some_digits(low: Digits<'_>, high: Digits<'_>, places: usize) -> Rx {
    let low = low.filter(|(digits, within)| !(digits.is_empty() && *within));
    if places == 0 {
        return Rx::never();
    }
    if low.is_none() && high.is_none() {
        return any_digits(1, places);
    }
    let mut out = Vec::new();
    let mut free: Option<(u8, u8)> = None;
    for d in b'0'..=b'9' {
        let above = match low {
            None => None,
            Some((digits, within)) => {
                let first = digits.first().copied().unwrap_or(b'0');
                match d.cmp(&first) {
                    std::cmp::Ordering::Less => continue,
                    std::cmp::Ordering::Equal => Some((digits.get(1..).unwrap_or_default(), within)),
                    std::cmp::Ordering::Greater => None,
                }
            }
        };
        let below = match high {
            None => None,
            Some((digits, within)) => {
                let first = digits.first().copied().unwrap_or(b'0');
                match d.cmp(&first) {
                    std::cmp::Ordering::Greater => continue,
                    std::cmp::Ordering::Equal => Some((digits.get(1..).unwrap_or_default(), within)),
                    std::cmp::Ordering::Less => None,
                }
            }
        };
        if above.is_none() && below.is_none() {
            free = Some((free.map_or(d, |(from, _)| from), d));
            continue;
        }
        let rest = if places > 1 { some_digits(above, below, places - 1) } else { Rx::never() };
        let end = if holds_zero(above, below) { Rx::empty() } else { Rx::never() };
        out.push(Rx::concat([digit(d), Rx::alt([end, rest])]));
    }
    if let Some((from, to)) = free {
        out.push(Rx::concat([digits(from, to), any_digits(0, places - 1)]));
    }
    Rx::alt(out.into_iter().filter(|item| !item.is_never()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bound(text: &str, within: bool) -> Bound {
        (Decimal::parse(text).unwrap(), within)
    }

    #[test]
    fn whole_numbers_are_within_their_bounds() {
        let of = |low: &str, high: &str| integers(Some(&bound(low, true)), Some(&bound(high, true)));
        let rx = of("-9223372036854775808", "9223372036854775807");
        for (text, within) in [
            ("9223372036854775807", true),
            ("9223372036854775808", false),
            ("-9223372036854775808", true),
            ("-9223372036854775809", false),
            ("0", true),
            ("-0", false),
            ("007", false),
            ("12", true),
        ] {
            assert_eq!(rx.matches(text), Some(within), "{text}");
        }
        let rx = of("-3.5", "2.5");
        let all: Vec<i32> = (-9..9).filter(|n| rx.matches(&n.to_string()) == Some(true)).collect();
        assert_eq!(all, [-3, -2, -1, 0, 1, 2]);
        let open = integers(Some(&bound("0", false)), Some(&bound("3", false)));
        let all: Vec<i32> = (-9..9).filter(|n| open.matches(&n.to_string()) == Some(true)).collect();
        assert_eq!(all, [1, 2]);
        assert!(of("0.2", "0.7").listed(9).is_none_or(|list| list.is_empty()));
        let huge = integers(Some(&bound("18446744073709551616", true)), None);
        assert_eq!(huge.matches("18446744073709551616"), Some(true));
        assert_eq!(huge.matches("18446744073709551615"), Some(false));
    }

    #[test]
    fn numbers_have_an_end() {
        let (_, most) = unbounded().lengths();
        assert!(most < 50);
        let (_, most) = decimals(Some(&bound("0", false)), None).lengths();
        assert!(most < 50);
    }

    proptest! {
        #[test]
        fn integers_agree_with_arithmetic(a in -2000i64..2000, b in -2000i64..2000, n in -3000i64..3000,
            low in any::<bool>(), high in any::<bool>()) {
            let rx = integers(Some(&bound(&a.to_string(), low)), Some(&bound(&b.to_string(), high)));
            let within = (n > a || (low && n == a)) && (n < b || (high && n == b));
            prop_assert_eq!(rx.matches(&n.to_string()), Some(within));
        }

        #[test]
        fn decimals_agree_with_arithmetic(a in -3000i64..3000, b in -3000i64..3000, n in -4000i64..4000,
            places in 0usize..4, low in any::<bool>(), high in any::<bool>(), zeros in 0usize..3) {
            let write = |n: i64, places: usize| {
                let digits = format!("{:04}", n.abs());
                let (whole, part) = digits.split_at(4 - places);
                let whole = whole.trim_start_matches('0');
                let whole = if whole.is_empty() { "0" } else { whole };
                let point = if places > 0 { "." } else { "" };
                format!("{}{whole}{point}{part}", if n < 0 { "-" } else { "" })
            };
            let (a, b) = (write(a, 2), write(b, 2));
            let rx = decimals(Some(&bound(&a, low)), Some(&bound(&b, high)));
            let (a, b) = (Decimal::parse(&a).unwrap(), Decimal::parse(&b).unwrap());
            let mut text = write(n, places);
            let number = Decimal::parse(&text).unwrap();
            if places > 0 {
                text.push_str(&"0".repeat(zeros));
            }
            let within = (number > a || (low && number == a)) && (number < b || (high && number == b));
            prop_assert_eq!(rx.matches(&text), Some(within), "{}", text);
        }
    }
}
