//! Chat templates, rendered as the `transformers` library renders them.
//!
//! A template is a Jinja program that comes with the checkpoint, so it is not trusted: every render runs on a limited
//! amount of fuel, and there is no loader, no environment and no file access.

mod allowance;
mod conversation;
mod ending;
mod exact;
mod jinja;
mod probe;
mod python;
mod source;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context, machinery};
use serde_json::{Map, Value as Json};

pub use self::allowance::{modestly, until};
use self::conversation::{Shape, arrange, other_shapes};
use self::probe::PROBE;
use crate::chat::Role;
use crate::memory::Weight;
use crate::{Message, memory};

/// Work that one render may do: about one unit an instruction, or what [`allowance`] says in bytes. So much for any request, and
/// so much for each of its values and bytes; templates walk over them a few times.
const FUEL: u64 = 120_000;
const FUEL_OF_VALUE: u64 = 200;
const BYTES_OF_FUEL: u64 = 2;
/// Templates that look at all later messages for each one take so many squared values a unit.
const SQUARES_OF_FUEL: u64 = 16;
/// The same for what nearly all prompts need.
const USUAL_FUEL: u64 = 40_000;
const USUAL_FUEL_OF_VALUE: u64 = 48;
/// The same for the small conversations that show what a template takes.
const PROBE_FUEL: u64 = 500_000;
const NAME: &str = "chat_template";

/// Why a template failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It does not compile; found at start.
    #[error("the chat template does not compile: {0}")]
    Compile(String),
    /// It uses what there is not, by name; found at start.
    #[error("the chat template uses what is not supported: {0}")]
    Unsupported(String),
    /// The template itself refused the messages, through `raise_exception`.
    #[error("the chat template refused the messages: {0}")]
    Refused(String),
    /// It failed on these messages.
    #[error("the chat template failed on these messages: {0}")]
    Render(String),
}

/// A compiled chat template.
///
/// ```
/// use mach_api::ChatTemplate;
/// use mach_api::chat::Message;
/// use mach_api::chat::Role;
/// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
/// let template = ChatTemplate::compile(source, Default::default())?;
/// let prompt = template.render(&[Message::text(Role::User, "Hello")], &[], &Default::default())?;
/// assert_eq!(prompt, "<user>Hello<assistant>");
/// assert_eq!(template.generation_prompt(), Some("<assistant>"));
/// # Ok::<(), mach_api::TemplateError>(())
/// ```
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    special_tokens: Map<String, Json>,
    shape: Shape,
    generation_prompt: Option<String>,
}

impl ChatTemplate {
    /// Compiles `source`. `special_tokens` are variables such as `bos_token` and `eos_token`.
    pub fn compile(source: &str, special_tokens: Map<String, Json>) -> Result<Self, TemplateError> {
        let compile = |e: Error| TemplateError::Compile(describe(&e));
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .keep_trailing_newline(true) // what Jinja2 drops is gone before
            .build()
            .map_err(|e| TemplateError::Compile(e.to_string()))?;
        env.set_syntax(syntax.clone());
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_fuel(Some(PROBE_FUEL));
        jinja::install(&mut env);
        let text = source::neutralise(&source::normalise(source));
        let tree = machinery::parse(&text, NAME, syntax).map_err(compile)?;
        if let Some(missing) = jinja::names::missing(&tree, &env) {
            return Err(TemplateError::Unsupported(missing));
        }
        let text = jinja::operators::rewrite(&text, &tree);
        env.add_template_owned(NAME, text).map_err(compile)?;
        let mut template = Self {
            env,
            source: source.to_owned(),
            special_tokens,
            shape: Shape::default(),
            generation_prompt: None,
        };
        template.shape = probe::shape(&template);
        template.generation_prompt = template.find_generation_prompt(&Map::new());
        template.env.set_fuel(None);
        Ok(template)
    }

    /// The template as it was given.
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

    /// The most bytes that rendering something of this weight takes, its result included.
    pub fn memory(&self, weight: Weight) -> usize {
        memory_with(fuel_for(weight), weight)
    }

    /// The same for what [`modestly`] renders.
    pub fn usual_memory(&self, weight: Weight) -> usize {
        memory_with(usual_fuel_for(weight), weight)
    }

    fn find_generation_prompt(&self, kwargs: &Map<String, Json>) -> Option<String> {
        let probe = [Message::text(Role::User, PROBE)];
        let with = self.render_as(&probe, &[], kwargs, true).ok()?;
        let without = self.render_as(&probe, &[], kwargs, false).ok()?;
        with.strip_prefix(&without).filter(|rest| !rest.is_empty()).map(str::to_owned)
    }

    /// Renders a prompt; `add_generation_prompt`: one that ends where the assistant is to speak. Where the template fails
    /// on messages in the shape that it takes elsewhere, other shapes are tried.
    pub fn render_as(
        &self,
        messages: &[Message],
        tools: &[Json],
        kwargs: &Map<String, Json>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let attempt = |messages: &[Message]| {
            let render =
                |shape: &Shape| self.render_shape(shape, messages, tools, kwargs, add_generation_prompt);
            render(&self.shape).or_else(|error| {
                other_shapes(&self.shape, messages).iter().find_map(|shape| render(shape).ok()).ok_or(error)
            })
        };
        attempt(messages).or_else(|error| {
            let arranged = arrange(messages);
            arranged.and_then(|messages| attempt(&messages).ok()).ok_or(error)
        })
    }

    fn render_shape(
        &self,
        shape: &Shape,
        messages: &[Message],
        tools: &[Json],
        kwargs: &Map<String, Json>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let weight = Weight::of_chat(messages, tools, kwargs);
        let messages = messages.iter().map(|m| shape.message(m)).collect::<Value>();
        let tools = if tools.is_empty() { Value::from(()) } else { tools.iter().map(exact::json).collect() };
        let mut env = self.env.clone();
        let usual = allowance::is_modest();
        let own = || if usual { usual_fuel_for(weight) } else { fuel_for(weight) };
        let fuel = env.fuel().unwrap_or_else(own);
        env.set_fuel(Some(fuel));
        let template = env.get_template(NAME).map_err(|e| TemplateError::Compile(describe(&e)))?;
        let context = context! {
            messages,
            tools,
            documents => Value::from(()),
            add_generation_prompt,
            ..context! { ..exact::object(kwargs), ..exact::object(&self.special_tokens) }
        };
        let (rendered, spent) = allowance::within(fuel, || template.render(context));
        if spent || rendered.as_ref().is_err_and(is_out_of_fuel) {
            allowance::fell_short();
        }
        match rendered {
            Ok(_) if spent => Err(TemplateError::Render("it makes too much text".into())),
            Ok(text) => Ok(text),
            Err(e) => Err(match refusal(&e) {
                Some(message) => TemplateError::Refused(message),
                None => TemplateError::Render(describe(&e)),
            }),
        }
    }
}

fn fuel_for(weight: Weight) -> u64 {
    let values = weight.values as u64;
    let squares = values.saturating_mul(values) / SQUARES_OF_FUEL;
    FUEL.saturating_add(FUEL_OF_VALUE * values + weight.bytes as u64 / BYTES_OF_FUEL).saturating_add(squares)
}

fn usual_fuel_for(weight: Weight) -> u64 {
    USUAL_FUEL + USUAL_FUEL_OF_VALUE * weight.values as u64 + weight.bytes as u64 / BYTES_OF_FUEL
}

fn memory_with(fuel: u64, weight: Weight) -> usize {
    let values =
        weight.bytes.saturating_mul(2).saturating_add(weight.values.saturating_mul(memory::OF_VALUE));
    values.saturating_add(fuel.saturating_mul(allowance::BYTES_OF_FUEL) as usize)
}

fn is_out_of_fuel(error: &Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = source {
        if e.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return true;
        }
        source = e.source();
    }
    false
}

fn refusal(error: &Error) -> Option<String> {
    let mut source = std::error::Error::source(error);
    while let Some(e) = source {
        if let Some(raised) = e.downcast_ref::<jinja::Raised>() {
            return Some(raised.0.clone());
        }
        source = e.source();
    }
    None
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
