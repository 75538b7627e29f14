//! From the text of a grammar to one that can be followed.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{CancellationHandle, Matcher, ParserFactory, regex_to_lark};

use super::guide::Grammar;
use super::vocabulary::Vocabulary;
use crate::TextTokenizer;

/// A grammar that takes longer to compile is refused.
const TIME: Duration = Duration::from_secs(10);
/// How often it is asked whether anybody still waits for one.
const ASKED: Duration = Duration::from_millis(20);
/// Compilations at a time; those that were given up count until they end.
const THREADS: usize = 4;
/// Schemas nest, and compiling them recurses.
const STACK: usize = 32 << 20;
/// Grammars that are kept for requests with the same one.
const KEPT: usize = 32;
/// Bytes that any grammar takes while it is compiled, and those for each of its characters.
const COMPILING: (usize, usize) = (24 << 20, 256);
/// The same for one that is kept.
const KEEPING: (usize, usize) = (2 << 20, 128);
/// Bytes of a state of the lexer.
const OF_STATE: usize = 2 << 10;
/// States of a lexer: most grammars need some hundred.
const STATES: (usize, usize) = (2_000, 50_000);
/// Bytes for grammars, unless told otherwise.
const MEMORY: usize = 256 << 20;
/// Characters of an error that are worth showing.
const LONGEST_REASON: usize = 600;

/// A grammar that stands for itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OwnText {
    /// llguidance's variant of Lark.
    Lark(String),
    /// A regular expression.
    Regex(String),
}

/// The text of a grammar.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GrammarText {
    /// Lark; refers to `own` as `@own`. Empty if `own` is all there is.
    pub lark: String,
    /// A grammar beside it.
    pub own: Option<OwnText>,
}

/// Why a grammar cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is wrong, or holds what is not supported; the text names it.
    #[error("{0}")]
    Refused(String),
    /// It is too costly.
    #[error("compiling it takes longer than {} s", TIME.as_secs())]
    TooSlow,
    /// Nobody waits for it any more.
    #[error("compiling it was given up")]
    GivenUp,
    /// Too many are being compiled.
    #[error("too many grammars are being compiled")]
    Busy,
    /// The compiler cannot run here.
    #[error("grammars cannot be compiled: {0}")]
    Unavailable(String),
}

/// Compiles grammars for one vocabulary.
pub struct GrammarCompiler {
    tokenizer: Arc<TextTokenizer>,
    vocab: usize,
    ends: Vec<u32>,
    /// Made when it is first needed: a large vocabulary takes a while.
    factory: OnceLock<Result<Arc<ParserFactory>, String>>,
    running: Arc<AtomicUsize>,
    kept: Mutex<VecDeque<(GrammarText, Grammar)>>,
    /// Bytes of those that are kept.
    keep: usize,
    /// States of a lexer.
    states: usize,
}

impl GrammarText {
    /// Characters.
    pub fn length(&self) -> usize {
        let own = self.own.as_ref().map_or(0, |own| match own {
            OwnText::Lark(text) | OwnText::Regex(text) => text.len(),
        });
        self.lark.len() + own
    }
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCompiler").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// For a model with `vocab` rows of logits whose answers end with one of `ends`.
    pub fn new(tokenizer: Arc<TextTokenizer>, vocab: usize, ends: &[u32]) -> Self {
        let ends = ends.iter().copied().filter(|&id| (id as usize) < vocab).collect();
        Self {
            tokenizer,
            vocab,
            ends,
            factory: OnceLock::new(),
            running: Arc::default(),
            kept: Mutex::default(),
            keep: MEMORY / 3,
            states: STATES.1,
        }
    }

    /// The most bytes that compiling a grammar of so many characters takes.
    pub fn memory(length: usize) -> usize {
        COMPILING.0.saturating_add(length.saturating_mul(COMPILING.1))
    }

    /// Bounds the memory of grammars: those that are kept, and those that so many sequences follow at one time.
    #[must_use]
    pub fn within(mut self, bytes: usize, sequences: usize) -> Self {
        self.keep = bytes / 3;
        self.states = ((bytes - self.keep) / sequences.max(1) / OF_STATE).clamp(STATES.0, STATES.1);
        self
    }

    /// Compiles a grammar. Blocks, for at most about ten seconds.
    pub fn compile(&self, text: &GrammarText) -> Result<Grammar, GrammarError> {
        self.compile_for(text, (), &|| true)
    }

    /// The same for somebody who may go: it is given up when `goes_on` says so. What is given up may go on for a while on its own thread,
    /// up to the next place where it can be stopped; `charge` is dropped when it has ended.
    pub fn compile_for(
        &self,
        text: &GrammarText,
        charge: impl Send + 'static,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Grammar, GrammarError> {
        let find = |kept: &VecDeque<(GrammarText, Grammar)>| {
            kept.iter().find(|(known, _)| known == text).map(|(_, grammar)| grammar.clone())
        };
        if let Some(grammar) = find(&self.kept.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(grammar);
        }
        let factory = self.factory.get_or_init(|| self.factory());
        let factory = factory.as_ref().map_err(|reason| GrammarError::Unavailable(reason.clone()))?;
        let (factory, grammar) = (Arc::clone(factory), top_level(text));
        let work = move |stop: &Stop| compiled(&factory, grammar, stop);
        let grammar = self.aside(charge, goes_on, work)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let size = |text: &GrammarText| KEEPING.0 + text.length().saturating_mul(KEEPING.1);
        kept.push_back((text.clone(), grammar.clone()));
        while kept.len() > KEPT || kept.iter().map(|(text, _)| size(text)).sum::<usize>() > self.keep {
            kept.pop_front();
        }
        Ok(grammar)
    }

    fn factory(&self) -> Result<Arc<ParserFactory>, String> {
        let work = || {
            let vocabulary = Vocabulary::new(Arc::clone(&self.tokenizer), self.vocab, &self.ends);
            let env: TokEnv = Arc::new(vocabulary);
            let slices = SlicedBiasComputer::general_slices();
            let made = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
            let mut factory = made.map_err(|e| e.to_string())?;
            factory.quiet();
            let limits = factory.limits_mut();
            limits.max_lexer_states = self.states;
            // Schemas are refused before they come to this; rows are looked at for every token that ends one.
            limits.max_items_in_row = 2_500;
            limits.step_max_items = 100_000;
            limits.verbose_errors = false;
            Ok(Arc::new(factory))
        };
        let unfit = |_| Err("this vocabulary does not fit".to_owned());
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(unfit)
    }

    /// Works on a thread of its own, with room to recurse, and does not wait for it beyond the limit, nor for somebody who has gone.
    fn aside(
        &self,
        charge: impl Send + 'static,
        goes_on: &dyn Fn() -> bool,
        work: impl FnOnce(&Stop) -> Result<Grammar, GrammarError> + Send + 'static,
    ) -> Result<Grammar, GrammarError> {
        if self.running.fetch_add(1, Ordering::AcqRel) >= THREADS {
            self.running.fetch_sub(1, Ordering::AcqRel);
            return Err(GrammarError::Busy);
        }
        let (running, stop) = (Arc::clone(&self.running), Arc::<Stop>::default());
        let (sender, receiver) = mpsc::sync_channel(1);
        let for_work = Arc::clone(&stop);
        let work = move || {
            let compiled = catch_unwind(AssertUnwindSafe(|| work(&for_work)));
            let broken = || Err(GrammarError::Refused("it cannot be compiled".to_owned()));
            let compiled = compiled.unwrap_or_else(|_| broken());
            drop(charge);
            running.fetch_sub(1, Ordering::AcqRel);
            // Nobody may be waiting any more.
            let _ = sender.send(compiled);
        };
        let spawned = std::thread::Builder::new().name("mach-grammar".into()).stack_size(STACK).spawn(work);
        if let Err(error) = spawned {
            self.running.fetch_sub(1, Ordering::AcqRel);
            return Err(GrammarError::Unavailable(error.to_string()));
        }
        let begun = Instant::now();
        loop {
            match receiver.recv_timeout(ASKED) {
                Ok(compiled) => return compiled,
                Err(_) if begun.elapsed() >= TIME => {
                    stop.stop();
                    return Err(GrammarError::TooSlow);
                }
                Err(_) if !goes_on() => {
                    stop.stop();
                    return Err(GrammarError::GivenUp);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(GrammarError::Refused("it cannot be compiled".to_owned()));
                }
            }
        }
    }
}

/// Tells a compilation to end.
#[derive(Debug, Default)]
struct Stop {
    told: AtomicBool,
    /// What ends the part of it that can be long.
    handle: Mutex<Option<CancellationHandle>>,
}

impl Stop {
    fn handle(&self) -> MutexGuard<'_, Option<CancellationHandle>> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        let handle = self.handle();
        self.told.store(true, Ordering::Release);
        handle.iter().for_each(CancellationHandle::cancel);
    }

    /// Has the matcher end too. An error if it is too late to begin.
    fn ends(&self, matcher: &Matcher) -> Result<(), GrammarError> {
        let mut handle = self.handle();
        *handle = matcher.cancellation_handle();
        if self.told.load(Ordering::Acquire) { Err(GrammarError::GivenUp) } else { Ok(()) }
    }
}

fn compiled(factory: &ParserFactory, grammar: TopLevelGrammar, stop: &Stop) -> Result<Grammar, GrammarError> {
    let mut matcher = Matcher::new(factory.create_parser(grammar)).into_cancellable();
    if let Some(error) = matcher.get_error() {
        return Err(GrammarError::Refused(reason(&error)));
    }
    stop.ends(&matcher)?;
    // A grammar that nothing meets shows here.
    match matcher.compute_mask_or_eos() {
        Ok(mask) if mask.is_zero() => Err(GrammarError::Refused("nothing can meet it".to_owned())),
        Ok(_) => Ok(Grammar::new(matcher)),
        Err(_) if matcher.is_cancelled() => Err(GrammarError::GivenUp),
        Err(error) => Err(GrammarError::Refused(reason(&error.to_string()))),
    }
}

fn top_level(text: &GrammarText) -> TopLevelGrammar {
    let own = text.own.as_ref().map(|own| {
        let lark = match own {
            OwnText::Lark(lark) => lark.clone(),
            OwnText::Regex(regex) => format!("start: /{}/", regex_to_lark(regex, "")),
        };
        GrammarWithLexer { name: Some("own".into()), ..GrammarWithLexer::from_lark(lark) }
    });
    let main = (!text.lark.is_empty()).then(|| GrammarWithLexer::from_lark(text.lark.clone()));
    TopLevelGrammar { grammars: main.into_iter().chain(own).collect(), max_tokens: None }
}

/// An error in one short line, without the excerpt of the grammar behind it.
pub(super) fn reason(error: &str) -> String {
    let error = error.trim_end().trim_end_matches("<non-verbose/>");
    if error.starts_with("NoExtension") {
        return "nothing can meet it".to_owned();
    }
    let excerpt =
        |line: &&str| line.split_once('|').is_some_and(|(number, _)| number.trim().parse::<u32>().is_ok());
    let words = error.lines().take_while(|line| !excerpt(line)).flat_map(str::split_whitespace);
    let line = words.collect::<Vec<_>>().join(" ");
    line.chars().take(LONGEST_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Guide;
    use super::*;
    use crate::SamplingParams;
    use crate::sampling::Sampler;

    fn compiler() -> GrammarCompiler {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tokenizer.json");
        let tokenizer = tokenizers::Tokenizer::from_file(path).unwrap();
        let vocab = tokenizer.get_vocab_size(true);
        GrammarCompiler::new(Arc::new(TextTokenizer::new(tokenizer, vocab).unwrap()), vocab, &[0])
    }

    fn text(lark: &str) -> GrammarText {
        GrammarText { lark: lark.into(), own: None }
    }

    #[test]
    fn what_is_given_up_is_charged_and_counted_until_it_ends() {
        let (compiler, charge) = (compiler(), Arc::new(()));
        let (told, tells) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let work = move |stop: &Stop| {
            while !stop.told.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = told.send(());
            let _ = released.recv();
            Err(GrammarError::GivenUp)
        };
        let begun = Instant::now();
        let given_up = compiler.aside(Arc::clone(&charge), &|| begun.elapsed().as_millis() < 50, work);
        assert_eq!(given_up.unwrap_err(), GrammarError::GivenUp);
        tells.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!((Arc::strong_count(&charge), compiler.running.load(Ordering::Acquire)), (2, 1));
        release.send(()).unwrap();
        while Arc::strong_count(&charge) > 1 || compiler.running.load(Ordering::Acquire) > 0 {
            assert!(begun.elapsed().as_secs() < 10, "it is never given back");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_charge_is_gone_when_the_grammar_is_there() {
        let (compiler, charge) = (compiler(), Arc::new(()));
        let grammar = compiler.compile_for(&text("start: /[a-z]+/"), Arc::clone(&charge), &|| true);
        assert!(grammar.is_ok());
        assert_eq!((Arc::strong_count(&charge), compiler.running.load(Ordering::Acquire)), (1, 0));
        assert!(compiler.compile_for(&text("start: nothing"), Arc::clone(&charge), &|| true).is_err());
        assert_eq!(Arc::strong_count(&charge), 1);
    }

    #[test]
    fn as_many_grammars_are_kept_as_may_be() {
        let kept = |compiler: &GrammarCompiler| {
            let kept = compiler.kept.lock().unwrap();
            kept.iter().map(|(text, _)| text.lark.clone()).collect::<Vec<_>>()
        };
        let texts: Vec<String> = (0..KEPT + 2).map(|i| format!("start: \"{}\"", "a".repeat(i + 1))).collect();
        let (many, few) = (compiler().within(1 << 30, 1), compiler().within(3 * 5 * KEEPING.0 / 2, 1));
        for lark in &texts {
            many.compile(&text(lark)).unwrap();
            few.compile(&text(lark)).unwrap();
        }
        assert_eq!(kept(&many), texts[2..]);
        assert_eq!(kept(&few), texts[KEPT..], "two fit");
        let none = compiler().within(3 << 20, 1);
        none.compile(&text(&texts[0])).unwrap();
        assert!(kept(&none).is_empty());
    }

    /// A grammar on its way, and the ids of single letters.
    fn follow(lark: &str) -> (Guide, impl Fn(&str) -> u32) {
        let compiler = compiler();
        let tokenizer = Arc::clone(&compiler.tokenizer);
        let id = move |letter: &str| tokenizer.encode(letter, false).unwrap()[0];
        (Guide::new(&compiler.compile(&text(lark)).unwrap()), id)
    }

    #[test]
    fn a_guide_tells_when_nothing_can_follow() {
        let (mut guide, id) = follow(r#"start: "a" ("b" | "c")"#);
        assert_eq!(guide.allowed(&[id("b")]), Ok(0));
        assert_eq!(guide.take(id("a")), Ok(false));
        assert_eq!((guide.allowed(&[id("b")]), guide.allowed(&[id("a")])), (Ok(1), Ok(0)));
        assert_eq!((guide.take(id("c")), guide.tokens), (Ok(true), 2));
    }

    #[test]
    fn tokens_are_chosen_as_if_the_grammar_had_been_asked_first() {
        let (mut guide, id) = follow("start: /[ab]/");
        let vocab = compiler().vocab;
        let mut logits = vec![f32::NEG_INFINITY; vocab];
        // The grammar forbids the best. With it, the third of the tokens is not among those that make up 70 %.
        for (letter, share) in [("x", 0.5_f32), ("a", 0.3), ("b", 0.2)] {
            logits[id(letter) as usize] = share.ln();
        }
        let mut masked = logits.clone();
        guide.mask(&mut masked).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for (seed, (top_p, top_k, temperature)) in (0..200)
            .flat_map(|seed| [(0.7, 0, 1.0), (1.0, 2, 1.0), (1.0, 0, 1.0), (0.7, 0, 0.0)].map(|p| (seed, p)))
        {
            let params = SamplingParams { temperature, top_p, top_k, seed, ..SamplingParams::greedy() };
            let mut sampler = Sampler::new(params.clone(), &[]);
            let chosen = sampler.sample_guided(&mut logits.clone(), 7, &mut guide).unwrap();
            let expected = Sampler::new(params, &[]).sample(&mut masked.clone(), 7).unwrap();
            assert_eq!(chosen, expected, "{top_p} {top_k} {seed}");
            seen.insert(chosen);
        }
        assert_eq!(seen.len(), 2, "both are chosen now and then");
    }

    #[test]
    fn a_compilation_that_is_told_to_end_does() {
        let (compiler, stop) = (compiler(), Stop::default());
        let factory = compiler.factory().unwrap();
        let compile = |stop: &Stop| compiled(&factory, top_level(&text("start: /[a-z]+/")), stop).map(drop);
        compile(&stop).unwrap();
        // The part that can be long hears of it as well.
        stop.stop();
        assert!(stop.handle().as_ref().is_some_and(CancellationHandle::is_cancelled));
        assert_eq!(compile(&stop), Err(GrammarError::GivenUp));
    }
}
