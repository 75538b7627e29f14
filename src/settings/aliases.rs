//! `LME_*` variables, which earlier servers of this kind documented.

use super::Setting;
use super::arguments::truth;

/// What a variable means: a setting, or words on why it sets nothing. `None` if it is none of these variables.
pub(super) fn read(name: &str, value: &str) -> Option<Result<Setting, String>> {
    let rest = name.strip_prefix("LME_")?;
    let setting = |flag: &str, value: &str| {
        Ok(Setting { flag: flag.to_owned(), values: vec![value.to_owned()], source: name.to_owned() })
    };
    let switch = truth(value);
    Some(match (rest, switch) {
        ("BANK_EVICTION_POLICY", _) => setting("bank-eviction", value),
        ("CONTINUOUS_BATCHING_MAX_B", _) => setting("max-batch", value),
        ("CONTINUOUS_BATCHING", Some(true)) => setting("continuous-batching", "true"),
        ("CONTINUOUS_BATCHING", Some(false)) => setting("no-continuous-batching", "true"),
        ("BF16_STACKED_STREAMING", Some(true)) => setting("expert-residency", "bf16_streaming"),
        ("BF16_STACKED_STREAMING", Some(false)) => Err("is so anyway".to_owned()),
        ("TRANSIENT_PREFILL", Some(true)) => Err("is so whenever experts are streamed".to_owned()),
        ("TRANSIENT_PREFILL", Some(false)) => {
            Err("prompts are always read through the transient arena while experts are streamed".to_owned())
        }
        ("DECODE_RESIDENCY", _) => {
            Err("has no counterpart: hot experts stay in the bank by --bank-eviction".to_owned())
        }
        ("DISK_KV_EVICTION_POLICY", _) if value == "value" => Err("is so anyway".to_owned()),
        ("DISK_KV_EVICTION_POLICY", _) => Err("only `value` is known".to_owned()),
        ("CONTINUOUS_BATCHING" | "BF16_STACKED_STREAMING" | "TRANSIENT_PREFILL", None) => {
            Err("must be 0 or 1".to_owned())
        }
        _ => Err("is not known".to_owned()),
    })
}

/// The setting as a flag.
pub(super) fn describe(setting: &Setting) -> String {
    match setting.values.first().map(String::as_str) {
        Some("true") | None => format!("--{}", setting.flag),
        Some(value) => format!("--{} {value}", setting.flag),
    }
}
