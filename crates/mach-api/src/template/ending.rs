//! Where a rendered prompt ends.

use serde_json::{Map, Value as Json};

use super::{ChatTemplate, TemplateError};
use crate::Message;
use crate::chat::{Content, PromptEnd};

impl ChatTemplate {
    /// Renders a prompt that ends where it is asked to.
    pub fn render_to(
        &self,
        messages: &[Message],
        tools: &[Json],
        kwargs: &Map<String, Json>,
        end: PromptEnd,
    ) -> Result<String, TemplateError> {
        let mut text = self.render_as(messages, tools, kwargs, end == PromptEnd::Turn)?;
        if end == PromptEnd::Continue {
            let said = match messages.last().map(|last| &last.content) {
                Some(Content::Text(text)) => text.as_str(),
                Some(Content::Parts(parts)) => parts.last().map_or("", String::as_str),
                Some(Content::None) | None => "",
            };
            let end = end_of(&text, said).ok_or_else(|| {
                let reason = "the last message does not stand in the prompt as it was written";
                TemplateError::Refused(format!("cannot continue: {reason}"))
            })?;
            text.truncate(end);
        }
        Ok(text)
    }
}

/// Where the last message ends in the prompt: behind its text with the white space at its end, if the template keeps
/// that, as `transformers` has it.
fn end_of(text: &str, said: &str) -> Option<usize> {
    let core = said.trim();
    if core.is_empty() {
        return None;
    }
    let at = text.rfind(core)?;
    let kept = said.trim_start();
    Some(if text.get(at..)?.starts_with(kept) { at + kept.len() } else { at + core.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Role;

    #[test]
    fn the_last_message_goes_on() {
        let render = |source: &str, said: &str| {
            let template = ChatTemplate::compile(source, Map::new()).unwrap();
            let messages = [Message::text(Role::User, "Say ABC"), Message::text(Role::Assistant, said)];
            template.render_to(&messages, &[], &Map::new(), PromptEnd::Continue)
        };
        let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}";
        assert_eq!(render(plain, "ABC ").unwrap(), "<user>Say ABC<end><assistant>ABC ");
        let trimming = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}";
        assert_eq!(render(trimming, "ABC ").unwrap(), "<user>Say ABC<end><assistant>ABC");
        let silent = "{% for m in messages %}<{{ m.role }}>{% endfor %}";
        assert!(matches!(render(silent, "ABC"), Err(TemplateError::Refused(_))));
    }
}
