//! A model as Codex' list has it. Its reader refuses the whole list for a field that is missing, and goes on with what it takes
//! for granted: so all that is optional there and means something is said here.

use serde::Serialize;

use super::ModelFacts;

/// What Codex tells a model that it knows nothing else of.
const INSTRUCTIONS: &str = "You are a coding agent at work in a user's repository, through a terminal. \
Use the tools you are given. Look at the code before you change it, keep to its style, change no more than the task needs, and run \
the checks that the project has. When you are done, say in a few words what you changed and what is left.";

/// Tokens of a tool's output that are kept.
const OUTPUT: usize = 10_000;

/// An entry of `models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CodexModel {
    slug: String,
    display_name: String,
    description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_reasoning_level: Option<&'static str>,
    supported_reasoning_levels: Vec<ReasoningLevel>,
    shell_type: &'static str,
    visibility: &'static str,
    supported_in_api: bool,
    priority: u32,
    availability_nux: (),
    upgrade: (),
    base_instructions: &'static str,
    supports_reasoning_summaries: bool,
    default_reasoning_summary: &'static str,
    support_verbosity: bool,
    default_verbosity: (),
    /// Patches through a tool of a type that is not supported; without it they go through the shell.
    apply_patch_tool_type: (),
    truncation_policy: Truncation,
    supports_parallel_tool_calls: bool,
    supports_image_detail_original: bool,
    context_window: usize,
    max_context_window: usize,
    auto_compact_token_limit: (),
    effective_context_window_percent: u32,
    experimental_supported_tools: [&'static str; 0],
    input_modalities: [&'static str; 1],
    supports_search_tool: bool,
}

/// How much is reasoned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ReasoningLevel {
    effort: &'static str,
    description: &'static str,
}

/// How outputs of tools are cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Truncation {
    mode: &'static str,
    limit: usize,
}

impl CodexModel {
    /// The entry of a name; `place` is its place in the list.
    pub fn new(name: &str, place: u32, facts: &ModelFacts) -> Self {
        let level = |effort, description| ReasoningLevel { effort, description };
        let levels = vec![
            level("low", "Little reasoning"),
            level("medium", "As much as is usual"),
            level("high", "Much reasoning"),
        ];
        Self {
            slug: name.to_owned(),
            display_name: name.to_owned(),
            description: "Served by mach".to_owned(),
            default_reasoning_level: facts.effort.then_some("medium"),
            supported_reasoning_levels: if facts.effort { levels } else { Vec::new() },
            shell_type: "shell_command",
            visibility: "list",
            supported_in_api: true,
            priority: place,
            availability_nux: (),
            upgrade: (),
            base_instructions: INSTRUCTIONS,
            supports_reasoning_summaries: facts.reasoning,
            default_reasoning_summary: "auto",
            support_verbosity: false,
            default_verbosity: (),
            apply_patch_tool_type: (),
            truncation_policy: Truncation { mode: "tokens", limit: OUTPUT.min(facts.context / 4) },
            supports_parallel_tool_calls: facts.tools,
            supports_image_detail_original: false,
            context_window: facts.context,
            max_context_window: facts.context,
            auto_compact_token_limit: (),
            effective_context_window_percent: 95,
            experimental_supported_tools: [],
            input_modalities: ["text"],
            supports_search_tool: false,
        }
    }
}
