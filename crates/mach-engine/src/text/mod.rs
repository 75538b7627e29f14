//! From tokens to text that may be shown: whole characters only, and nothing of a stop string.

mod stop;
mod stream;
mod utf8;

pub(crate) use stream::TextStream;

#[cfg(test)]
mod tests;
