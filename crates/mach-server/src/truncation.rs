//! Conversations that are longer than the context, where the request lets what is oldest go.

use mach_api::chat::Role;
use mach_api::turn::Conversation;
use mach_api::{ApiError, ErrorKind};
use tracing::info;

use crate::ChatModel;
use crate::job::Job;
use crate::prompt::Prompt;

impl ChatModel {
    /// The prompt of a conversation, or of as much of its end as the context holds, if the request allows that. Instructions at its
    /// beginning stay, and what is left begins where a person speaks.
    pub(crate) fn prompt_that_fits(
        &self,
        conversation: &Conversation,
        salt: Option<&str>,
        job: &mut Job,
    ) -> Result<Prompt, ApiError> {
        let whole = self.fitting(conversation, salt, job);
        if !conversation.truncate || !too_long(&whole) {
            return whole;
        }
        let starts = starts(conversation);
        // The more goes, the shorter is what is left: the first start that fits is looked for by halves.
        let (mut best, mut from, mut to) = (whole, 0, starts.len());
        while from < to {
            let middle = from + (to - from) / 2;
            let shorter = starting_at(conversation, starts.get(middle).copied().unwrap_or_default());
            let tried = self.fitting(&shorter, salt, job);
            match too_long(&tried) {
                true => from = middle + 1,
                false => (best, to) = (tried, middle),
            }
        }
        if best.is_ok() {
            info!(turns_left_out = from + 1, "a conversation was made to fit the context");
        }
        best
    }

    /// The prompt, if it leaves room for an answer.
    fn fitting(
        &self,
        conversation: &Conversation,
        salt: Option<&str>,
        job: &mut Job,
    ) -> Result<Prompt, ApiError> {
        let prompt = self.prompt(conversation, salt, job)?;
        if conversation.truncate {
            self.check_tokens(prompt.tokens.len().saturating_add(1), "input")?;
        }
        Ok(prompt)
    }
}

fn too_long(prompt: &Result<Prompt, ApiError>) -> bool {
    matches!(prompt, Err(error) if error.kind == ErrorKind::ContextLength)
}

/// Messages of instructions that a conversation begins with.
fn instructions(conversation: &Conversation) -> usize {
    let instructs = |role| matches!(role, Role::System | Role::Developer);
    conversation.messages.iter().take_while(|message| instructs(message.role)).count()
}

/// Where a person speaks behind the first turn.
fn starts(conversation: &Conversation) -> Vec<usize> {
    let messages = conversation.messages.iter().enumerate().skip(instructions(conversation) + 1);
    messages.filter(|(_, message)| message.role == Role::User).map(|(at, _)| at).collect()
}

fn starting_at(conversation: &Conversation, at: usize) -> Conversation {
    let kept = instructions(conversation);
    let messages = conversation.messages.iter().take(kept).chain(conversation.messages.iter().skip(at));
    Conversation { messages: messages.cloned().collect(), ..conversation.clone() }
}

#[cfg(test)]
mod tests {
    use mach_api::Message;
    use mach_api::chat::{PromptEnd, ToolChoice};

    use super::*;

    #[test]
    fn what_is_left_begins_where_a_person_speaks() {
        let roles = [
            Role::System,
            Role::Developer,
            Role::User,
            Role::Assistant,
            Role::Tool,
            Role::User,
            Role::Assistant,
            Role::User,
        ];
        let conversation = Conversation {
            messages: roles
                .iter()
                .zip(0..)
                .map(|(role, i): (_, usize)| Message::text(*role, i.to_string()))
                .collect(),
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            template_kwargs: serde_json::Map::new(),
            end: PromptEnd::Turn,
            truncate: true,
        };
        assert_eq!(starts(&conversation), [5, 7]);
        let shorter = starting_at(&conversation, 5);
        assert_eq!(
            shorter.messages.iter().map(|m| m.role).collect::<Vec<_>>(),
            [Role::System, Role::Developer, Role::User, Role::Assistant, Role::User]
        );
    }
}
