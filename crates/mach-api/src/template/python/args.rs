//! Arguments by position or by name, as Python passes them.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};

/// Arguments of a call, being taken apart in order.
pub(in crate::template) struct Args<'a> {
    name: &'a str,
    positional: std::slice::Iter<'a, Value>,
    named: Option<Kwargs>,
}

impl<'a> Args<'a> {
    pub(in crate::template) fn new(name: &'a str, args: &'a [Value]) -> Self {
        let named =
            args.last().filter(|last| last.is_kwargs()).and_then(|v| Kwargs::try_from(v.clone()).ok());
        let positional = if named.is_some() { args.get(..args.len() - 1).unwrap_or_default() } else { args };
        Self { name, positional: positional.iter(), named }
    }

    /// The next argument, or the one of this name.
    pub(in crate::template) fn optional(&mut self, name: &str) -> Option<Value> {
        if let Some(value) = self.positional.next() {
            return Some(value.clone());
        }
        let named = self.named.as_ref()?;
        if named.has(name) { named.get(name).ok() } else { None }
    }

    pub(in crate::template) fn required(&mut self, name: &str) -> Result<Value, Error> {
        self.optional(name).ok_or_else(|| self.error(format!("needs an argument {name}")))
    }

    pub(in crate::template) fn string(&mut self, name: &str) -> Result<String, Error> {
        let value = self.required(name)?;
        self.as_string(name, &value)
    }

    /// Absent and `None` are the same.
    pub(in crate::template) fn optional_string(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.optional(name).filter(|v| !v.is_none()) {
            Some(value) => self.as_string(name, &value).map(Some),
            None => Ok(None),
        }
    }

    pub(in crate::template) fn optional_integer(&mut self, name: &str) -> Result<Option<i64>, Error> {
        match self.optional(name).filter(|v| !v.is_none()) {
            Some(value) => self.as_integer(name, &value).map(Some),
            None => Ok(None),
        }
    }

    pub(in crate::template) fn integer(&mut self, name: &str) -> Result<i64, Error> {
        let value = self.required(name)?;
        self.as_integer(name, &value)
    }

    pub(in crate::template) fn bool(&mut self, name: &str, default: bool) -> bool {
        self.optional(name).map_or(default, |value| value.is_true())
    }

    /// Complains about arguments that nobody took.
    pub(in crate::template) fn finish(mut self) -> Result<(), Error> {
        if self.positional.next().is_some() {
            return Err(self.error("takes fewer arguments"));
        }
        self.named.as_ref().map_or(Ok(()), Kwargs::assert_all_used)
    }

    pub(in crate::template) fn error(&self, reason: impl AsRef<str>) -> Error {
        Error::new(ErrorKind::InvalidOperation, format!("{}: {}", self.name, reason.as_ref()))
    }

    fn as_string(&self, name: &str, value: &Value) -> Result<String, Error> {
        match value.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(self.error(format!("{name} must be a string, not {}", value.kind()))),
        }
    }

    fn as_integer(&self, name: &str, value: &Value) -> Result<i64, Error> {
        match value.as_i64() {
            Some(n) if value.is_integer() => Ok(n),
            _ if value.kind() == minijinja::value::ValueKind::Bool => Ok(i64::from(value.is_true())),
            _ => Err(self.error(format!("{name} must be an integer, not {}", value.kind()))),
        }
    }
}
