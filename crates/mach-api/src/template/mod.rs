//! Chat templates, rendered as the `transformers` library renders them.
//!
//! A template is a Jinja program that comes with the checkpoint, so it is not trusted: every render runs on a limited
//! amount of fuel, and there is no loader, no environment and no file access.

mod ending;
mod generation;
mod python_json;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde_json::{Map, Value as Json};

use crate::Message;
use crate::chat::Role;

/// Work that one render may do: about one unit an instruction or 64 bytes. Ten thousand messages take about a tenth.
const FUEL: u64 = 10_000_000;
const NAME: &str = "chat_template";
const PROBE: &str = "a8f31c";

/// Why a template failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It does not compile; found at start.
    #[error("the chat template does not compile: {0}")]
    Compile(String),
    /// The template itself refused the messages, through `raise_exception`.
    #[error("the chat template refused the messages: {0}")]
    Refused(String),
    /// It failed on these messages.
    #[error("the chat template failed on these messages: {0}")]
    Render(String),
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    special_tokens: Map<String, Json>,
    parts_as_list: bool,
    developer_as_system: bool,
    generation_prompt: Option<String>,
}

impl ChatTemplate {
    /// Compiles `source`. `special_tokens` are variables such as `bos_token` and `eos_token`.
    pub fn compile(source: &str, special_tokens: Map<String, Json>) -> Result<Self, TemplateError> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| TemplateError::Compile(e.to_string()))?;
        env.set_syntax(syntax);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_filter("tojson", python_json::tojson);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", strftime_now);
        env.add_template_owned(NAME, generation::neutralise(source))
            .map_err(|e| TemplateError::Compile(describe(&e)))?;
        let mut template = Self {
            env,
            source: source.to_owned(),
            special_tokens,
            parts_as_list: true,
            developer_as_system: !source.contains("developer"),
            generation_prompt: None,
        };
        template.parts_as_list = template.walks_content_parts();
        template.generation_prompt = template.find_generation_prompt(&Map::new());
        Ok(template)
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a prompt that ends where the assistant is to speak.
    pub fn render(
        &self,
        messages: &[Message],
        tools: &[Json],
        kwargs: &Map<String, Json>,
    ) -> Result<String, TemplateError> {
        self.render_as(messages, tools, kwargs, true)
    }

    /// What a prompt ends with so that the assistant speaks, if the template adds it on demand.
    pub fn generation_prompt(&self) -> Option<&str> {
        self.generation_prompt.as_deref()
    }

    /// The same for requests with these variables, which may choose another one.
    pub fn generation_prompt_with(&self, kwargs: &Map<String, Json>) -> Option<String> {
        if kwargs.is_empty() { self.generation_prompt.clone() } else { self.find_generation_prompt(kwargs) }
    }

    fn find_generation_prompt(&self, kwargs: &Map<String, Json>) -> Option<String> {
        let probe = [Message::text(Role::User, PROBE)];
        let with = self.render_as(&probe, &[], kwargs, true).ok()?;
        let without = self.render_as(&probe, &[], kwargs, false).ok()?;
        with.strip_prefix(&without).filter(|rest| !rest.is_empty()).map(str::to_owned)
    }

    /// Renders a prompt; `add_generation_prompt`: one that ends where the assistant is to speak.
    pub fn render_as(
        &self,
        messages: &[Message],
        tools: &[Json],
        kwargs: &Map<String, Json>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let messages = messages
            .iter()
            .map(|m| Value::from(Serde(m.to_template(self.parts_as_list, self.developer_as_system))))
            .collect::<Vec<_>>();
        let tools = if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools)) };
        let template = self.env.get_template(NAME).map_err(|e| TemplateError::Compile(describe(&e)))?;
        let context = context! {
            messages,
            tools,
            documents => Value::from(()),
            add_generation_prompt,
            ..context! { ..Value::from(Serde(kwargs)), ..Value::from(Serde(&self.special_tokens)) }
        };
        template.render(context).map_err(|e| match refusal(&e) {
            Some(message) => TemplateError::Refused(message),
            None => TemplateError::Render(describe(&e)),
        })
    }

    /// Whether the template loops over content parts itself: a part's text comes out, and not as a printed list.
    fn walks_content_parts(&self) -> bool {
        let mut message = Message::text(Role::User, "");
        message.content = crate::chat::Content::Parts(vec![PROBE.to_owned()]);
        self.render(&[message], &[], &Map::new()).is_ok_and(|out| {
            out.contains(PROBE)
                && !out.contains(&format!("'{PROBE}'"))
                && !out.contains(&format!("\"{PROBE}\""))
        })
    }
}

/// Marks an error made by `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
}

fn refusal(error: &Error) -> Option<String> {
    let mut source = std::error::Error::source(error);
    while let Some(e) = source {
        if let Some(raised) = e.downcast_ref::<Raised>() {
            return Some(raised.0.clone());
        }
        source = e.source();
    }
    None
}

/// Local time, as `datetime.now().strftime(format)`.
fn strftime_now(format: String, kwargs: Kwargs) -> Result<String, Error> {
    kwargs.assert_all_used()?;
    let now = time::OffsetDateTime::now_local().unwrap_or_else(|_| time::OffsetDateTime::now_utc());
    strftime(&format, now)
}

fn strftime(format: &str, at: time::OffsetDateTime) -> Result<String, Error> {
    let items = time::format_description::parse_strftime_borrowed(format)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))?;
    at.format(&items).map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
}

/// The error with its line, on one line.
fn describe(error: &Error) -> String {
    match error.line() {
        Some(line) => {
            let detail = error.detail().map(|d| format!(": {d}")).unwrap_or_default();
            format!("line {line}: {}{detail}", error.kind())
        }
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
