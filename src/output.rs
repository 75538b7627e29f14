//! Arguments of how answers are read: tool calls and reasoning.

use clap::Args;
use mach_api::output::{OutputFormat, ReasoningFormat, ToolFormat};

/// How answers are read.
#[derive(Debug, Clone, Default, Args)]
pub struct OutputArgs {
    /// Parser of tool calls (qwen3_xml, hermes, harmony, gemma4, deepseek_v4) or none; by the chat template if not given
    #[arg(long, value_name = "NAME", value_parser = parser::<ToolFormat>)]
    pub tool_call_parser: Option<Choice<ToolFormat>>,

    /// Parser of reasoning (think, harmony, gemma4) or none; by the chat template if not given
    #[arg(long, value_name = "NAME", value_parser = parser::<ReasoningFormat>)]
    pub reasoning_parser: Option<Choice<ReasoningFormat>>,
}

/// A parser, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice<T>(pub Option<T>);

fn parser<T: std::str::FromStr>(name: &str) -> Result<Choice<T>, T::Err> {
    if name == "none" { Ok(Choice(None)) } else { name.parse().map(|format| Choice(Some(format))) }
}

impl OutputArgs {
    /// What was found, unless something else was asked for.
    pub fn apply(&self, found: OutputFormat) -> OutputFormat {
        OutputFormat {
            tools: self.tool_call_parser.map_or(found.tools, |choice| choice.0),
            reasoning: self.reasoning_parser.map_or(found.reasoning, |choice| choice.0),
        }
    }
}
