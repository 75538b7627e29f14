//! The settings file: TOML, one key a flag.

use std::path::Path;

use clap::Command;
use toml::{Table, Value};

use super::Setting;
use super::arguments::find;
use crate::Exit;

/// Reads a file. Keys are names of flags, with dashes or underscores; an unknown one is an error.
pub(super) fn read(command: &Command, path: &Path) -> Result<Vec<Setting>, Exit> {
    let named =
        |reason: &dyn std::fmt::Display| Exit::input(format!("--config {}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| named(&e))?;
    let table: Table = text.parse().map_err(|e: toml::de::Error| named(&e.to_string().trim_end()))?;
    table.into_iter().map(|(key, value)| setting(command, path, &key, value).map_err(|e| named(&e))).collect()
}

fn setting(command: &Command, path: &Path, key: &str, value: Value) -> Result<Setting, String> {
    let flag = key.replace('_', "-");
    if flag == "config" {
        return Err("`config` cannot be set in the file itself".to_owned());
    }
    if find(command, &flag).is_none() {
        return Err(format!("`{key}` is no setting"));
    }
    let values = match value {
        Value::Array(list) => {
            list.into_iter().map(|value| scalar(key, value)).collect::<Result<Vec<_>, _>>()?
        }
        value => vec![scalar(key, value)?],
    };
    Ok(Setting { flag, values, source: format!("`{key}` in {}", path.display()) })
}

fn scalar(key: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(truth) => Ok(truth.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
            Err(format!("`{key}` must be a text, a number, true or false, or a list of those"))
        }
    }
}
