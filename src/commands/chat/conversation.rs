//! What was said so far.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use mach_api::chat::{Content, Message, Role};
use mach_api::turn::Spoken;
use serde_json::{Value, json};

/// A message of the user, and its answer.
#[derive(Debug)]
struct Exchange {
    user: String,
    /// None while there is none, or where nothing was said before it was stopped.
    answer: Option<Message>,
}

/// A conversation.
#[derive(Debug)]
pub(super) struct Conversation {
    model: String,
    system: Option<String>,
    exchanges: Vec<Exchange>,
    /// Files that this chat wrote.
    saved: BTreeSet<PathBuf>,
}

impl Conversation {
    pub(super) fn new(model: String, system: Option<String>) -> Self {
        Self { model, system, exchanges: Vec::new(), saved: BTreeSet::new() }
    }

    /// The model's name.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// The system message.
    pub(super) fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Sets the system message; an empty one is none.
    pub(super) fn instruct(&mut self, text: String) {
        self.system = Some(text).filter(|text| !text.is_empty());
    }

    /// The user says something. A message without an answer before it is forgotten.
    pub(super) fn say(&mut self, user: String) {
        self.exchanges.retain(|exchange| exchange.answer.is_some());
        self.exchanges.push(Exchange { user, answer: None });
    }

    /// The model has answered.
    pub(super) fn answered(&mut self, spoken: Spoken) {
        let said = !spoken.content.is_empty() || !spoken.reasoning.is_empty();
        if let Some(last) = self.exchanges.last_mut() {
            last.answer = spoken.as_history().filter(|_| said);
        }
    }

    /// Takes the last answer back.
    pub(super) fn take_back(&mut self) -> Result<(), String> {
        let last = self.exchanges.last_mut().ok_or("there is no message to answer")?;
        last.answer = None;
        Ok(())
    }

    /// Forgets all but the system message.
    pub(super) fn clear(&mut self) {
        self.exchanges.clear();
    }

    /// All messages, for the model.
    pub(super) fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::text(Role::System, text));
        let exchanges = self.exchanges.iter().flat_map(|Exchange { user, answer }| {
            std::iter::once(Message::text(Role::User, user)).chain(answer.clone())
        });
        system.chain(exchanges).collect()
    }

    /// Writes the conversation to a file that is not there yet, or that this chat wrote.
    pub(super) fn save(&mut self, file: &Path) -> Result<(), String> {
        let named = |error: std::io::Error| format!("{}: {error}", file.display());
        let again = file.canonicalize().is_ok_and(|path| self.saved.contains(&path));
        let mut options = OpenOptions::new();
        options.write(true);
        let options = if again { options.truncate(true) } else { options.create_new(true) };
        let text = match file.extension().is_some_and(|extension| extension == "json") {
            true => format!("{:#}\n", self.as_request()),
            false => self.as_markdown(),
        };
        let mut out = options.open(file).map_err(named)?;
        out.write_all(text.as_bytes()).map_err(named)?;
        self.saved.extend(file.canonicalize());
        Ok(())
    }

    fn as_request(&self) -> Value {
        let messages: Vec<_> = self.messages().iter().map(wire).collect();
        json!({"model": self.model, "messages": messages})
    }

    fn as_markdown(&self) -> String {
        let section = |message: &Message| {
            let reasoning = message.reasoning_content.iter().flat_map(|text| text.trim().lines());
            let quoted: String = reasoning.map(|line| format!("> {line}\n")).collect();
            let gap = if quoted.is_empty() { "" } else { "\n" };
            format!("## {}\n\n{quoted}{gap}{}\n", message.role.as_str(), text_of(message).trim())
        };
        let sections: Vec<_> = self.messages().iter().map(section).collect();
        format!("# {}\n\n{}", self.model, sections.join("\n"))
    }
}

fn text_of(message: &Message) -> &str {
    match &message.content {
        Content::Text(text) => text,
        Content::None | Content::Parts(_) => "",
    }
}

fn wire(message: &Message) -> Value {
    let mut out = json!({"role": message.role.as_str(), "content": text_of(message)});
    if let Some(reasoning) = &message.reasoning_content {
        out["reasoning_content"] = reasoning.as_str().into();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoken(content: &str, reasoning: &str) -> Spoken {
        let mut spoken = Spoken::default();
        spoken.content = content.into();
        spoken.reasoning = reasoning.into();
        spoken
    }

    fn texts(conversation: &Conversation) -> Vec<String> {
        let text = |m: &Message| format!("{}: {}", m.role.as_str(), text_of(m));
        conversation.messages().iter().map(text).collect()
    }

    #[test]
    fn answers_are_taken_back_and_unanswered_messages_forgotten() {
        let mut conversation = Conversation::new("m".into(), None);
        assert!(conversation.take_back().is_err());
        conversation.say("a".into());
        conversation.answered(spoken("1", ""));
        conversation.take_back().unwrap();
        assert_eq!(texts(&conversation), ["user: a"]);
        conversation.answered(spoken("2", ""));
        conversation.say("b".into());
        // Stopped before its first word: the message waits for /regenerate, or for another in its place.
        conversation.answered(spoken("", ""));
        assert_eq!(texts(&conversation), ["user: a", "assistant: 2", "user: b"]);
        conversation.take_back().unwrap();
        conversation.say("c".into());
        assert_eq!(texts(&conversation), ["user: a", "assistant: 2", "user: c"]);
        conversation.instruct("s".into());
        assert_eq!(texts(&conversation).first().unwrap(), "system: s");
        conversation.clear();
        assert_eq!(texts(&conversation), ["system: s"]);
        conversation.instruct(String::new());
        assert_eq!(conversation.system(), None);
    }

    #[test]
    fn a_conversation_is_saved_and_nothing_else_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut conversation = Conversation::new("m".into(), Some("Be kind.".into()));
        conversation.say("Hello".into());
        conversation.answered(spoken("Hi!\n", "They greet.\nSo do I."));
        let (json, markdown) = (dir.path().join("a.json"), dir.path().join("a.md"));
        conversation.save(&json).unwrap();
        conversation.save(&markdown).unwrap();
        let read: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_eq!(
            read,
            json!({"model": "m", "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi!\n", "reasoning_content": "They greet.\nSo do I."},
            ]})
        );
        let text = std::fs::read_to_string(&markdown).unwrap();
        assert_eq!(
            text,
            "# m\n\n## system\n\nBe kind.\n\n## user\n\nHello\n\n## assistant\n\n> They greet.\n> So do I.\n\nHi!\n"
        );
        conversation.clear();
        conversation.save(&json).unwrap();
        let read: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_eq!(read["messages"].as_array().map(Vec::len), Some(1), "it was written anew");
        let other = dir.path().join("other");
        std::fs::write(&other, "mine").unwrap();
        assert!(conversation.save(&other).unwrap_err().contains("other"));
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "mine");
        assert!(conversation.save(&dir.path().join("no/such")).is_err());
    }
}
