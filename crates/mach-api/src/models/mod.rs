//! `/v1/models`: the list that OpenAI's clients read, with what others look for in it.

mod codex;

pub use codex::CodexModel;

use serde::Serialize;

/// What is known of a served model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelFacts {
    /// Unix seconds of its loading.
    pub created: u64,
    /// Longest context in tokens, prompt and answer together.
    pub context: usize,
    /// The family, as `config.json` names it.
    pub family: Option<String>,
    /// It chats: there is a template.
    pub chat: bool,
    /// Its tool calls are read.
    pub tools: bool,
    /// Its reasoning is told from its answers.
    pub reasoning: bool,
    /// Its template takes how much is to be reasoned.
    pub effort: bool,
}

impl ModelFacts {
    /// Tokens that a client may set aside for an answer without leaving too few to the prompt: half of the context, 32768 at most.
    /// Longer answers are not refused.
    pub fn usual_answer(&self) -> usize {
        (self.context / 2).min(32768)
    }
}

/// A served model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelCard {
    /// Name that requests give as `model`.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// When it was loaded, Unix seconds.
    pub created: u64,
    /// Always `mach`.
    pub owned_by: &'static str,
    /// Name for people.
    pub name: String,
    /// Longest context in tokens, prompt and answer together; vLLM's name.
    pub max_model_len: usize,
    /// The same, as agents name it.
    pub context_window: usize,
    /// The same, as OpenRouter names it.
    pub context_length: usize,
    /// See [`ModelFacts::usual_answer`].
    pub max_output_tokens: usize,
    /// What it reads and writes.
    pub architecture: Modalities,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Fields of requests that have an effect, as OpenRouter lists them.
    pub supported_parameters: Vec<&'static str>,
}

/// What a model reads and writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Modalities {
    /// Kinds of input.
    pub input_modalities: &'static [&'static str],
    /// Kinds of output.
    pub output_modalities: &'static [&'static str],
}

/// What a model can do: switches as editors' settings have them, then limits and switches as Copilot's list has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// `chat`, or `completion` without a template.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The family, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// `/v1/chat/completions` answers.
    pub chat_completions: bool,
    /// `/v1/embeddings` answers.
    pub embeddings: bool,
    /// Tools are called.
    pub tools: bool,
    /// Several in one answer.
    pub parallel_tool_calls: bool,
    /// Images are read.
    pub images: bool,
    /// Reasoning comes apart from answers.
    pub reasoning: bool,
    /// `prompt_cache_key` is taken.
    pub prompt_cache_key: bool,
    /// In tokens.
    pub limits: TokenLimits,
    /// Switches.
    pub supports: Supports,
}

/// Limits as Copilot's list has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenLimits {
    /// Prompt and answer.
    pub max_context_window_tokens: usize,
    /// See [`ModelFacts::usual_answer`].
    pub max_output_tokens: usize,
    /// The rest.
    pub max_prompt_tokens: usize,
}

/// Switches as Copilot's list has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Supports {
    /// Answers come as they are made.
    pub streaming: bool,
    /// Tools are called.
    pub tool_calls: bool,
    /// Several in one answer.
    pub parallel_tool_calls: bool,
    /// Answers are held to a schema.
    pub structured_outputs: bool,
    /// Images are read.
    pub vision: bool,
}

/// Fields that have an effect on any answer.
const ALWAYS: &[&str] = &[
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "response_format",
    "structured_outputs",
];

impl ModelCard {
    /// A card.
    pub fn new(id: impl Into<String>, facts: &ModelFacts) -> Self {
        let id = id.into();
        let &ModelFacts { context, tools, reasoning, .. } = facts;
        let (tools, answer) = (tools && facts.chat, facts.usual_answer());
        let mut parameters = ALWAYS.to_vec();
        if tools {
            parameters.extend(["tools", "tool_choice", "parallel_tool_calls"]);
        }
        if facts.effort {
            parameters.push("reasoning_effort");
        }
        Self {
            name: id.clone(),
            id,
            object: "model",
            created: facts.created,
            owned_by: "mach",
            max_model_len: context,
            context_window: context,
            context_length: context,
            max_output_tokens: answer,
            architecture: Modalities { input_modalities: &["text"], output_modalities: &["text"] },
            capabilities: Capabilities {
                kind: if facts.chat { "chat" } else { "completion" },
                family: facts.family.clone(),
                chat_completions: facts.chat,
                embeddings: true,
                tools,
                parallel_tool_calls: tools,
                images: false,
                reasoning,
                prompt_cache_key: true,
                limits: TokenLimits {
                    max_context_window_tokens: context,
                    max_output_tokens: answer,
                    max_prompt_tokens: context - answer,
                },
                supports: Supports {
                    streaming: true,
                    tool_calls: tools,
                    parallel_tool_calls: tools,
                    structured_outputs: true,
                    vision: false,
                },
            },
            supported_parameters: parameters,
        }
    }
}

/// The list of served models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// One entry a name that requests may use.
    pub data: Vec<ModelCard>,
    /// The same for Codex.
    pub models: Vec<CodexModel>,
}

impl ModelList {
    /// A list of these names for one model.
    pub fn new(names: &[String], facts: &ModelFacts) -> Self {
        Self {
            object: "list",
            data: names.iter().map(|name| ModelCard::new(name, facts)).collect(),
            models: (0..).zip(names).map(|(place, name)| CodexModel::new(name, place, facts)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn facts() -> ModelFacts {
        ModelFacts {
            created: 7,
            context: 8192,
            family: Some("qwen3_moe".into()),
            chat: true,
            tools: true,
            reasoning: true,
            effort: false,
        }
    }

    #[test]
    fn a_card_tells_what_clients_look_for() {
        let list = serde_json::to_value(ModelList::new(&["m".into()], &facts())).unwrap();
        let card = &list["data"][0];
        for (path, value) in [
            ("/id", json!("m")),
            ("/object", json!("model")),
            ("/created", json!(7)),
            ("/max_model_len", json!(8192)),
            ("/context_window", json!(8192)),
            ("/context_length", json!(8192)),
            ("/max_output_tokens", json!(4096)),
            ("/architecture/input_modalities", json!(["text"])),
            ("/capabilities/type", json!("chat")),
            ("/capabilities/tools", json!(true)),
            ("/capabilities/images", json!(false)),
            ("/capabilities/supports/vision", json!(false)),
            ("/capabilities/limits/max_prompt_tokens", json!(4096)),
        ] {
            assert_eq!(card.pointer(path), Some(&value), "{path}: {card}");
        }
        let without = ModelFacts { chat: false, context: 1_000_000, family: None, ..facts() };
        let card = serde_json::to_value(ModelCard::new("m", &without)).unwrap();
        assert_eq!(card["capabilities"]["tools"], json!(false), "without a template nothing is called");
        assert_eq!((&card["max_output_tokens"], card["capabilities"].get("family")), (&json!(32768), None));
    }

    /// What Codex 0.169 refuses the whole list without, and the values that it knows.
    #[test]
    fn codex_finds_every_field_that_it_needs() {
        let list = serde_json::to_value(ModelList::new(&["m".into(), "n".into()], &facts())).unwrap();
        assert_eq!(list["models"].as_array().unwrap().len(), 2);
        let model = list["models"][0].as_object().unwrap();
        type Is = fn(&Value) -> bool;
        let needed: [(&str, Is); 20] = [
            ("slug", |v| v == "m"),
            ("display_name", Value::is_string),
            ("description", Value::is_string),
            ("supported_reasoning_levels", Value::is_array),
            ("shell_type", |v| v == "shell_command"),
            ("visibility", |v| v == "list"),
            ("supported_in_api", Value::is_boolean),
            ("priority", Value::is_u64),
            ("availability_nux", Value::is_null),
            ("upgrade", Value::is_null),
            ("base_instructions", Value::is_string),
            ("supports_reasoning_summaries", Value::is_boolean),
            ("support_verbosity", Value::is_boolean),
            ("default_verbosity", Value::is_null),
            ("apply_patch_tool_type", Value::is_null),
            ("supports_parallel_tool_calls", Value::is_boolean),
            ("context_window", |v| v == 8192),
            ("experimental_supported_tools", Value::is_array),
            // Without it Codex takes images for granted.
            ("input_modalities", |v| *v == json!(["text"])),
            ("truncation_policy", |v| v["mode"] == "tokens" && v["limit"] == 2048),
        ];
        for (name, is) in needed {
            assert!(model.get(name).is_some_and(is), "{name}: {:?}", model.get(name));
        }
        assert!(model.get("default_reasoning_level").is_none());
        let effort = ModelFacts { effort: true, ..facts() };
        let model = serde_json::to_value(CodexModel::new("m", 0, &effort)).unwrap();
        let levels = model["supported_reasoning_levels"].as_array().unwrap();
        let efforts: Vec<_> = levels.iter().filter_map(|level| level["effort"].as_str()).collect();
        assert_eq!(
            (efforts, model["default_reasoning_level"].as_str()),
            (vec!["low", "medium", "high"], Some("medium"))
        );
    }
}
