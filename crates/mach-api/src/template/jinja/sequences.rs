//! Filters of sequences whose arguments minijinja takes otherwise: Jinja2 takes them by position as well as by name.

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value, filters};

use crate::template::allowance;
use crate::template::python::args::Args;
use crate::template::python::text;

pub(super) fn install(env: &mut Environment<'static>) {
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("join", join);
    env.add_filter("sort", |state: &State<'_, '_>, value: Value, args: Rest<ValueOrKwargs>| {
        filters::sort(
            state,
            value,
            by_name(&args.into_values(), &["reverse", "case_sensitive", "attribute"])?,
        )
    });
    env.add_filter("dictsort", |value: &Value, args: Rest<ValueOrKwargs>| {
        filters::dictsort(value, by_name(&args.into_values(), &["case_sensitive", "by", "reverse"])?)
    });
    env.add_filter("unique", |state: &State<'_, '_>, value: Value, args: Rest<ValueOrKwargs>| {
        filters::unique(state, value, by_name(&args.into_values(), &["case_sensitive", "attribute"])?)
    });
    env.add_filter("min", |state: &State<'_, '_>, value: Value, args: Rest<ValueOrKwargs>| {
        filters::min(state, value, by_name(&args.into_values(), &["case_sensitive", "attribute"])?)
    });
    env.add_filter("max", |state: &State<'_, '_>, value: Value, args: Rest<ValueOrKwargs>| {
        filters::max(state, value, by_name(&args.into_values(), &["case_sensitive", "attribute"])?)
    });
}

/// Gives arguments by position their names.
fn by_name(args: &[Value], names: &[&str]) -> Result<Kwargs, Error> {
    let named = args.last().filter(|last| last.is_kwargs());
    let positional = args.get(..args.len() - usize::from(named.is_some())).unwrap_or_default();
    if positional.len() > names.len() {
        return Err(Error::from(minijinja::ErrorKind::TooManyArguments));
    }
    let mut all: Vec<(String, Value)> =
        names.iter().zip(positional).map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    if let Some(named) = named {
        let kwargs = Kwargs::try_from(named.clone())?;
        for name in kwargs.args() {
            all.push((name.to_owned(), kwargs.peek(name)?));
        }
    }
    Ok(all.into_iter().filter(|(_, value)| !value.is_none()).collect())
}

fn default(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let mut args = Args::new("default", &args);
    let other = args.optional("default_value").unwrap_or_else(|| Value::from(""));
    let boolean = args.bool("boolean", false);
    args.finish()?;
    Ok(if value.is_undefined() || (boolean && !value.is_true()) { other } else { value.clone() })
}

fn join(state: &State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let args = args.into_values();
    let mut args = Args::new("join", &args);
    let separator = args.optional("d").map_or_else(String::new, |v| text::str(&v));
    let attribute = args.optional("attribute");
    args.finish()?;
    let mut out = String::new();
    if value.is_undefined() {
        return Ok(out);
    }
    for (i, mut item) in value.try_iter()?.enumerate() {
        if i > 0 {
            out.push_str(&separator);
        }
        match &attribute {
            Some(path) if path.kind() == ValueKind::String => {
                for step in path.as_str().unwrap_or_default().split('.') {
                    item = match step.parse::<usize>() {
                        Ok(index) => item.get_item_by_index(index)?,
                        Err(_) => item.get_attr(step)?,
                    };
                }
            }
            Some(key) => item = item.get_item(key)?,
            None => {}
        }
        let before = out.len();
        out.push_str(&text::str(&item));
        state.consume_fuel(1 + (out.len() - before + separator.len()) as u64 / 64)?;
        allowance::take(2 * (out.len() - before + separator.len()))?;
    }
    Ok(out)
}
