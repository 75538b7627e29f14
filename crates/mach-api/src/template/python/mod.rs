//! What Python brings to chat templates: how values print, and the methods of `str`, `list` and `dict`.

pub(super) mod args;
mod braces;
pub(super) mod containers;
pub(super) mod format;
pub(super) mod json;
pub(super) mod methods;
pub(super) mod number;
pub(super) mod search;
pub(super) mod strings;
pub(super) mod text;
