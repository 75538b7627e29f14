//! Which parser reads a model's answers.

use std::str::FromStr;
use std::sync::Arc;

use super::gemma4::Gemma4;
use super::harmony::Harmony;
use super::hermes::Hermes;
use super::tags::TagParser;
use super::think::{CHANNEL, THINK, Think};
use super::{OutputParser, Plain, ToolSchemas, dsml, qwen_xml};

/// How a family writes tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// Qwen3-Coder, Qwen3.5 and later: nested tags.
    QwenXml,
    /// Hermes, Qwen3: JSON between tags.
    Hermes,
    /// gpt-oss: messages on channels.
    Harmony,
    /// Gemma 4: a notation of its own.
    Gemma4,
    /// DeepSeek V4: nested tags, DSML.
    Dsml,
}

/// How a family sets its reasoning apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// Between `<think>` and `</think>`.
    Think,
    /// On the channel `analysis`.
    Harmony,
    /// Between `<|channel>thought` and `<channel|>`.
    Gemma4,
}

/// Whether the prompt already speaks of reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReasoningStart {
    /// It does not: the model may begin to reason or not.
    #[default]
    Unopened,
    /// It ends with the opening tag: the answer begins inside.
    Open,
    /// It ends with the closing tag: there is none.
    Closed,
}

/// A parser that this build does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown parser `{given}`; known: {known}")]
pub struct UnknownParser {
    given: String,
    known: String,
}

const TOOL_NAMES: &[(&str, ToolFormat)] = &[
    ("qwen3_xml", ToolFormat::QwenXml),
    ("qwen3_coder", ToolFormat::QwenXml),
    ("hermes", ToolFormat::Hermes),
    ("harmony", ToolFormat::Harmony),
    ("openai", ToolFormat::Harmony),
    ("gemma4", ToolFormat::Gemma4),
    ("deepseek_v4", ToolFormat::Dsml),
];

const REASONING_NAMES: &[(&str, ReasoningFormat)] = &[
    ("think", ReasoningFormat::Think),
    ("qwen3", ReasoningFormat::Think),
    ("deepseek_v4", ReasoningFormat::Think),
    ("harmony", ReasoningFormat::Harmony),
    ("openai_gptoss", ReasoningFormat::Harmony),
    ("gemma4", ReasoningFormat::Gemma4),
];

fn named<T: Copy>(given: &str, names: &[(&str, T)]) -> Result<T, UnknownParser> {
    let found = names.iter().find(|(name, _)| *name == given);
    found.map(|(_, format)| *format).ok_or_else(|| UnknownParser {
        given: given.to_owned(),
        known: names.iter().map(|(name, _)| *name).chain(["none"]).collect::<Vec<_>>().join(", "),
    })
}

impl FromStr for ToolFormat {
    type Err = UnknownParser;

    fn from_str(name: &str) -> Result<Self, UnknownParser> {
        named(name, TOOL_NAMES)
    }
}

impl FromStr for ReasoningFormat {
    type Err = UnknownParser;

    fn from_str(name: &str) -> Result<Self, UnknownParser> {
        named(name, REASONING_NAMES)
    }
}

impl ToolFormat {
    /// Its first name.
    pub fn name(self) -> &'static str {
        TOOL_NAMES.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }
}

impl ReasoningFormat {
    /// Its first name.
    pub fn name(self) -> &'static str {
        REASONING_NAMES.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }

    /// The tags around reasoning, if it has tags.
    pub(super) fn tags(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Think => Some(("<think>", "</think>")),
            Self::Gemma4 => Some(("<|channel>thought", "<channel|>")),
            Self::Harmony => None,
        }
    }

    /// How an answer to this prompt begins.
    pub fn start(self, prompt: &str) -> ReasoningStart {
        let prompt = prompt.trim_end();
        match self.tags() {
            Some((open, _)) if prompt.ends_with(open) => ReasoningStart::Open,
            Some((_, close)) if prompt.ends_with(close) => ReasoningStart::Closed,
            _ => ReasoningStart::Unopened,
        }
    }
}

/// How a model writes its answers.
///
/// ```
/// use mach_api::output::{OutputFormat, ReasoningStart, Part};
/// // What the template shows the model wins over what its family is known for.
/// let format = OutputFormat::detect("... <think> ...", OutputFormat::default());
/// let mut parser = format.parser(None, ReasoningStart::Unopened);
/// let mut parts = Vec::new();
/// for piece in ["<thi", "nk>Hm.</think>", "\n\nYes."] {
///     parser.push(piece, &mut parts);
/// }
/// parser.finish(false, &mut parts);
/// let text = |wanted: fn(&Part) -> Option<&str>| parts.iter().filter_map(wanted).collect::<String>();
/// assert_eq!(text(|p| if let Part::Reasoning(t) = p { Some(t) } else { None }), "Hm.");
/// assert_eq!(text(|p| if let Part::Content(t) = p { Some(t) } else { None }), "Yes.");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutputFormat {
    /// Its calls; `None` leaves them in the text.
    pub tools: Option<ToolFormat>,
    /// Its reasoning; `None` leaves it in the text.
    pub reasoning: Option<ReasoningFormat>,
}

impl OutputFormat {
    /// What a chat template shows the model, or else `usual`, what the family is known for.
    pub fn detect(template: &str, usual: Self) -> Self {
        let says = |text: &str| template.contains(text);
        let tools = if says("<|channel|>") {
            Some(ToolFormat::Harmony)
        } else if says("<|tool_call>") {
            Some(ToolFormat::Gemma4)
        } else if says("｜DSML｜") {
            Some(ToolFormat::Dsml)
        } else if says("<function=") {
            Some(ToolFormat::QwenXml)
        } else if says("<tool_call>") {
            Some(ToolFormat::Hermes)
        } else {
            usual.tools
        };
        let reasoning = match tools {
            Some(ToolFormat::Harmony) => Some(ReasoningFormat::Harmony),
            Some(ToolFormat::Gemma4) => Some(ReasoningFormat::Gemma4),
            _ if says("</think>") || says("<think>") => Some(ReasoningFormat::Think),
            _ => usual.reasoning,
        };
        Self { tools, reasoning }
    }

    /// Texts of tokens that carry meaning here and must not be hidden, although they may be control tokens.
    pub fn markers(self) -> Vec<&'static str> {
        let tools: &[&str] = match self.tools {
            Some(ToolFormat::QwenXml | ToolFormat::Hermes) => &["<tool_call>", "</tool_call>"],
            Some(ToolFormat::Gemma4) => &["<|tool_call>", "<tool_call|>", "<|\"|>"],
            Some(ToolFormat::Dsml) => &["｜DSML｜"],
            Some(ToolFormat::Harmony) | None => &[],
        };
        let channels =
            self.tools == Some(ToolFormat::Harmony) || self.reasoning == Some(ReasoningFormat::Harmony);
        let channels: &[&str] = match channels {
            true => &[
                "<|start|>",
                "<|channel|>",
                "<|message|>",
                "<|constrain|>",
                "<|end|>",
                "<|call|>",
                "<|return|>",
            ],
            false => &[],
        };
        let reasoning: &[&str] = match self.reasoning {
            Some(ReasoningFormat::Think) => &["<think>", "</think>"],
            Some(ReasoningFormat::Gemma4) => &["<|channel>", "<channel|>"],
            Some(ReasoningFormat::Harmony) | None => &[],
        };
        [tools, channels, reasoning].concat()
    }

    /// A parser for one answer. `schemas`: the functions of the request; without them, calls are not looked for.
    pub fn parser(self, schemas: Option<Arc<ToolSchemas>>, start: ReasoningStart) -> Box<dyn OutputParser> {
        let channels = ToolFormat::Harmony;
        if self.tools == Some(channels) || self.reasoning == Some(ReasoningFormat::Harmony) {
            let schemas = schemas.filter(|_| self.tools == Some(channels));
            return Box::new(Harmony::new(schemas, self.reasoning.is_some()));
        }
        let calls = Calls { written: schemas.and_then(|schemas| Some((self.tools?, schemas))) };
        match self.reasoning {
            Some(ReasoningFormat::Think) => Box::new(Think::new(&THINK, start, calls)),
            Some(ReasoningFormat::Gemma4) => Box::new(Think::new(&CHANNEL, start, calls)),
            Some(ReasoningFormat::Harmony) | None => calls.parser(),
        }
    }
}

/// How calls are written in a text that holds no reasoning.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    written: Option<(ToolFormat, Arc<ToolSchemas>)>,
}

impl Calls {
    pub(super) fn parser(&self) -> Box<dyn OutputParser> {
        match self.written.clone() {
            None | Some((ToolFormat::Harmony, _)) => Box::new(Plain),
            Some((ToolFormat::QwenXml, schemas)) => Box::new(TagParser::new(&qwen_xml::TAGS, schemas)),
            Some((ToolFormat::Dsml, schemas)) => Box::new(TagParser::new(&dsml::TAGS, schemas)),
            Some((ToolFormat::Hermes, schemas)) => Box::new(Hermes::new(schemas)),
            Some((ToolFormat::Gemma4, schemas)) => Box::new(Gemma4::new(schemas)),
        }
    }
}
