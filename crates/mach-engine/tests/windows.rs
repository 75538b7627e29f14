//! A model whose layers forget what lies outside their window: what is proposed and taken back, what is restored from the
//! prefix cache, and who shares a pass change nothing.

use std::path::Path;
use std::sync::Arc;

use mach_checkpoint::Checkpoint;
use mach_cpu::load;
use mach_engine::{
    CacheHints, Engine, EngineConfig, Event, Events, GenerateRequest, Generator as _, OutputControl, Preset,
    SamplingParams, Speculation, TextTokenizer,
};
use mach_models::{ExpertMode, LoadOptions, StreamingOptions};
use mach_prefix::PrefixConfig;
use mach_specdec::policy::{GuardSpec, PolicySpec};
use mach_specdec::{Draft, DraftError, Drafting, Proposed, Proposer};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
const VOCAB: u32 = 320;
/// Answers begin in the first page of 256 positions and end in the second, in windows of 16.
const PROMPT: usize = 220;
const ANSWER: u32 = 90;

/// One with as many tokens as the model, of one or two letters.
fn tokenizer() -> tokenizers::Tokenizer {
    let letter = |i: u32| char::from(b'a' + (i % 26) as u8);
    let word =
        |i: u32| if i < 26 { letter(i).to_string() } else { format!("{}{}", letter(i / 26), letter(i)) };
    let vocab: Vec<String> = (0..VOCAB).map(|i| format!("\"{}\": {i}", word(i))).collect();
    let bytes =
        r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}"#;
    let json = format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {bytes}, "post_processor": null, "decoder": {bytes}, "model": {{"type": "BPE",
        "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "vocab": {{{}}}, "merges": []}}}}"#,
        vocab.join(", ")
    );
    tokenizers::Tokenizer::from_bytes(json.as_bytes()).unwrap()
}

const MODELS: [&str; 3] = ["gpt_oss/mlx-mxfp4-q4", "gemma4/mlx-4bit", DENSE];
const DENSE: &str = "mistral/mlx-4bit";

fn engine(path: &str, change: impl FnOnce(&mut EngineConfig, &mut LoadOptions)) -> Engine {
    let checkpoint = Checkpoint::open(format!("{ROOT}fixtures/{path}").as_ref()).unwrap();
    let tokenizer = Arc::new(TextTokenizer::new(tokenizer(), VOCAB as usize).unwrap());
    let mut options = LoadOptions { threads: 1, ..LoadOptions::default() };
    let mut config = EngineConfig::default();
    config.speculation.policy = PolicySpec::Off;
    change(&mut config, &mut options);
    let model = load(&checkpoint, &options, &mut |_| ()).unwrap();
    assert!(!model.can_be_drafted_for());
    Engine::start(model, tokenizer, config).unwrap()
}

fn prompt(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * (31 + seed) + i / 7 + seed) % VOCAB).collect()
}

fn request(prompt: Vec<u32>, seed: u64) -> GenerateRequest {
    // Every other one is greedy.
    let temperature = if seed.is_multiple_of(2) { 0.0 } else { 1.0 };
    GenerateRequest {
        prompt,
        choices: 1,
        max_tokens: Some(ANSWER),
        sampling: SamplingParams { temperature, seed, ..SamplingParams::greedy() },
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        logprobs: Some(1),
        preset: Preset::None,
        cache: CacheHints::default(),
        output: OutputControl::default(),
        warm: false,
        policy: None,
    }
}

/// Ids and bits of their log probabilities, and the tokens that were not computed.
type Answer = (Vec<(u32, u32)>, usize);

fn collect(mut events: Events) -> Answer {
    let (mut tokens, mut known) = (Vec::new(), 0);
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Text { logprobs, .. } => {
                tokens.extend(logprobs.iter().map(|token| (token.id, token.logprob.to_bits())));
            }
            Event::Finished { cached, .. } => known = cached,
            Event::Embedding(_) => {}
            Event::Failed(error) => panic!("{error}"),
        }
    }
    (tokens, known)
}

fn answer(engine: &Engine, request: &GenerateRequest) -> Answer {
    collect(engine.submit(request.clone()).unwrap())
}

/// Knows the answer and says some of it wrong: blocks are taken back at every length.
#[derive(Debug, Clone)]
struct Known(Vec<u32>);

impl Draft for Known {
    fn block_size(&self) -> usize {
        16
    }
    fn taps(&self) -> &[usize] {
        &[]
    }
    fn proposer(self: Arc<Self>) -> Box<dyn Proposer> {
        Box::new((*self).clone())
    }
}

impl Proposer for Known {
    fn name(&self) -> &'static str {
        "known"
    }
    fn propose(&mut self, drafting: Drafting<'_>, out: &mut Proposed) -> Result<(), DraftError> {
        let at = drafting.tokens.len();
        let end = (at + drafting.most).min(self.0.len());
        out.tokens.extend(self.0.get(at..end).unwrap_or_default());
        if let Some(token) = out.tokens.get_mut(at % 11) {
            *token = (*token + 1) % VOCAB;
        }
        Ok(())
    }
}

#[test]
fn proposals_that_are_taken_back_change_nothing() {
    MODELS.into_iter().for_each(taken_back);
}

fn taken_back(path: &str) {
    let plain = engine(path, |_, _| ());
    let repeated: Vec<u32> = (0..PROMPT as u32).map(|i| i % 20 + 40).collect();
    let labels = Preset::Classification(vec![vec![5, 6, 7], vec![5, 9]]);
    for (seed, prompt) in [(2, prompt(1, PROMPT)), (3, repeated)] {
        let asked = request(prompt.clone(), seed);
        let (expected, _) = answer(&plain, &asked);
        assert_eq!(expected.len(), ANSWER as usize);
        let known = [prompt, expected.iter().map(|(id, _)| *id).collect()].concat();
        for (draft, preset) in [
            (Some(Known(known.clone())), Preset::None),
            (None, Preset::Summarization),
            (None, labels.clone()),
        ] {
            let name = draft.as_ref().map(|_| "known");
            let engine = engine(path, |c, _| {
                let draft = draft.map(|known| Arc::new(known) as Arc<dyn Draft>);
                c.speculation = Speculation { draft, policy: PolicySpec::Fixed(16), guard: GuardSpec::Off };
            });
            let (got, _) = answer(&engine, &GenerateRequest { preset: preset.clone(), ..asked.clone() });
            assert!(got == expected, "{path} {name:?} {preset:?} {seed}");
            let stats = engine.stats().specdec;
            if name.is_some() {
                assert!(stats.specdec_accepted > 30 && stats.specdec_accepted < stats.specdec_drafted);
            }
        }
    }
}

#[test]
fn the_prefix_cache_restores_at_every_snapshot() {
    MODELS.into_iter().for_each(restored);
}

fn restored(path: &str) {
    let plain = engine(path, |_, _| ());
    let dir = tempfile::tempdir().unwrap();
    let with = |directory: Option<&Path>| {
        let directory = directory.map(Path::to_owned);
        engine(path, |c, _| {
            c.prefill_chunk = 100;
            c.prefix = Some(PrefixConfig { block: 16, stride: 64, directory, ..PrefixConfig::default() });
        })
    };
    let long = prompt(7, 700);
    // The same beginning up to here, then other tokens.
    let edited = |at: usize| [&long[..at], &prompt(9, 40)].concat();
    let mut requests = vec![request(long.clone(), 2)];
    requests.extend([650, 600, 512, 300, 130, 80].map(|at| request(edited(at), at as u64 + 1)));
    let expected: Vec<_> = requests.iter().map(|r| answer(&plain, r).0).collect();
    // The turn that follows an answer begins with it.
    let said: Vec<u32> = expected[0].iter().map(|(id, _)| *id).collect();
    let turn = request([&long[..], &said, &[9, 8, 7]].concat(), 4);
    let after = answer(&plain, &turn).0;

    let cached = with(Some(dir.path()));
    let check = |engine: &Engine, least: [usize; 7], when: &str| {
        for ((r, expected), least) in requests.iter().zip(&expected).zip(least) {
            let (got, known) = answer(engine, r);
            assert!(got == *expected, "{path} {when}: {} tokens, {known} known", r.prompt.len());
            assert!(known >= least, "{path} {when}: {} tokens, {known} known", r.prompt.len());
        }
        let (got, known) = answer(engine, &turn);
        assert!(got == after && known >= 700, "{when}: {known}");
    };
    // Windows cannot be cut anywhere: what is known is known at the snapshots on the way.
    check(&cached, [0, 640, 576, 512, 256, 128, 64], "cold");
    check(&cached, [700, 640, 576, 512, 256, 128, 64], "warm");
    cached.close();
    cached.join();
    // From disk are what was saved: ends of prompts and answers.
    let again = with(Some(dir.path()));
    check(&again, [700, 600, 500, 0, 0, 0, 0].map(|n: usize| n.min(700)), "from disk");
    assert!(again.prefix().unwrap().stats().l2_hits > 0);
}

#[test]
fn those_who_share_a_pass_change_nothing() {
    MODELS.into_iter().for_each(shared);
}

fn shared(path: &str) {
    let alone = engine(path, |_, _| ());
    let requests: Vec<_> =
        [(1, 300), (2, 5), (3, 250), (4, 17)].map(|(s, n)| request(prompt(s, n), s.into())).into();
    let expected: Vec<_> = requests.iter().map(|r| answer(&alone, r).0).collect();
    for streamed in [false, true] {
        if streamed && path == DENSE {
            continue;
        }
        let engine = engine(path, |c, o| {
            (c.prefill_chunk, c.prefill_interleave) = (64, 48);
            if streamed {
                let source = mach_models::StreamingSource::Diagnostic;
                let streaming =
                    StreamingOptions { source, bank_slots: 12, arena_slots: 4, ..Default::default() };
                o.experts = ExpertMode::Streaming(streaming);
            }
        });
        let events: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        let got: Vec<_> = events.into_iter().map(|events| collect(events).0).collect();
        assert!(got == expected, "{path} streamed: {streamed}");
        assert!(engine.stats().batched_passes > 20, "{:?}", engine.stats());
    }
}
