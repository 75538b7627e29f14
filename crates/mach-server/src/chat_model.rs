//! A model that can chat: engine, templates, sampling defaults, names.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mach_api::chat::{Settings, SpeculationPreset, ToolChoice};
use mach_api::output::grammar::{OwnGrammar, Wanted, grammar};
use mach_api::output::{OutputFormat, ReasoningStart, ToolSchemas};
use mach_api::turn::{Conversation, Input, Turn};
use mach_api::{ApiError, ChatTemplate, ErrorKind, ModelFacts, ModelList, TemplateError};
use mach_checkpoint::{Checkpoint, CheckpointError};
use mach_engine::grammar::{Grammar, GrammarCompiler, GrammarError, GrammarText, OwnText};
use mach_engine::{
    CacheHints, GenerateRequest, Generator, OutputControl, Preset, SamplingParams, TextTokenizer,
    TokenizerError,
};
use mach_specdec::policy::{GuardSpec, PolicySpec, RhoGate};
use mach_specdec::{DecodePath, Gate};
use serde_json::{Map, Value};

use crate::account::Account;
use crate::capabilities::Serving;
use crate::job::Job;
use crate::prompt::Prompt;
use crate::reader::{OutputStats, Reading};

/// Bytes of memory that requests may take together, unless told otherwise.
const REQUEST_MEMORY: usize = 256 << 20;

/// The compiled templates of a checkpoint.
#[derive(Debug)]
pub struct Templates {
    pub(crate) default: ChatTemplate,
    /// Used when a request brings tools, if the checkpoint has one of this name.
    pub(crate) tool_use: Option<ChatTemplate>,
}

/// Why a checkpoint's tokenizer files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// A file is missing or broken.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A template does not compile.
    #[error("{}: {source}", file.display())]
    Template {
        /// The file that does not compile.
        file: std::path::PathBuf,
        /// What is wrong.
        source: TemplateError,
    },
}

impl Templates {
    /// Compiles the checkpoint's templates; `None` if it has none.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>, PrepareError> {
        let Some(found) = checkpoint.chat_template()? else { return Ok(None) };
        let mut special = Map::new();
        let tokens = [
            ("bos_token", &found.bos_token),
            ("eos_token", &found.eos_token),
            ("pad_token", &found.pad_token),
            ("unk_token", &found.unk_token),
        ];
        for (name, token) in tokens {
            if let Some(token) = token {
                special.insert(name.into(), Value::from(token.as_str()));
            }
        }
        let compile = |source: &str| {
            ChatTemplate::compile(source, special.clone())
                .map_err(|source| PrepareError::Template { file: found.file.clone(), source })
        };
        let tool_use = found.named.iter().find(|(name, _)| name == "tool_use");
        Ok(Some(Self {
            default: compile(&found.source)?,
            tool_use: tool_use.map(|(_, source)| compile(source)).transpose()?,
        }))
    }

    /// The text of the template that requests with tools use.
    pub fn source(&self) -> &str {
        self.tool_use.as_ref().unwrap_or(&self.default).source()
    }

    /// One template for every request.
    pub fn single(template: ChatTemplate) -> Self {
        Self { default: template, tool_use: None }
    }
}

/// A served model.
#[derive(Debug)]
pub struct ChatModel {
    /// What generates.
    pub engine: Box<dyn Generator>,
    /// Templates; without them only plain prompts work.
    pub templates: Option<Templates>,
    /// Sampling defaults.
    pub defaults: SamplingParams,
    /// Tokens that end an answer.
    pub stop_ids: Vec<u32>,
    /// Names that requests may use; the first is the one that answers carry.
    pub names: Vec<String>,
    /// How tokens are decoded.
    pub decoding: Decoding,
    /// How answers are written.
    pub output: OutputFormat,
    /// What was found in answers.
    pub output_stats: Arc<OutputStats>,
    /// Control tokens that answers show to the parsers.
    markers: Arc<[u32]>,
    grammars: GrammarCompiler,
    /// The memory of requests.
    pub(crate) account: Arc<Account>,
    /// What capabilities show beside it.
    pub serving: Option<Serving>,
    /// Name of the arithmetic that answers depend on: `system_fingerprint`.
    pub numerics: String,
    /// What decides whether the model's own block drafts, if it has one.
    pub rho: Option<Arc<RhoGate>>,
    created: u64,
}

/// How tokens are decoded, and why so.
#[derive(Debug, Clone)]
pub struct Decoding {
    /// The path asked for.
    pub path: DecodePath,
    /// The path that is taken.
    pub gate: Gate,
    /// How much is proposed.
    pub policy: PolicySpec,
    /// What stands over it.
    pub guard: GuardSpec,
}

/// A turn on its way to the engine.
#[derive(Debug)]
pub struct Prepared {
    /// For the engine.
    pub generate: GenerateRequest,
    /// Digest of the prompt's text, which answers are remembered by; none for plain prompts.
    pub text: Option<[u8; 32]>,
    /// How the answers are read.
    pub reading: Reading,
}

impl ChatModel {
    /// Puts the parts together. `names` must not be empty.
    pub fn new(
        engine: impl Generator + 'static,
        templates: Option<Templates>,
        defaults: SamplingParams,
        stop_ids: Vec<u32>,
        names: Vec<String>,
        decoding: Decoding,
    ) -> Self {
        let grammars = GrammarCompiler::new(Arc::clone(engine.tokenizer()), engine.facts().vocab, &stop_ids);
        Self {
            engine: Box::new(engine),
            grammars,
            account: Account::new(REQUEST_MEMORY),
            templates,
            defaults,
            stop_ids,
            names,
            decoding,
            output: OutputFormat::default(),
            output_stats: Arc::default(),
            markers: Arc::default(),
            serving: None,
            numerics: String::new(),
            rho: None,
            created: unix_time(),
        }
    }

    /// Tells how the model writes its answers; without this they are content alone.
    pub fn with_output(mut self, output: OutputFormat) -> Self {
        let tokenizer = self.engine.tokenizer();
        let ids = output.markers().into_iter().filter_map(|text| tokenizer.id(text));
        self.markers = ids.filter(|&id| tokenizer.is_special(id)).collect();
        self.output = output;
        self
    }

    /// Ids that end an answer: those of `generation_config.json` (or else `config.json`), and the tokenizer's own
    /// end-of-sequence token.
    pub fn stop_ids_of(
        checkpoint: &Checkpoint,
        tokenizer: &TextTokenizer,
    ) -> Result<Vec<u32>, CheckpointError> {
        let mut ids = checkpoint.generation().eos_token_ids.clone();
        if ids.is_empty() {
            ids.clone_from(&checkpoint.config().eos_token_ids);
        }
        let own = checkpoint.chat_template()?.and_then(|t| t.eos_token).and_then(|t| tokenizer.id(&t));
        ids.extend(own);
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// What is served, by every name.
    pub fn list(&self) -> ModelList {
        let arch = self.serving.as_ref().and_then(|serving| serving.arch.as_ref());
        let effort = |templates: &Templates| templates.source().contains("reasoning_effort");
        let facts = ModelFacts {
            created: self.created,
            context: self.engine.facts().context,
            family: arch.map(|card| card.model_type.to_owned()),
            chat: self.templates.is_some(),
            tools: self.output.tools.is_some(),
            reasoning: self.output.reasoning.is_some(),
            effort: self.templates.as_ref().is_some_and(effort),
        };
        ModelList::new(&self.names, &facts)
    }

    /// The name that an answer carries: the one asked for, or the first.
    pub(crate) fn name_for<'a>(&'a self, settings: &'a Settings) -> &'a str {
        settings.model.as_deref().or(self.names.first().map(String::as_str)).unwrap_or_default()
    }

    /// The text of tokens, control tokens included; bytes that are not UTF-8 are replaced.
    pub(crate) fn text_of(&self, tokens: &[u32]) -> String {
        let tokenizer = self.engine.tokenizer();
        let bytes: Vec<u8> = tokens.iter().flat_map(|&id| tokenizer.bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Refuses a name that is not served; none means the model that is.
    pub(crate) fn check_name(&self, name: Option<&str>) -> Result<(), ApiError> {
        let Some(name) = name else { return Ok(()) };
        if self.names.iter().any(|served| served == name) {
            return Ok(());
        }
        let served = self.names.join(", ");
        let message = format!("the model `{}` does not exist; served: {served}", clip(name));
        Err(ApiError { param: Some("model".into()), ..ApiError::new(ErrorKind::ModelNotFound, message) })
    }

    /// Bounds what requests take together, from their bodies to what the engine is asked (`bytes`), and what grammars do that are kept,
    /// or that `sequences` follow at one time.
    pub fn with_request_memory(mut self, bytes: usize, grammars: usize, sequences: usize) -> Self {
        self.account = Account::new(bytes);
        self.grammars = self.grammars.within(grammars, sequences);
        self
    }

    /// Tells the name of the arithmetic: equal names mean equal bytes.
    pub fn with_numerics(mut self, numerics: String) -> Self {
        self.numerics = numerics;
        self
    }

    /// Tells what decides whether the model's own block drafts.
    pub fn with_rho(mut self, gate: Option<Arc<RhoGate>>) -> Self {
        self.rho = gate;
        self
    }

    /// Tells what capabilities show beside what the model itself knows.
    pub fn with_serving(mut self, serving: Serving) -> Self {
        self.serving = Some(serving);
        self
    }

    /// Everything between a parsed turn and the engine: name, template, tokens, grammar, defaults.
    pub fn prepare(&self, turn: &Turn) -> Result<Prepared, ApiError> {
        self.prepare_as(turn, &mut Job::default())
    }

    /// The same as a piece of work whose memory is charged.
    pub(crate) fn prepare_as(&self, turn: &Turn, job: &mut Job) -> Result<Prepared, ApiError> {
        self.check_name(turn.settings.model.as_deref())?;
        match &turn.input {
            Input::Conversation(conversation) => self.prepare_conversation(conversation, &turn.settings, job),
            Input::Text(text) => {
                self.check_length(text.len(), "prompt")?;
                let tokens = self.tokens_of(text, true, 0, job)?;
                self.prepare_plain(tokens, &turn.settings, job)
            }
            Input::Tokens(ids) => {
                let vocab = self.engine.facts().vocab;
                if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
                    let reason = format!("token id {id} is outside the vocabulary of {vocab}");
                    return Err(ApiError::field("prompt", reason));
                }
                self.check_tokens(ids.len(), "prompt")?;
                self.prepare_plain(ids.clone(), &turn.settings, job)
            }
        }
    }

    /// Tokens of a turn's prompt.
    pub(crate) fn count(&self, turn: &Turn, job: &mut Job) -> Result<usize, ApiError> {
        self.check_name(turn.settings.model.as_deref())?;
        match &turn.input {
            Input::Conversation(conversation) => {
                Ok(self.prompt_that_fits(conversation, &turn.settings, job)?.tokens.len())
            }
            Input::Text(_) | Input::Tokens(_) => Ok(self.prepare_as(turn, job)?.generate.prompt.len()),
        }
    }

    fn prepare_conversation(
        &self,
        conversation: &Conversation,
        settings: &Settings,
        job: &mut Job,
    ) -> Result<Prepared, ApiError> {
        let Prompt { tokens, hints, text, start } = self.prompt_that_fits(conversation, settings, job)?;
        job.goes_on()?;
        let tools = &conversation.tools;
        let schemas = (!tools.is_empty()).then(|| Arc::new(ToolSchemas::of(tools)));
        let wanted = Wanted {
            format: self.output,
            start,
            tools,
            choice: &conversation.tool_choice,
            parallel: conversation.parallel_tool_calls,
            response: settings.format.as_ref(),
            control: &|text| self.control_token(text),
        };
        let grammar = self.grammar(&wanted, job)?;
        let output = OutputControl { show: Arc::clone(&self.markers), grammar, ..OutputControl::default() };
        let generate = GenerateRequest { cache: hints, output, ..self.generate(settings, tokens)? };
        let reading = Reading { format: self.output, schemas, start };
        Ok(Prepared { generate, text: Some(text), reading })
    }

    /// A plain prompt, whose answer is content alone.
    fn prepare_plain(
        &self,
        prompt: Vec<u32>,
        settings: &Settings,
        job: &mut Job,
    ) -> Result<Prepared, ApiError> {
        job.goes_on()?;
        let wanted = Wanted {
            format: OutputFormat::default(),
            start: ReasoningStart::Closed,
            tools: &[],
            choice: &ToolChoice::None,
            parallel: true,
            response: settings.format.as_ref(),
            control: &|text| self.control_token(text),
        };
        let grammar = self.grammar(&wanted, job)?;
        let output = OutputControl { grammar, ..OutputControl::default() };
        let generate = GenerateRequest { output, ..self.generate(settings, prompt)? };
        Ok(Prepared { generate, text: None, reading: Reading::default() })
    }

    fn control_token(&self, text: &str) -> Option<u32> {
        let tokenizer = self.engine.tokenizer();
        tokenizer.id(text).filter(|&id| tokenizer.is_special(id))
    }

    /// The grammar that answers follow.
    fn grammar(&self, wanted: &Wanted<'_>, job: &mut Job) -> Result<Option<Grammar>, ApiError> {
        let Some((source, field)) = grammar(wanted)? else { return Ok(None) };
        for warning in &source.warnings {
            tracing::warn!("not enforced: {warning}");
        }
        let own = source.own.map(|own| match own {
            OwnGrammar::Lark(text) => OwnText::Lark(text),
            OwnGrammar::Regex(text) => OwnText::Regex(text),
        });
        let text = GrammarText { lark: source.lark, own };
        job.needs(GrammarCompiler::memory(text.length()))?;
        let compiled = self.grammars.compile_for(&text, job.charge(), &|| job.goes_on().is_ok());
        compiled.map(Some).map_err(|error| match error {
            GrammarError::Refused(_) | GrammarError::TooSlow => ApiError::field(field, error.to_string()),
            GrammarError::GivenUp => ApiError::new(ErrorKind::Unavailable, error.to_string()),
            GrammarError::Busy => ApiError::new(ErrorKind::Overloaded, error.to_string()).retry_after(1),
            GrammarError::Unavailable(_) => ApiError::new(ErrorKind::Internal, error.to_string()),
        })
    }

    /// What the engine is asked, grammar and hints for the cache aside.
    fn generate(&self, request: &Settings, prompt: Vec<u32>) -> Result<GenerateRequest, ApiError> {
        let vocab = self.engine.facts().vocab;
        let outside = |id: u32| id as usize >= vocab;
        if let Some(&(id, _)) = request.sampling.logit_bias.iter().find(|(id, _)| outside(*id)) {
            let reason = format!("is outside the vocabulary of {vocab} tokens");
            return Err(ApiError::field(format!("logit_bias.{id}"), reason));
        }
        if let Some(i) = request.stop_token_ids.iter().position(|&id| outside(id)) {
            let reason = format!("is outside the vocabulary of {vocab} tokens");
            return Err(ApiError::field(format!("stop_token_ids[{i}]"), reason));
        }
        let mut stop_token_ids = request.stop_token_ids.clone();
        if !request.ignore_eos {
            stop_token_ids.extend(&self.stop_ids);
        }
        Ok(GenerateRequest {
            prompt,
            choices: request.n,
            max_tokens: request.max_tokens,
            sampling: self.sampling(request),
            stop: request.stop.clone(),
            stop_token_ids,
            logprobs: request.logprobs,
            preset: self.preset(&request.speculation)?,
            cache: CacheHints { salt: request.cache_salt.clone(), ..CacheHints::default() },
            warm: false,
            policy: None,
            output: OutputControl::default(),
        })
    }

    /// Answers end with a stop token, so that it is proposed as well.
    fn preset(&self, preset: &SpeculationPreset) -> Result<Preset, ApiError> {
        let tokens = |text: &String| {
            let mut tokens = self.engine.tokenizer().encode(text, false)?;
            tokens.extend(self.stop_ids.last());
            Ok(tokens)
        };
        if self.decoding.gate.effective.is_v4() && *preset != SpeculationPreset::None {
            let path = self.decoding.gate.effective;
            let reason = format!(
                "this model proposes by a draft of its own ({path}), where the only preset is `none`"
            );
            return Err(ApiError::field("speculation", reason));
        }
        match preset {
            SpeculationPreset::None => Ok(Preset::None),
            SpeculationPreset::Summarization => Ok(Preset::Summarization),
            SpeculationPreset::Classification(texts) => texts
                .iter()
                .map(tokens)
                .collect::<Result<_, TokenizerError>>()
                .map(Preset::Classification)
                .map_err(|e| ApiError::new(ErrorKind::Internal, e.to_string())),
        }
    }

    fn sampling(&self, request: &Settings) -> SamplingParams {
        let (given, defaults) = (&request.sampling, &self.defaults);
        SamplingParams {
            temperature: given.temperature.unwrap_or(defaults.temperature),
            top_k: given.top_k.unwrap_or(defaults.top_k),
            top_p: given.top_p.unwrap_or(defaults.top_p),
            min_p: given.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: given.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: given.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: given.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            logit_bias: given.logit_bias.clone(),
            seed: given.seed.unwrap_or_else(random_seed),
        }
    }
}

/// A seed for a request that brings none.
fn random_seed() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    // Six bits of a UUID are fixed; folding the halves hides them.
    high.rotate_left(32) ^ low
}

pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}
