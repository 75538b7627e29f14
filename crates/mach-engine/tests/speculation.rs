//! Whatever is proposed, the answer is that of plain decoding.

mod double;

use std::sync::Arc;

use double::Double;
use mach_checkpoint::Checkpoint;
use mach_cpu::load;
use mach_engine::{
    CacheHints, Engine, EngineConfig, Event, FinishReason, GenerateRequest, Generator as _, OutputControl,
    Preset, SamplingParams, Speculation, TextTokenizer, TokenLogprob,
};
use mach_models::{Bits, ExpertMode, LoadOptions, StreamingOptions};
use mach_prefix::PrefixConfig;
use mach_specdec::policy::{GuardSpec, PolicySpec, RhoGate};
use mach_specdec::{Draft, DraftError, DraftOptions, Drafting, MtpDraft, Proposed, Proposer};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
const VOCAB: usize = 16384;

fn tokenizer() -> Arc<TextTokenizer> {
    let tokenizer = tokenizers::Tokenizer::from_file(format!("{ROOT}demo/tokenizer.json")).unwrap();
    Arc::new(TextTokenizer::new(tokenizer, VOCAB).unwrap())
}

fn request(prompt: &[u32], max_tokens: u32, sampling: SamplingParams) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.to_vec(),
        choices: 1,
        max_tokens: Some(max_tokens),
        sampling,
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        logprobs: None,
        preset: Preset::None,
        cache: CacheHints::default(),
        warm: false,
        output: OutputControl::default(),
        policy: None,
    }
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Answer {
    text: String,
    logprobs: Vec<TokenLogprob>,
    finish: Option<(FinishReason, usize)>,
}

fn answers(engine: &Engine, request: &GenerateRequest) -> Vec<Answer> {
    answers_and_drafted(engine, request).0
}

/// How many tokens were proposed is told apart: it is no part of the answer.
fn answers_and_drafted(engine: &Engine, request: &GenerateRequest) -> (Vec<Answer>, u64) {
    let mut drafted = 0;
    let mut events = engine.submit(request.clone()).unwrap();
    let mut answers = vec![Answer::default(); request.choices as usize];
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Text { choice, text, mut logprobs } => {
                for token in &mut logprobs {
                    drafted += u64::from(std::mem::take(&mut token.drafted));
                }
                answers[choice as usize].text.push_str(&text);
                answers[choice as usize].logprobs.extend(logprobs);
            }
            Event::Finished { choice, reason, tokens, .. } => {
                answers[choice as usize].finish = Some((reason, tokens));
            }
            Event::Embedding(_) => {}
            Event::Failed(error) => panic!("{error}"),
        }
    }
    (answers, drafted)
}

/// With the demo's draft as it is stored, or in fewer bits.
fn demo(experts: ExpertMode, draft: Option<DraftOptions>, policy: PolicySpec) -> Engine {
    let checkpoint = Checkpoint::open(format!("{ROOT}demo").as_ref()).unwrap();
    let options = LoadOptions { threads: 1, experts, ..LoadOptions::default() };
    let mut model = load(&checkpoint, &options, &mut |_| ()).unwrap();
    let dir = format!("{ROOT}demo/draft");
    let draft =
        draft.map(|options| Arc::new(model.load_draft(dir.as_ref(), options).unwrap()) as Arc<dyn Draft>);
    let config = EngineConfig {
        speculation: Speculation { draft, policy, guard: GuardSpec::Off },
        prefill_chunk: 13,
        ..EngineConfig::default()
    };
    Engine::start(model, tokenizer(), config).unwrap()
}

/// Requests that reach every way for an answer to end, in the middle of accepted blocks too.
fn requests() -> Vec<GenerateRequest> {
    let chat = "<|im_start|>user\nWrite a binary search in Python<|im_end|>\n<|im_start|>assistant\n";
    let prompt = tokenizer().encode(chat, false).unwrap();
    let warm = SamplingParams { temperature: 0.7, top_p: 0.95, seed: 3, ..SamplingParams::greedy() };
    let hot = SamplingParams {
        temperature: 1.0,
        repetition_penalty: 1.1,
        frequency_penalty: 0.2,
        seed: 5,
        ..SamplingParams::greedy()
    };
    let mut all = Vec::new();
    for sampling in [SamplingParams::greedy(), warm, hot] {
        let plain = request(&prompt, 60, sampling);
        all.push(plain.clone());
        for max_tokens in [1, 2, 7] {
            all.push(GenerateRequest { max_tokens: Some(max_tokens), ..plain.clone() });
        }
        all.push(GenerateRequest { logprobs: Some(3), max_tokens: Some(20), ..plain.clone() });
        all.push(GenerateRequest { stop: vec!["return".into(), "low".into()], ..plain.clone() });
        all.push(GenerateRequest { choices: 2, max_tokens: Some(12), ..plain.clone() });
        all.push(GenerateRequest { preset: Preset::Summarization, ..plain.clone() });
        let labels = ["def binary", "def other"].map(|l| tokenizer().encode(l, false).unwrap());
        let preset = Preset::Classification(labels.to_vec());
        all.push(GenerateRequest { preset, max_tokens: Some(10), ..plain });
    }
    all
}

#[test]
fn policies_presets_and_drafts_change_nothing() {
    let mut requests = requests();
    let plain = demo(ExpertMode::Resident, None, PolicySpec::Off);
    // A stop token in the middle of what would be said, and of blocks.
    for told in requests.clone().iter().filter(|r| r.logprobs.is_some()) {
        let said = answers(&plain, told).remove(0).logprobs;
        requests.push(GenerateRequest { stop_token_ids: vec![said[11].id], ..told.clone() });
    }
    let expected: Vec<_> = requests.iter().map(|r| answers(&plain, r)).collect();
    let stopped = |(r, a): (&GenerateRequest, &Vec<Answer>)| {
        !r.stop_token_ids.is_empty() && a[0].finish.is_some_and(|f| f.0 == FinishReason::Stop && f.1 <= 12)
    };
    assert_eq!(requests.iter().zip(&expected).filter(|&pair| stopped(pair)).count(), 3);
    assert_eq!(plain.stats().specdec.specdec_drafted, 0);
    assert!(expected.iter().any(|a| a[0].finish.is_some_and(|f| f.0 == FinishReason::Stop)));
    for (draft, policy, slots) in [
        (None, "cost-aware", None),
        (Some(None), "fixed-16", None),
        (Some(None), "fixed-2", None),
        (Some(Some(Bits::B4)), "opencode-sampled-v1", None),
        (Some(Some(Bits::B8)), "cost-aware", None),
        (Some(None), "off", None),
        // A quarter of the experts, one token's, none.
        (Some(Some(Bits::B8)), "fixed-16", Some(64)),
        (Some(Some(Bits::B8)), "cost-aware", Some(32)),
        (Some(Some(Bits::B4)), "opencode-sampled-v1", Some(0)),
    ] {
        let experts = slots.map_or(ExpertMode::Resident, |bank_slots| {
            ExpertMode::Streaming(StreamingOptions { bank_slots, ..StreamingOptions::default() })
        });
        let engine =
            demo(experts, draft.map(|quantize_bits| DraftOptions { quantize_bits }), policy.parse().unwrap());
        for (request, expected) in requests.iter().zip(&expected) {
            assert_eq!(
                answers(&engine, request),
                *expected,
                "{policy}, {slots:?}, draft {draft:?}: {request:?}"
            );
        }
        let stats = engine.stats();
        let accepted = stats.specdec.proposers.get("dflash").map_or(0, |p| p.accepted);
        let wanted = draft.is_some() && policy != "off";
        assert_eq!(accepted > 0, wanted, "{policy}, draft {draft:?}: {stats:?}");
        assert_eq!(stats.finished, requests.iter().map(|r| u64::from(r.choices)).sum::<u64>());
    }
}

/// A model with a block of its own, or with the head for deepseek_v4 (`eagle3`), which drafts unless the policy is `off`.
fn with_block(fixture: &str, policy: &str, prefix: Option<PrefixConfig>) -> Engine {
    let family = if fixture == "eagle3" { "deepseek_v4" } else { fixture };
    let checkpoint = Checkpoint::open(format!("{ROOT}fixtures/{family}/bf16").as_ref()).unwrap();
    let options = LoadOptions { threads: 1, ..LoadOptions::default() };
    let mut model = load(&checkpoint, &options, &mut |_| ()).unwrap();
    let block = (policy != "off").then(|| {
        let options = DraftOptions { quantize_bits: Some(Bits::B8) };
        let block = match fixture {
            "eagle3" => model.load_eagle(format!("{ROOT}fixtures/eagle3/deepseek_v4").as_ref(), options),
            _ => model.load_mtp(&checkpoint, options),
        };
        let block = Arc::new(block.unwrap());
        let gate = (family == "deepseek_v4").then(|| Arc::new(RhoGate::new(0.0)));
        Arc::new(MtpDraft::new(block, gate)) as Arc<dyn Draft>
    });
    let config = EngineConfig {
        speculation: Speculation { draft: block, policy: policy.parse().unwrap(), guard: GuardSpec::Off },
        prefill_chunk: 40,
        prefix,
        ..EngineConfig::default()
    };
    Engine::start(model, tokenizer(), config).unwrap()
}

/// Short and long prompts, greedy and sampled, alone and in batches, cut short and stopped in blocks.
fn requests_of_a_tiny_model() -> Vec<GenerateRequest> {
    let prompt: Vec<u32> = (0..150).map(|i| i * 37 % 251).collect();
    let warm = SamplingParams { temperature: 0.9, seed: 3, ..SamplingParams::greedy() };
    let mut requests = Vec::new();
    for sampling in [SamplingParams::greedy(), warm] {
        for len in [1, 20, 150] {
            let one = GenerateRequest { logprobs: Some(2), ..request(&prompt[..len], 40, sampling.clone()) };
            requests.push(one.clone());
            requests.push(GenerateRequest { max_tokens: Some(6), ..one.clone() });
            requests.push(GenerateRequest { choices: 2, ..one });
        }
    }
    requests
}

/// The block that a model has of its own proposes, and changes nothing either: one token or a chain, alone, with others,
/// and where a prefix comes from the cache in memory.
#[test]
fn a_models_own_block_changes_nothing() {
    for fixture in ["deepseek_v4", "qwen3_5_moe", "eagle3"] {
        let mut requests = requests_of_a_tiny_model();
        let plain = with_block(fixture, "off", None);
        for told in requests.clone().iter().filter(|r| r.choices == 1 && r.max_tokens == Some(40)) {
            let said = answers(&plain, told).remove(0).logprobs;
            requests.push(GenerateRequest { stop_token_ids: vec![said[9].id], ..told.clone() });
        }
        let expected: Vec<_> = requests.iter().map(|r| answers(&plain, r)).collect();
        for (policy, in_memory) in
            [("fixed-2", false), ("fixed-16", false), ("fixed-5", true), ("opencode-sampled-v1", true)]
        {
            let settings = PrefixConfig { directory: None, max_bytes: 1 << 26, ..PrefixConfig::default() };
            let own = with_block(fixture, policy, in_memory.then_some(settings));
            for round in 0..2 {
                for (request, expected) in requests.iter().zip(&expected) {
                    let got = answers(&own, request);
                    assert_eq!(got, *expected, "{fixture}, {policy}, round {round}: {request:?}");
                }
            }
            let stats = own.stats();
            // Its weights are random: few of its proposals are right.
            let name = if fixture == "eagle3" { "eagle3" } else { "mtp" };
            let counts = stats.specdec.proposers.get(name).copied().unwrap_or_default();
            assert!(counts.drafted > 400 && counts.accepted > 0, "{fixture}, {policy}: {stats:?}");
            // Chains are as long as the policy says, up to what the block gives.
            let longest = match policy {
                "fixed-2" => 1,
                "fixed-5" => 4,
                _ => 7,
            };
            assert_eq!(stats.specdec.positions.len(), longest, "{fixture}, {policy}: {stats:?}");
            if let Some(cache) = own.prefix() {
                assert!(cache.stats().hits > 0, "{:?}", cache.stats());
            }
        }
    }
}

/// A prefix that was saved by one process and is restored by the next gives the same answer, and is drafted behind.
#[test]
fn a_block_drafts_behind_a_prefix_from_the_disk() {
    for fixture in ["deepseek_v4", "qwen3_5_moe", "eagle3"] {
        let requests: Vec<_> =
            requests_of_a_tiny_model().into_iter().filter(|r| r.prompt.len() == 150).collect();
        let plain = with_block(fixture, "off", None);
        let expected: Vec<_> = requests.iter().map(|r| answers(&plain, r)).collect();
        let dir = tempfile::tempdir().unwrap();
        let settings = || {
            let directory = Some(dir.path().to_owned());
            Some(PrefixConfig { directory, block: 16, max_bytes: 1 << 26, ..PrefixConfig::default() })
        };
        let first = with_block(fixture, "fixed-4", settings());
        for (request, expected) in requests.iter().zip(&expected) {
            assert_eq!(answers(&first, request), *expected, "{fixture}: {request:?}");
        }
        drop(first);
        let second = with_block(fixture, "fixed-4", settings());
        for (request, expected) in requests.iter().zip(&expected) {
            assert_eq!(answers(&second, request), *expected, "{fixture}, restored: {request:?}");
        }
        let cache = second.prefix().unwrap().stats();
        assert!(cache.l2_hits > 0, "{cache:?}");
        let name = if fixture == "eagle3" { "eagle3" } else { "mtp" };
        let counts = second.stats().specdec.proposers.get(name).copied().unwrap_or_default();
        assert!(counts.drafted > 100, "{fixture}: {counts:?}");
    }
}

#[derive(Debug, Clone)]
enum Kind {
    Wrong,
    Right(Vec<u32>),
    Random,
    OutOfRange,
    TooMany,
    Failing,
    Mixed(Vec<u32>),
}

/// A draft that means ill, except for the one that knows the answer.
#[derive(Debug)]
struct Adversary(Kind);

impl Draft for Adversary {
    fn block_size(&self) -> usize {
        16
    }

    fn taps(&self) -> &[usize] {
        &[]
    }

    fn proposer(self: Arc<Self>) -> Box<dyn Proposer> {
        Box::new(Adversary(self.0.clone()))
    }
}

impl Proposer for Adversary {
    fn name(&self) -> &'static str {
        "adversary"
    }

    fn propose(&mut self, drafting: Drafting<'_>, out: &mut Proposed) -> Result<(), DraftError> {
        let len = drafting.tokens.len();
        let known =
            |all: &[u32]| all.get(len..(len + drafting.most).min(all.len())).unwrap_or_default().to_vec();
        match &self.0 {
            Kind::Wrong => out.tokens.extend([0; 5]),
            Kind::Right(all) => out.tokens.extend(known(all)),
            Kind::Random => {
                out.tokens.extend((0..9).map(|i| (len * 7919 + i * 104_729) as u32 % VOCAB as u32));
            }
            Kind::OutOfRange => out.tokens.extend([u32::MAX, VOCAB as u32, 3]),
            Kind::TooMany => out.tokens.extend(vec![1; 5000]),
            Kind::Failing => return Err(DraftError::NotFinite),
            Kind::Mixed(all) => {
                out.tokens.extend(known(all));
                let at = len % (out.tokens.len() + 1);
                out.tokens.truncate(at);
                out.tokens.extend([u32::MAX; 4].iter().chain(&[5]).skip(len % 5));
            }
        }
        Ok(())
    }
}

#[test]
fn adversaries_change_nothing() {
    let run = |draft: Option<Kind>, sampling: &SamplingParams| {
        let draft = draft.map(|kind| Arc::new(Adversary(kind)) as Arc<dyn Draft>);
        let speculation = Speculation { draft, policy: PolicySpec::Fixed(16), guard: GuardSpec::Off };
        let config = EngineConfig { speculation, ..EngineConfig::default() };
        let engine = Engine::start(Box::new(Double::new(VOCAB, 2000)), tokenizer(), config).unwrap();
        let mut request = request(&[5, 6, 7], 50, sampling.clone());
        request.logprobs = Some(1);
        let (mut answers, drafted) = answers_and_drafted(&engine, &request);
        let stats = engine.stats();
        assert_eq!(drafted, stats.specdec.specdec_accepted, "the tokens that were accepted say so");
        (answers.remove(0), stats)
    };
    let sampled = SamplingParams { temperature: 1.0, seed: 11, ..SamplingParams::greedy() };
    for sampling in [SamplingParams::greedy(), sampled] {
        let (expected, stats) = run(None, &sampling);
        assert_eq!(stats.decode_tokens, 49);
        let answer: Vec<u32> = [5, 6, 7].into_iter().chain(expected.logprobs.iter().map(|l| l.id)).collect();
        for kind in [
            Kind::Wrong,
            Kind::Right(answer.clone()),
            Kind::Random,
            Kind::OutOfRange,
            Kind::TooMany,
            Kind::Failing,
            Kind::Mixed(answer),
        ] {
            let (got, stats) = run(Some(kind.clone()), &sampling);
            assert_eq!(got, expected, "{kind:?}");
            assert_eq!(stats.decode_tokens, 49);
            let (drafted, accepted) = (stats.specdec.specdec_drafted, stats.specdec.specdec_accepted);
            match kind {
                Kind::Right(_) => assert_eq!((accepted, stats.specdec.cycles), (drafted, 4)),
                Kind::OutOfRange | Kind::Failing => assert_eq!((drafted, stats.specdec.cycles), (0, 49)),
                Kind::Wrong | Kind::Random | Kind::TooMany => assert!(drafted > 45, "{kind:?}: {stats:?}"),
                Kind::Mixed(_) => assert!(accepted > 0 && accepted < drafted, "{stats:?}"),
            }
        }
    }
}
