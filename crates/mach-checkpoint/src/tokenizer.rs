//! Tokenizer and chat template files.

use std::path::PathBuf;

use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::{Checkpoint, CheckpointError, json};

/// Source text of a chat template, not rendered here, and the special tokens that templates mention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTemplate {
    /// File it came from, for messages.
    pub file: PathBuf,
    /// Jinja source of the template to use by default.
    pub source: String,
    /// Other named templates of the file (for instance `tool_use`), name and source.
    pub named: Vec<(String, String)>,
    /// Text of the begin-of-sequence token.
    pub bos_token: Option<String>,
    /// Text of the end-of-sequence token.
    pub eos_token: Option<String>,
    /// Text of the padding token.
    pub pad_token: Option<String>,
    /// Text of the unknown token.
    pub unk_token: Option<String>,
}

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
    pad_token: Option<SpecialToken>,
    unk_token: Option<SpecialToken>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Object { content: String },
}

impl SpecialToken {
    fn text(token: Option<Self>) -> Option<String> {
        match token {
            Some(Self::Text(text) | Self::Object { content: text }) => Some(text),
            None => None,
        }
    }
}

impl Checkpoint {
    /// The tokenizer of `tokenizer.json`. Its largest id must be inside the model's vocabulary; a smaller tokenizer is
    /// fine, since vocabularies are padded.
    pub fn tokenizer(&self) -> Result<Tokenizer, CheckpointError> {
        let file = self.dir().join("tokenizer.json");
        let bytes = json::read_bytes(&file)?;
        let tokenizer = Tokenizer::from_bytes(&bytes)
            .map_err(|error| CheckpointError::invalid(&file, format!("bad tokenizer: {error}")))?;
        let vocab_size = self.config().vocab_size;
        match tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id) {
            None => Err(CheckpointError::invalid(&file, "the tokenizer has no tokens")),
            Some((token, id)) if id as usize >= vocab_size => Err(CheckpointError::invalid(
                &file,
                format!(
                    "token {token:?} has id {id}, but the model's vocabulary has {vocab_size} entries (config.json)"
                ),
            )),
            Some(_) => Ok(tokenizer),
        }
    }

    /// The chat template: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (one, or a list of
    /// named ones), else of `chat_template.json`. `None` if there is none.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, CheckpointError> {
        let config_file = self.dir().join("tokenizer_config.json");
        let config: TokenizerConfig = json::read_optional(&config_file)?.unwrap_or_default();
        let jinja = self.dir().join("chat_template.jinja");
        let (file, templates) = if jinja.is_file() {
            let source = String::from_utf8(json::read_bytes(&jinja)?)
                .map_err(|error| CheckpointError::invalid(&jinja, error.to_string()))?;
            (jinja, Some(Templates::One(source)))
        } else if config.chat_template.is_some() {
            (config_file, config.chat_template)
        } else {
            let file = self.dir().join("chat_template.json");
            let other: Option<TokenizerConfig> = json::read_optional(&file)?;
            (file, other.and_then(|o| o.chat_template))
        };
        let (source, named) = match templates {
            None => return Ok(None),
            Some(Templates::One(source)) => (source, Vec::new()),
            Some(Templates::Named(list)) => {
                let mut named: Vec<_> = list.into_iter().map(|t| (t.name, t.template)).collect();
                let Some(at) = named.iter().position(|(name, _)| name == "default") else {
                    let reason = "`chat_template` is a list without an entry named `default`";
                    return Err(CheckpointError::invalid(&file, reason));
                };
                (named.remove(at).1, named)
            }
        };
        Ok(Some(ChatTemplate {
            file,
            source,
            named,
            bos_token: SpecialToken::text(config.bos_token),
            eos_token: SpecialToken::text(config.eos_token),
            pad_token: SpecialToken::text(config.pad_token),
            unk_token: SpecialToken::text(config.unk_token),
        }))
    }
}
