//! Filters that make or round numbers.

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, Value};

use crate::template::python::args::Args;
use crate::template::python::number::{BigInt, integer};

pub(super) fn install(env: &mut Environment<'static>) {
    env.add_filter("int", |value: &Value, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        let mut args = Args::new("int", &args);
        let default = args.optional("default").unwrap_or_else(|| Value::from(0));
        let base = args.optional_integer("base")?.unwrap_or(10);
        args.finish()?;
        Ok::<_, Error>(int(value, base).unwrap_or(default))
    });
    env.add_filter("float", |value: &Value, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        let mut args = Args::new("float", &args);
        let default = args.optional("default").unwrap_or_else(|| Value::from(0.0));
        args.finish()?;
        Ok::<_, Error>(float(value).map_or(default, Value::from))
    });
    env.add_filter("round", round);
}

fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

/// `int(value)`, of text in a base; `None` where Python raises.
fn int(value: &Value, base: i64) -> Option<Value> {
    if BigInt::of(value).is_some() || (value.is_integer() && is_number(value)) {
        return Some(value.clone());
    }
    if let Some(whole) = value.as_str().and_then(|text| parse_int(text, base)) {
        return Some(whole);
    }
    let f = float(value)?.trunc();
    // The digits of a double are exact without an exponent.
    f.is_finite().then(|| integer(&format!("{}", if f == 0.0 { 0.0 } else { f })))
}

fn parse_int(text: &str, base: i64) -> Option<Value> {
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (if text.starts_with('-') { "-" } else { "" }, digits),
        None => ("", text),
    };
    if digits.starts_with('_') || digits.ends_with('_') || digits.contains("__") {
        return None;
    }
    let digits = digits.replace('_', "").to_lowercase();
    if base == 10 {
        let sound = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let significant = digits.trim_start_matches('0');
        let significant = if significant.is_empty() { "0" } else { significant };
        return sound.then(|| {
            if significant == "0" { Value::from(0) } else { integer(&format!("{sign}{significant}")) }
        });
    }
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let digits =
        if prefix.is_empty() { digits.as_str() } else { digits.strip_prefix(prefix).unwrap_or(&digits) };
    if digits.starts_with(['+', '-']) || !(2..=36).contains(&base) {
        return None;
    }
    let magnitude = i128::from_str_radix(digits, u32::try_from(base).ok()?).ok()?;
    Some(Value::from(if sign == "-" { -magnitude } else { magnitude }))
}

/// `float(value)`; `None` where Python raises.
fn float(value: &Value) -> Option<f64> {
    if is_number(value) {
        return if value.kind() == ValueKind::Bool {
            Some(if value.is_true() { 1.0 } else { 0.0 })
        } else {
            f64::try_from(value.clone()).ok()
        };
    }
    if let Some(big) = BigInt::of(value) {
        return big.digits().parse().ok();
    }
    let text = value.as_str()?.trim();
    let named = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let plain =
        text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E' | b'_'));
    if plain || matches!(named.as_str(), "inf" | "infinity" | "nan") {
        text.replace('_', "").parse().ok()
    } else {
        None
    }
}

fn round(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let mut args = Args::new("round", &args);
    let precision = args.optional_integer("precision")?.unwrap_or(0).clamp(-300, 300) as i32;
    let method = args.optional_string("method")?.unwrap_or_else(|| "common".into());
    if !is_number(value) {
        return Err(args.error(format!("the value is {}, not a number", value.kind())));
    }
    let Some(f) = float(value) else { return Err(args.error("the value is not a number")) };
    let power = 10f64.powi(precision);
    let out = match method.as_str() {
        "common" if value.is_integer() && precision >= 0 => value.clone(),
        "common" if value.is_integer() => Value::from(((f * power).round_ties_even() / power) as i64),
        // The digits are rounded, half to even, as Python rounds them.
        "common" if precision >= 0 => {
            let digits = format!("{f:.*}", usize::try_from(precision).unwrap_or(0));
            Value::from(digits.parse::<f64>().unwrap_or(f))
        }
        "common" => Value::from((f * power).round_ties_even() / power),
        "ceil" => Value::from((f * power).ceil() / power),
        "floor" => Value::from((f * power).floor() / power),
        _ => return Err(args.error("method must be common, ceil or floor")),
    };
    args.finish()?;
    Ok(out)
}
