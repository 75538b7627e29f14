//! Numbers as Python prints them, and integers of any size.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{DynObject, Object, ObjectRepr};

/// `repr(float)`: shortest digits, decimal notation for exponents from -4 to 15.
pub(in crate::template) fn float(f: f64) -> String {
    if f.is_nan() {
        return "nan".into();
    }
    if f.is_infinite() {
        return if f > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{f:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if f == 0.0 || (-4..16).contains(&exponent) {
        let plain = format!("{f}");
        if plain.contains('.') { plain } else { plain + ".0" }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

/// An integer from its decimal digits, exact whatever its size.
pub(in crate::template) fn integer(digits: &str) -> Value {
    if let Ok(n) = digits.parse::<i64>() {
        Value::from(n)
    } else if let Ok(n) = digits.parse::<i128>() {
        Value::from(n)
    } else {
        Value::from_object(BigInt(digits.to_owned()))
    }
}

/// An integer beyond 128 bits. It prints, compares and counts as a number; nothing calculates with it.
pub(in crate::template) struct BigInt(String);

impl BigInt {
    pub(in crate::template) fn of(value: &Value) -> Option<&Self> {
        value.downcast_object_ref::<Self>()
    }

    pub(in crate::template) fn digits(&self) -> &str {
        &self.0
    }

    fn size(&self) -> (bool, usize, &str) {
        let magnitude = self.0.trim_start_matches('-');
        (!self.0.starts_with('-'), magnitude.len(), magnitude)
    }
}

impl fmt::Debug for BigInt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Object for BigInt {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        let (a, b) = (self.size(), other.downcast_ref::<Self>()?.size());
        Some(match (a.0, b.0) {
            (true, true) => (a.1, a.2).cmp(&(b.1, b.2)),
            (false, false) => (b.1, b.2).cmp(&(a.1, a.2)),
            (positive, _) => positive.cmp(&!positive),
        })
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (f, want) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1e22, "1e+22"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (123456.789, "123456.789"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(f), want);
        }
    }

    #[test]
    fn integers_keep_their_digits() {
        let nines = "9".repeat(60);
        for digits in
            ["0", "-7", "9223372036854775808", "170141183460469231731687303715884105728", nines.as_str()]
        {
            assert_eq!(integer(digits).to_string(), digits);
        }
        let order: Vec<Value> =
            ["-1", "-", "", "1"].iter().map(|start| integer(&format!("{start}{nines}"))).collect();
        assert!(order.is_sorted());
        assert_eq!(integer(&nines), integer(&nines));
    }
}
