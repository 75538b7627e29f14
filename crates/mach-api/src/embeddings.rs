//! `POST /v1/embeddings`: what the model makes of texts, as vectors.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;

use crate::chat::Limits;
use crate::completions::Prompt;
use crate::fields::{Fields, integer, kind};
use crate::json::json;
use crate::{ApiError, Notes};

/// Inputs of a request, at most, as OpenAI has it.
const MOST_INPUTS: usize = 2048;

/// How a vector is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// 32-bit floats, little-endian, as base64.
    Base64,
}

/// A valid body.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingRequest {
    /// Model, if given.
    pub model: Option<String>,
    /// The inputs; at least one, none empty.
    pub inputs: Vec<Prompt>,
    /// How vectors are written.
    pub encoding: Encoding,
    /// Leading values that are kept; all if not given.
    pub dimensions: Option<usize>,
    /// What was let pass.
    pub notes: Notes,
}

impl EmbeddingRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::body(json(body)?, limits.unknown_fields)?;
        let model = fields.string("model")?;
        let inputs = parse_inputs(&mut fields)?;
        let encoding = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(_) => return Err(fields.error("encoding_format", "must be `float` or `base64`")),
        };
        let dimensions = fields.integer("dimensions", 1..=1 << 20)?.map(|n| n as usize);
        match fields.string("pooling")?.as_deref() {
            None | Some("last") => {}
            Some("mean") => {
                let reason =
                    "`mean` is not supported: only the last token's hidden state is computed (`last`)";
                return Err(fields.error("pooling", reason));
            }
            Some(_) => return Err(fields.error("pooling", "must be `last`")),
        }
        let notes = fields.shared_notes();
        fields.end(&["user"])?;
        Ok(Self { model, inputs, encoding, dimensions, notes: notes.take() })
    }
}

/// A text, token ids, or a list of either.
fn parse_inputs(fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    let value = fields.take("input").ok_or_else(|| fields.error("input", "is required"))?;
    let many = match value {
        Value::Array(list) if list.first().is_some_and(|value| !value.is_number()) => list,
        one => return Ok(vec![parse_input("input", one)?]),
    };
    if many.len() > MOST_INPUTS {
        return Err(fields.error("input", format!("must hold at most {MOST_INPUTS} texts")));
    }
    let input = |(i, value)| parse_input(&format!("input[{i}]"), value);
    many.into_iter().enumerate().map(input).collect()
}

fn parse_input(path: &str, value: Value) -> Result<Prompt, ApiError> {
    let id = |(i, v)| integer(&format!("{path}[{i}]"), v, 0..=i64::from(u32::MAX)).map(|id| id as u32);
    match value {
        Value::String(text) if text.is_empty() => Err(ApiError::field(path, "must not be empty")),
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) if ids.is_empty() => Err(ApiError::field(path, "must not be empty")),
        Value::Array(ids) => Ok(Prompt::Tokens(ids.iter().enumerate().map(id).collect::<Result<_, _>>()?)),
        other => {
            let reason = format!("must be a string or an array of token ids, not {}", kind(&other));
            Err(ApiError::field(path, reason))
        }
    }
}

/// A vector on the wire.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Values {
    /// As numbers.
    Float(Vec<f32>),
    /// As text.
    Base64(String),
}

/// One input's vector.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Embedding {
    /// Always `embedding`.
    pub object: &'static str,
    /// Which input.
    pub index: usize,
    /// Its values; their squares add up to 1.
    pub embedding: Values,
}

impl Embedding {
    /// Of a hidden state, of which the first `dimensions` values are kept. Sums run in order, so that equal states give equal bytes.
    pub fn new(index: usize, mut state: Vec<f32>, dimensions: Option<usize>, encoding: Encoding) -> Self {
        state.truncate(dimensions.unwrap_or(state.len()));
        let length = state.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        if length > 0.0 {
            state.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
        }
        let embedding = match encoding {
            Encoding::Float => Values::Float(state),
            Encoding::Base64 => {
                let bytes: Vec<u8> = state.iter().flat_map(|v| v.to_le_bytes()).collect();
                Values::Base64(STANDARD.encode(bytes))
            }
        };
        Self { object: "embedding", index, embedding }
    }
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EmbeddingUsage {
    /// Of all inputs.
    pub prompt_tokens: usize,
    /// The same.
    pub total_tokens: usize,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EmbeddingList {
    /// Always `list`.
    pub object: &'static str,
    /// One vector an input, in order.
    pub data: Vec<Embedding>,
    /// The model's name.
    pub model: String,
    /// Tokens.
    pub usage: EmbeddingUsage,
}

impl EmbeddingList {
    /// A list.
    pub fn new(model: String, data: Vec<Embedding>, tokens: usize) -> Self {
        let usage = EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens };
        Self { object: "list", data, model, usage }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(fields: Value) -> Result<EmbeddingRequest, ApiError> {
        let mut body = json!({"model": "m", "input": "a"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        EmbeddingRequest::parse(body.to_string().as_bytes(), &Limits::default())
    }

    #[test]
    fn inputs_are_texts_or_tokens_or_lists_of_them() {
        let text = |t: &str| Prompt::Text(t.into());
        for (given, wanted) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
            (json!([[1], [2, 3]]), vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]),
        ] {
            assert_eq!(parse(json!({"input": given})).unwrap().inputs, wanted);
        }
        let all = json!({"encoding_format": "base64", "dimensions": 8, "user": "u", "pooling": "last"});
        let all = parse(all).unwrap();
        assert_eq!((all.encoding, all.dimensions, all.notes), (Encoding::Base64, Some(8), Notes::default()));
    }

    #[test]
    fn refusals_name_the_field() {
        for (fields, param) in [
            (json!({"input": null}), "input"),
            (json!({"input": ""}), "input"),
            (json!({"input": []}), "input"),
            (json!({"input": {"a": 1}}), "input"),
            (json!({"input": ["a", ""]}), "input[1]"),
            (json!({"input": [1, -1]}), "input[1]"),
            (json!({"input": vec!["a"; 2049]}), "input"),
            (json!({"encoding_format": "int8"}), "encoding_format"),
            (json!({"dimensions": 0}), "dimensions"),
            (json!({"pooling": "mean"}), "pooling"),
            (json!({"pooling": "max"}), "pooling"),
        ] {
            assert_eq!(parse(fields.clone()).unwrap_err().param.as_deref(), Some(param), "{fields}");
        }
    }

    #[test]
    fn vectors_have_length_one_cut_or_not() {
        let vector =
            |dimensions, encoding| Embedding::new(0, vec![3.0, 4.0, 12.0], dimensions, encoding).embedding;
        assert_eq!(vector(None, Encoding::Float), Values::Float(vec![3.0 / 13.0, 4.0 / 13.0, 12.0 / 13.0]));
        assert_eq!(vector(Some(2), Encoding::Float), Values::Float(vec![0.6, 0.8]));
        let Values::Base64(text) = vector(Some(2), Encoding::Base64) else { panic!("no text") };
        assert_eq!(STANDARD.decode(text).unwrap(), [0.6f32.to_le_bytes(), 0.8f32.to_le_bytes()].concat());
        assert_eq!(Embedding::new(0, vec![0.0], None, Encoding::Float).embedding, Values::Float(vec![0.0]));
    }
}
