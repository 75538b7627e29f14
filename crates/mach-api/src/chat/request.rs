//! The body of `POST /v1/chat/completions`, parsed into a value that is valid by construction.

use serde_json::{Map, Value};

use super::constraint::check_schema;
use super::message::{Message, function_type};
use super::{ResponseFormat, SpeculationPreset, ToolChoice};
use crate::ApiError;
use crate::fields::{Fields, integer, json, kind, number};

/// Fields that cannot change the text of an answer: accepted and ignored.
const HARMLESS: &[&str] = &[
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
];

/// Whether a value asks for nothing.
type IsNeutral = fn(&Value) -> bool;

/// Fields of OpenAI or vLLM that would change the answer and are not supported, with the value that asks for nothing.
const UNSUPPORTED: &[(&str, IsNeutral)] = &[
    ("add_generation_prompt", |v| v == true),
    ("allowed_token_ids", |_| false),
    ("audio", |_| false),
    ("bad_words", |v| v.as_array().is_some_and(Vec::is_empty)),
    ("best_of", |v| v == 1),
    ("chat_template", |_| false),
    ("continue_final_message", |v| v == false),
    ("detokenize", |v| v == true),
    ("documents", |v| v.as_array().is_some_and(Vec::is_empty)),
    ("echo", |v| v == false),
    ("function_call", |_| false),
    ("functions", |v| v.as_array().is_some_and(Vec::is_empty)),
    ("guided_choice", |_| false),
    ("guided_grammar", |_| false),
    ("guided_json", |_| false),
    ("guided_regex", |_| false),
    ("include_stop_str_in_output", |v| v == false),
    ("length_penalty", |v| v.as_f64() == Some(1.0)),
    ("logits_processors", |v| v.as_array().is_some_and(Vec::is_empty)),
    ("min_tokens", |v| v == 0),
    ("modalities", |v| v.as_array().is_some_and(|a| a.len() == 1 && a[0] == "text")),
    ("prompt_logprobs", |v| v == 0 || v == false),
    ("skip_special_tokens", |v| v == true),
    ("spaces_between_special_tokens", |v| v.is_boolean()),
    ("structured_outputs", |_| false),
    ("truncate_prompt_tokens", |v| v == -1),
    ("typical_p", |v| v.as_f64() == Some(1.0)),
    ("use_beam_search", |v| v == false),
    ("verbosity", |v| v == "medium"),
    ("web_search_options", |_| false),
];

/// How large the parts of a request may be. The body as a whole is limited by the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Messages.
    pub messages: usize,
    /// Tools.
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
        }
    }
}

/// Sampling fields as given; what is absent takes the checkpoint's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingFields {
    /// 0 to 2; 0 is greedy.
    pub temperature: Option<f32>,
    /// 0 to 1.
    pub top_p: Option<f32>,
    /// Candidates kept; 0 keeps all (also written -1).
    pub top_k: Option<u32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Above 0, at most 2.
    pub repetition_penalty: Option<f32>,
    /// Seed of the noise.
    pub seed: Option<u64>,
    /// Added to the logits of these tokens, -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
}

/// A valid chat request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// Model asked for.
    pub model: String,
    /// The conversation; at least one message.
    pub messages: Vec<Message>,
    /// Tools as given, for the template; empty when `tool_choice` is `none`.
    pub tools: Vec<Value>,
    /// Whether they are called.
    pub tool_choice: ToolChoice,
    /// Whether one answer may call more than one.
    pub parallel_tool_calls: bool,
    /// What the content must look like.
    pub format: Option<ResponseFormat>,
    /// Extra variables for the template.
    pub template_kwargs: Map<String, Value>,
    /// Most tokens of an answer; `max_completion_tokens` wins over `max_tokens`.
    pub max_tokens: Option<u32>,
    /// The field that gave `max_tokens`.
    pub max_tokens_field: &'static str,
    /// Sampling.
    pub sampling: SamplingFields,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Token ids that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// Do not end at the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Log probabilities wanted; the number of alternatives a token.
    pub logprobs: Option<usize>,
    /// Number of answers.
    pub n: u32,
    /// Answer as server-sent events.
    pub stream: bool,
    /// Close the stream with a usage chunk.
    pub include_usage: bool,
    /// What may be proposed beside the draft's blocks.
    pub speculation: SpeculationPreset,
    /// Only requests with the same salt share cached prefixes.
    pub cache_salt: Option<String>,
}

impl ChatRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::new("", json(body)?)?;
        let model = fields.required_string("model")?;
        let messages = parse_messages(&mut fields, limits)?;
        let mut tools = parse_tools(&mut fields, limits)?;
        let tool_choice = ToolChoice::parse(&mut fields, &tools)?;
        if tool_choice == ToolChoice::None {
            tools.clear();
        }
        let parallel_tool_calls = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        let format = ResponseFormat::parse(&mut fields, limits)?;
        let mut template_kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
        for name in ["messages", "tools", "add_generation_prompt", "documents"] {
            if template_kwargs.contains_key(name) {
                return Err(
                    fields.error(&format!("chat_template_kwargs.{name}"), "is set by the request itself")
                );
            }
        }
        if let Some(effort) = fields.string("reasoning_effort")? {
            template_kwargs.entry("reasoning_effort").or_insert(effort.into());
        }
        let tokens = 1..=i64::from(u32::MAX);
        let old_limit = fields.integer("max_tokens", tokens.clone())?;
        let new_limit = fields.integer("max_completion_tokens", tokens)?;
        let max_tokens_field = if new_limit.is_some() { "max_completion_tokens" } else { "max_tokens" };
        let sampling = SamplingFields::parse(&mut fields, limits)?;
        let stop = parse_stop(&mut fields, limits)?;
        let stop_token_ids = parse_token_ids(&mut fields, "stop_token_ids", limits)?;
        let ignore_eos = fields.bool("ignore_eos")?.unwrap_or(false);
        let logprobs = parse_logprobs(&mut fields)?;
        let n = fields.integer("n", 1..=i64::from(limits.choices))?.unwrap_or(1) as u32;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let include_usage = parse_stream_options(&mut fields, stream)?;
        let speculation = SpeculationPreset::parse(&mut fields, format.as_ref(), limits)?;
        let cache_salt = parse_cache_salt(&mut fields)?;
        refuse_rest(fields)?;
        Ok(Self {
            model,
            messages,
            tools,
            tool_choice,
            parallel_tool_calls,
            format,
            template_kwargs,
            max_tokens: new_limit.or(old_limit).map(|v| v as u32),
            max_tokens_field,
            sampling,
            stop,
            stop_token_ids,
            ignore_eos,
            logprobs,
            n,
            stream,
            include_usage,
            speculation,
            cache_salt,
        })
    }
}

pub(super) fn parse_cache_salt(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let salt = fields.string("cache_salt")?;
    match &salt {
        Some(salt) if salt.is_empty() => Err(fields.error("cache_salt", "must not be empty")),
        Some(salt) if salt.len() > 1024 => Err(fields.error("cache_salt", "must be at most 1024 bytes long")),
        _ => Ok(salt),
    }
}

impl SamplingFields {
    fn parse(fields: &mut Fields, limits: &Limits) -> Result<Self, ApiError> {
        let repetition_penalty = fields.number("repetition_penalty", 0.0..=2.0)?;
        if repetition_penalty == Some(0.0) {
            return Err(fields.error("repetition_penalty", "must be above 0"));
        }
        Ok(Self {
            temperature: fields.number("temperature", 0.0..=2.0)?,
            top_p: fields.number("top_p", 0.0..=1.0)?,
            top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?.map(|k| k.max(0) as u32),
            min_p: fields.number("min_p", 0.0..=1.0)?,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
            repetition_penalty,
            seed: parse_seed(fields)?,
            logit_bias: parse_logit_bias(fields, limits)?,
        })
    }
}

pub(crate) fn parse_messages(fields: &mut Fields, limits: &Limits) -> Result<Vec<Message>, ApiError> {
    let list = fields.array("messages")?.ok_or_else(|| fields.error("messages", "is required"))?;
    if list.is_empty() {
        return Err(fields.error("messages", "must hold at least one message"));
    }
    if list.len() > limits.messages {
        return Err(fields.error("messages", format!("must hold at most {} messages", limits.messages)));
    }
    list.into_iter().enumerate().map(|(i, m)| Message::parse(&format!("messages[{i}]"), m)).collect()
}

pub(crate) fn parse_tools(fields: &mut Fields, limits: &Limits) -> Result<Vec<Value>, ApiError> {
    let tools = fields.array("tools")?.unwrap_or_default();
    if tools.len() > limits.tools {
        return Err(fields.error("tools", format!("must hold at most {} tools", limits.tools)));
    }
    for (i, tool) in tools.iter().enumerate() {
        let path = format!("tools[{i}]");
        let mut tool = Fields::new(path.as_str(), tool.clone())?;
        function_type(&mut tool)?;
        let function = tool.take("function").ok_or_else(|| tool.error("function", "is required"))?;
        let mut function = Fields::new(format!("{path}.function"), function)?;
        if function.required_string("name")?.is_empty() {
            return Err(function.error("name", "must not be empty"));
        }
        function.string("description")?;
        if let Some(parameters) = function.object("parameters")? {
            check_schema(&function.path("parameters"), &parameters.into(), limits)?;
        }
        function.bool("strict")?;
    }
    Ok(tools)
}

fn parse_seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    match fields.take("seed") {
        Some(Value::Number(n)) if n.is_u64() => Ok(n.as_u64()),
        Some(value) => {
            let seed = integer(&fields.path("seed"), &value, i64::MIN..=i64::MAX)?;
            Ok(Some(seed.cast_unsigned()))
        }
        None => Ok(None),
    }
}

fn parse_logit_bias(fields: &mut Fields, limits: &Limits) -> Result<Vec<(u32, f32)>, ApiError> {
    let map = fields.object("logit_bias")?.unwrap_or_default();
    if map.len() > limits.token_ids {
        return Err(fields.error("logit_bias", format!("must hold at most {} tokens", limits.token_ids)));
    }
    map.into_iter()
        .map(|(key, value)| {
            let id = key.parse::<u32>().map_err(|_| {
                let key: String = key.chars().take(40).collect();
                fields.error("logit_bias", format!("`{key}` is not a token id"))
            })?;
            let bias = number(&fields.path(&format!("logit_bias.{id}")), &value, -100.0..=100.0)?;
            Ok((id, bias))
        })
        .collect()
}

fn parse_stop(fields: &mut Fields, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(s)) => vec![Value::String(s)],
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(fields.error("stop", format!("must be a string or an array, not {}", kind(&other))));
        }
    };
    if list.len() > limits.stops {
        return Err(fields.error("stop", format!("must hold at most {} strings", limits.stops)));
    }
    list.into_iter()
        .enumerate()
        .map(|(i, value)| match value {
            Value::String(s) if s.is_empty() => Err(fields.error(&format!("stop[{i}]"), "must not be empty")),
            Value::String(s) if s.len() > limits.stop_bytes => Err(fields
                .error(&format!("stop[{i}]"), format!("must be at most {} bytes long", limits.stop_bytes))),
            Value::String(s) => Ok(s),
            other => {
                Err(fields.error(&format!("stop[{i}]"), format!("must be a string, not {}", kind(&other))))
            }
        })
        .collect()
}

fn parse_token_ids(fields: &mut Fields, name: &str, limits: &Limits) -> Result<Vec<u32>, ApiError> {
    let list = fields.array(name)?.unwrap_or_default();
    if list.len() > limits.token_ids {
        return Err(fields.error(name, format!("must hold at most {} ids", limits.token_ids)));
    }
    list.iter()
        .enumerate()
        .map(|(i, v)| {
            integer(&fields.path(&format!("{name}[{i}]")), v, 0..=i64::from(u32::MAX)).map(|v| v as u32)
        })
        .collect()
}

fn parse_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(fields.error("top_logprobs", "needs `logprobs: true`")),
    }
}

fn parse_stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(fields.error("stream_options", "needs `stream: true`"));
    }
    let mut options = Fields::new(fields.path("stream_options"), options)?;
    let include_usage = options.bool("include_usage")?.unwrap_or(false);
    options.bool("include_obfuscation")?;
    let path = options.path("");
    match options.rest().next() {
        Some((name, _)) => Err(ApiError::field(format!("{path}{name}"), "this field is not supported")),
        None => Ok(include_usage),
    }
}

pub(crate) fn refuse_rest(fields: Fields) -> Result<(), ApiError> {
    for (name, value) in fields.rest() {
        if HARMLESS.contains(&name.as_str()) {
            continue;
        }
        match UNSUPPORTED.iter().find(|(known, _)| *known == name) {
            Some((_, neutral)) if neutral(&value) => {}
            Some(_) => return Err(ApiError::field(name, "this field is not supported with this value")),
            None => {
                let name: String = name.chars().take(80).collect();
                return Err(ApiError::field(name, "unrecognized request field"));
            }
        }
    }
    Ok(())
}
