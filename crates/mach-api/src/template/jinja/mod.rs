//! Jinja2 where minijinja differs from it: filters, tests, operators, and the names that a template may use.

mod escape;
mod filters;
mod globals;
pub(super) mod names;
mod numbers;
pub(super) mod operators;
mod sequences;
mod tests;
mod walk;
mod words;

use minijinja::{AutoEscape, Environment};

pub(super) use self::globals::Raised;
use super::allowance;

/// Puts all of it into an environment.
pub(super) fn install(env: &mut Environment<'static>) {
    filters::install(env);
    tests::install(env);
    globals::install(env);
    env.set_unknown_method_callback(super::python::methods::call);
    env.set_formatter(|out, state, value| {
        allowance::take(0)?;
        // Only an `autoescape` block asks for it.
        if !matches!(state.auto_escape(), AutoEscape::None) && !value.is_safe() {
            return Ok(out.write_str(&escape::html(&super::python::text::str(value)))?);
        }
        match value.as_str() {
            Some(text) => Ok(out.write_str(text)?),
            None => Ok(out.write_str(&super::python::text::str(value))?),
        }
    });
}
