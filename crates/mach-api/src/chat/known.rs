//! Fields of OpenAI and vLLM beside those that are understood: harmless ones, and those that are refused because an answer
//! without them would mean something else.

use serde_json::Value;

use crate::ApiError;
use crate::fields::Fields;

/// Fields that cannot change the text of an answer: accepted and ignored.
pub(super) const HARMLESS: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "request_id",
    "priority",
    // How a guided answer is enforced is the server's own affair.
    "guided_decoding_backend",
    "guided_whitespace_pattern",
];

/// Whether a value asks for nothing.
type IsNeutral = fn(&Value) -> bool;

/// Fields of OpenAI or vLLM that would change the answer and are not supported, with the value that asks for nothing.
const UNSUPPORTED: &[(&str, IsNeutral)] = &[
    ("allowed_token_ids", |_| false),
    ("audio", |_| false),
    ("bad_words", |v| v.as_array().is_some_and(Vec::is_empty)),
    ("best_of", |v| v == 1),
    ("chat_template", |_| false),
    ("detokenize", |v| v == true),
    ("documents", |v| v.as_array().is_some_and(Vec::is_empty)),
    ("echo", |v| v == false),
    ("include_stop_str_in_output", |v| v == false),
    ("length_penalty", |v| v.as_f64() == Some(1.0)),
    ("logits_processors", |v| v.as_array().is_some_and(Vec::is_empty)),
    ("min_tokens", |v| v == 0),
    ("modalities", |v| v.as_array().is_some_and(|a| a.len() == 1 && a[0] == "text")),
    ("prompt_logprobs", |v| v == 0 || v == false),
    ("skip_special_tokens", |v| v == true),
    ("spaces_between_special_tokens", |v| v.is_boolean()),
    ("truncate_prompt_tokens", |v| v == -1),
    ("typical_p", |v| v.as_f64() == Some(1.0)),
    ("use_beam_search", |v| v == false),
    ("web_search_options", |_| false),
];

/// Ends a body: fields that would change the answer are refused by name, unless they ask for nothing.
pub(crate) fn end_body(mut fields: Fields) -> Result<(), ApiError> {
    for (name, asks_nothing) in UNSUPPORTED {
        if fields.take(name).is_some_and(|value| !asks_nothing(&value)) {
            return Err(fields.error(name, "this field is not supported with this value"));
        }
    }
    fields.end(HARMLESS)
}
