//! Bounds of a request.

use crate::notes::UnknownFields;

/// How large the parts of a request may be, and what is done with fields that nobody knows. The body as a whole is
/// limited by the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most messages of a request.
    pub messages: usize,
    /// Most tools of a request.
    pub tools: usize,
    /// Choices, `n`.
    pub choices: u32,
    /// Stop strings.
    pub stops: usize,
    /// Bytes of a stop string.
    pub stop_bytes: usize,
    /// Entries of `logit_bias` and of `stop_token_ids`.
    pub token_ids: usize,
    /// How deep the JSON of a schema and the brackets of a grammar may nest.
    pub schema_depth: usize,
    /// Values in a schema, nested ones included.
    pub schema_values: usize,
    /// Bytes of a grammar.
    pub grammar_bytes: usize,
    /// What is done with fields that nobody knows.
    pub unknown_fields: UnknownFields,
    /// Whether the line with which some clients begin their instructions to name themselves is part of the prompt. It may be another
    /// one with every request, and no prefix would be found again.
    pub keep_client_headers: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            messages: 10_000,
            tools: 1_000,
            choices: 128,
            stops: 32,
            stop_bytes: 1_000,
            token_ids: 4_096,
            schema_depth: 64,
            schema_values: 50_000,
            grammar_bytes: 64 << 10,
            unknown_fields: UnknownFields::default(),
            keep_client_headers: false,
        }
    }
}
