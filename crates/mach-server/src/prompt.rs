//! From messages to tokens: the template's text, the exact tokens of earlier answers in it, and where the prefix cache
//! should look.

use mach_api::chat::{Message, Role, Settings, WarmInput, WarmRequest, turn_digest};
use mach_api::memory::Weight;
use mach_api::output::ReasoningStart;
use mach_api::template::modestly;
use mach_api::turn::Conversation;
use mach_api::{ApiError, ChatTemplate, ErrorKind, TemplateError};
use mach_engine::CacheHints;
use serde_json::{Map, Value};

use crate::ChatModel;
use crate::job::Job;

/// A prompt.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    pub(crate) hints: CacheHints,
    /// Digest of its text.
    pub(crate) text: [u8; 32],
    /// Where the model's reasoning begins.
    pub(crate) start: ReasoningStart,
}

fn internal(error: impl ToString) -> ApiError {
    ApiError::new(ErrorKind::Internal, error.to_string())
}

/// Renders in the memory that nearly all prompts need, and where that is too little in the most that a template may take; so
/// many bytes are taken beside.
pub(crate) fn rendered(
    template: &ChatTemplate,
    weight: Weight,
    beside: usize,
    job: &mut Job,
    render: impl Fn() -> Result<String, TemplateError>,
) -> Result<String, ApiError> {
    job.needs(beside.saturating_add(template.usual_memory(weight)))?;
    let text = match modestly(&render) {
        Some(text) => text,
        None => {
            job.needs(beside.saturating_add(template.memory(weight)))?;
            render()
        }
    };
    text.map_err(|e| ApiError::field("messages", e.to_string()))
}

/// A conversation: what the client calls it, and how it begins, by which a sub-agent's is told from the one that it works for.
fn session(name: Option<&str>, beginning: Option<&[u32]>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("mach: conversation");
    hasher.update(blake3::hash(name.unwrap_or_default().as_bytes()).as_bytes());
    beginning.unwrap_or_default().iter().for_each(|id| _ = hasher.update(&id.to_le_bytes()));
    *hasher.finalize().as_bytes()
}

impl ChatModel {
    pub(crate) fn template(&self, tools: bool) -> Result<&ChatTemplate, ApiError> {
        let templates = self.templates.as_ref().ok_or_else(|| {
            ApiError::new(ErrorKind::InvalidRequest, "this model has no chat template, so it cannot chat")
        })?;
        Ok(templates.tool_use.as_ref().filter(|_| tools).unwrap_or(&templates.default))
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        self.engine.tokenizer().encode(text, false).map_err(internal)
    }

    /// The prompt of a conversation.
    pub(crate) fn prompt(
        &self,
        request: &Conversation,
        settings: &Settings,
        job: &mut Job,
    ) -> Result<Prompt, ApiError> {
        let (salt, session) = (settings.cache_salt.as_deref(), settings.session.as_deref());
        let template = self.template(!request.tools.is_empty())?;
        self.check_messages(&request.messages)?;
        let weight = Weight::of_chat(&request.messages, &request.tools, &request.template_kwargs);
        let render =
            || template.render_to(&request.messages, &request.tools, &request.template_kwargs, request.end);
        let text = rendered(template, weight, 0, job, render)?;
        self.check_length(text.len(), "messages")?;
        let beside = 2 * text.len();
        let mut encode = |part: &str| self.tokens_of(part, false, beside, job);
        let digest = *blake3::hash(text.as_bytes()).as_bytes();
        let (mut tokens, mut from) = (Vec::new(), 0);
        for (start, end, answer) in self.answers_in(&text, template, request, salt) {
            tokens.extend(encode(text.get(from..start).unwrap_or_default())?);
            tokens.extend(answer);
            from = end;
        }
        tokens.extend(encode(text.get(from..).unwrap_or_default())?);
        let hints = self.hints(&tokens, template, request, (salt, session))?;
        let start = self.output.reasoning.map_or(ReasoningStart::Closed, |format| format.start(&text));
        Ok(Prompt { tokens, hints, text: digest, start })
    }

    /// Where the text holds answers whose tokens are remembered; nowhere unless the operator asked for it, since a prompt is to be
    /// a function of the request alone: `(start, end, tokens)`, the end of the turn not included.
    fn answers_in(
        &self,
        text: &str,
        template: &ChatTemplate,
        request: &Conversation,
        salt: Option<&str>,
    ) -> Vec<(usize, usize, Vec<u32>)> {
        let mut found = Vec::new();
        let Some(cache) = self.engine.prefix() else { return found };
        let Some(turns) = cache.turns().filter(|turns| !turns.is_empty()) else { return found };
        let assistant: Vec<_> = request.messages.iter().filter(|m| m.role == Role::Assistant).collect();
        if assistant.is_empty() {
            return found;
        }
        let Some(opening) = template.generation_prompt_with(&request.template_kwargs) else { return found };
        let digests: Vec<_> = assistant.iter().map(|message| turn_digest(message)).collect();
        let tokenizer = self.engine.tokenizer();
        let ends: Vec<&str> = self
            .stop_ids
            .iter()
            .filter_map(|&id| std::str::from_utf8(tokenizer.bytes(id)).ok())
            .filter(|end| !end.is_empty())
            .collect();
        let mut hasher = blake3::Hasher::new();
        let (mut hashed, mut next) = (0, 0);
        for (at, _) in text.match_indices(&opening) {
            let start = at + opening.len();
            hasher.update(text.get(hashed..start).unwrap_or_default().as_bytes());
            hashed = start;
            let before = *hasher.finalize().as_bytes();
            // Templates may show fewer messages than there are, never in another order.
            let known = digests.iter().enumerate().skip(next).find_map(|(i, digest)| {
                let key = cache.turn_key(salt, &before, digest);
                Some((i, turns.recall(&key)?))
            });
            let rest = text.get(start..).unwrap_or_default();
            let end = ends.iter().filter_map(|end| rest.find(end)).min();
            let (Some((i, tokens)), Some(end)) = (known, end) else { continue };
            // Templates leave reasoning out of earlier turns; then the model is not to see it again either.
            let reasoning = assistant.get(i).and_then(|message| message.reasoning_content.as_deref());
            if reasoning.is_some_and(|said| !rest.get(..end).unwrap_or_default().contains(said.trim())) {
                continue;
            }
            let mut tokens = tokens.to_vec();
            if tokens.last().is_some_and(|last| self.stop_ids.contains(last)) {
                tokens.pop();
            }
            found.push((start, start + end, tokens));
            next = i + 1;
        }
        found
    }

    /// Messages begin with the token that the generation prompt begins with, if that is a control token.
    fn hints(
        &self,
        tokens: &[u32],
        template: &ChatTemplate,
        request: &Conversation,
        (salt, name): (Option<&str>, Option<&str>),
    ) -> Result<CacheHints, ApiError> {
        let mut hints = CacheHints { salt: salt.map(str::to_owned), ..CacheHints::default() };
        let opening = self.encode(template.generation_prompt().unwrap_or_default())?;
        let Some(&opener) = opening.first().filter(|&&id| self.engine.tokenizer().is_special(id)) else {
            // Where messages begin is not known.
            hints.session = Some(session(name, tokens.get(..tokens.len().min(256))));
            return Ok(hints);
        };
        let starts: Vec<usize> =
            (0..).zip(tokens).filter(|(_, id)| **id == opener).map(|(at, _)| at).collect();
        let instructed = request.messages.first().is_some_and(|m| m.role != Role::User);
        if instructed || !request.tools.is_empty() {
            hints.system = starts.get(1).copied();
        }
        hints.session = Some(session(name, tokens.get(..starts.get(2).copied().unwrap_or(tokens.len()))));
        hints.boundaries = starts.get(starts.len().saturating_sub(2)..).unwrap_or_default().to_vec();
        Ok(hints)
    }

    /// Remembers the exact tokens of an answer to a prompt with this text.
    pub(crate) fn remember(&self, salt: Option<&str>, text: &[u8; 32], answer: &Message, tokens: &[u32]) {
        let Some(cache) = self.engine.prefix() else { return };
        if let Some(turns) = cache.turns() {
            turns.remember(cache.turn_key(salt, text, &turn_digest(answer)), tokens);
        }
    }

    /// The tokens that all prompts with this beginning have in common.
    pub(crate) fn stable_part_as(&self, request: &WarmRequest, job: &mut Job) -> Result<Vec<u32>, ApiError> {
        let (messages, tools, kwargs) = match &request.input {
            WarmInput::Prompt(text) => {
                self.check_length(text.len(), "prompt")?;
                return self.tokens_of(text, true, 0, job);
            }
            WarmInput::Chat { messages, tools, template_kwargs } => (messages, tools, template_kwargs),
        };
        self.check_messages(messages)?;
        let weight = Weight::of_chat(messages, tools, kwargs);
        let rendering = self.template(!tools.is_empty())?.memory(weight);
        job.needs(rendering.saturating_add(3 * weight.memory()))?;
        let render = |more: Option<&str>| self.render_with(messages, tools, kwargs, more);
        let mut all = vec![render(Some("Apples are red."))?, render(Some("what is 17?"))?];
        if messages.last().is_some_and(|m| m.role == Role::User || m.role == Role::Tool) {
            all.push(render(None)?);
        }
        let longest = all.iter().map(String::len).max().unwrap_or(0);
        self.check_length(longest, "messages")?;
        let beside = 32 * longest;
        let encoded =
            all.iter().map(|text| self.tokens_of(text, false, beside, job)).collect::<Result<Vec<_>, _>>()?;
        let mut common = encoded.first().cloned().unwrap_or_default();
        for other in &encoded {
            let same = common.iter().zip(other).take_while(|(a, b)| a == b).count();
            common.truncate(same);
        }
        if common.is_empty() {
            return Err(ApiError::field("messages", "prompts that begin with them have nothing in common"));
        }
        Ok(common)
    }

    fn render_with(
        &self,
        messages: &[Message],
        tools: &[Value],
        kwargs: &Map<String, Value>,
        more: Option<&str>,
    ) -> Result<String, ApiError> {
        let mut messages = messages.to_vec();
        messages.extend(more.map(|text| Message::text(Role::User, text)));
        let template = self.template(!tools.is_empty())?;
        template.render(&messages, tools, kwargs).map_err(|e| ApiError::field("messages", e.to_string()))
    }
}
