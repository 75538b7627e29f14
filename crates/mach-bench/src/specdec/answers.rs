//! Whole answers, with and without speculation, interleaved.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mach_api::ChatRequest;
use mach_api::chat::Limits;
use mach_engine::{CacheHints, Event, GenerateRequest, Preset, RequestStats};
use mach_server::ChatModel;
use mach_specdec::policy::{Blocks, GuardSpec, PolicySpec};
use serde::Serialize;
use serde_json::{Value, json};

use super::median;

/// Prompts by category, as chat requests. The first five categories are what the demo model was trained on, the last is not.
const PROMPTS: &str = include_str!("prompts.json");

/// What to run.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswersPlan {
    /// Block policies to compare with plain decoding.
    pub policies: Vec<Blocks>,
    /// Compare the preset `summarization` as well, under the first of the policies.
    pub copies: bool,
    /// Temperatures; 0 is greedy.
    pub temperatures: Vec<f64>,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Repeats of every prompt, interleaved with plain decoding.
    pub reps: usize,
    /// Seed of the samplers.
    pub seed: u64,
}

/// Answers to the prompts of one category.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answers {
    /// Temperature of all answers of this row; 0 is greedy.
    pub temperature: f64,
    /// Block policy, with `+copy` under the preset `summarization`.
    pub policy: String,
    /// Kind of prompt.
    pub category: String,
    /// Prompts of this kind.
    pub prompts: usize,
    /// Tokens of the answers, each counted once.
    pub tokens: usize,
    /// Tokens a second after the first, plain.
    pub plain_tokens_per_second: f64,
    /// The same with speculation.
    pub tokens_per_second: f64,
    /// Speed of decoding to plain.
    pub decode_ratio: f64,
    /// The same with the prompt's time counted as well.
    pub request_ratio: f64,
    /// Tokens that a pass of the target brought.
    pub tokens_per_pass: f64,
    /// Accepted of proposed tokens; absent if nothing was proposed.
    pub acceptance: Option<f64>,
}

/// A way to decode.
#[derive(Debug, Clone, Copy)]
struct Way {
    policy: Blocks,
    copies: bool,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.policy, if self.copies { "+copy" } else { "" })
    }
}

struct Run {
    text: String,
    prefill: f64,
    decode: f64,
    stats: RequestStats,
}

/// Runs every prompt plainly and with every policy, and compares texts and times.
///
/// # Errors
/// If an answer differs from that of plain decoding.
pub fn measure_answers(
    model: &ChatModel,
    plan: &AnswersPlan,
    tell: &mut dyn FnMut(&str),
) -> Result<Vec<Answers>> {
    let prompts: Vec<Value> = serde_json::from_str(PROMPTS)?;
    let mut ways: Vec<Way> = plan.policies.iter().map(|&policy| Way { policy, copies: false }).collect();
    ways.extend(plan.policies.first().filter(|_| plan.copies).map(|&policy| Way { policy, copies: true }));
    let mut all = Vec::new();
    for &temperature in &plan.temperatures {
        let mut tables: Vec<Vec<Tally>> = vec![Vec::new(); ways.len()];
        for (index, prompt) in prompts.iter().enumerate() {
            tell(&format!("temperature {temperature}, prompt {} of {}", index + 1, prompts.len()));
            let request = request(model, prompt, temperature, plan)?;
            let category = prompt["category"].as_str().unwrap_or_default();
            let measured = compare(model, &request, &ways, plan.reps)
                .with_context(|| format!("{category}: {}", prompt["messages"]))?;
            for (table, tally) in tables.iter_mut().zip(measured) {
                match table.last_mut().filter(|t| t.category == category) {
                    Some(last) => last.add(&tally),
                    None => table.push(Tally { category: category.into(), ..tally }),
                }
            }
        }
        for (way, table) in ways.iter().zip(tables) {
            all.extend(table.into_iter().map(|tally| tally.answers(temperature, way)));
        }
    }
    Ok(all)
}

fn request(
    model: &ChatModel,
    prompt: &Value,
    temperature: f64,
    plan: &AnswersPlan,
) -> Result<GenerateRequest> {
    let mut body = json!({
        "model": model.names.first(),
        "messages": prompt["messages"],
        "max_tokens": plan.max_tokens,
        "temperature": temperature,
        "seed": plan.seed,
    });
    if let (Some(body), Some(tools)) = (body.as_object_mut(), prompt.get("tools")) {
        body.insert("tools".into(), tools.clone());
    }
    let request = ChatRequest::parse(body.to_string().as_bytes(), &Limits::default())?;
    Ok(model.prepare(&request.into_turn())?.generate)
}

/// One prompt: medians of the repeats of plain decoding and of every policy.
fn compare(model: &ChatModel, request: &GenerateRequest, ways: &[Way], reps: usize) -> Result<Vec<Tally>> {
    let off = Blocks { policy: PolicySpec::Off, guard: GuardSpec::Off };
    let off = Way { policy: off, copies: false };
    let mut plain = Vec::new();
    let mut others: Vec<Vec<Run>> = ways.iter().map(|_| Vec::new()).collect();
    for _ in 0..reps {
        plain.push(run(model, request, &off)?);
        for (way, runs) in ways.iter().zip(&mut others) {
            runs.push(run(model, request, way)?);
        }
    }
    let time = |runs: &[Run], f: fn(&Run) -> f64| median(runs.iter().map(f).collect());
    let decode = |run: &Run| run.decode;
    let whole = |run: &Run| run.prefill + run.decode;
    let tally = |(way, runs): (&Way, &Vec<Run>)| {
        let (Some(first), Some(expected)) = (runs.first(), plain.first()) else { bail!("no repeats") };
        ensure!(
            runs.iter().all(|run| run.text == expected.text),
            "{way} changed the answer, which must not happen"
        );
        Ok(Tally {
            category: String::new(),
            prompts: 1,
            tokens: first.stats.completion_tokens,
            plain: [time(&plain, decode), time(&plain, whole)],
            spec: [time(runs, decode), time(runs, whole)],
            passes: runs.iter().map(|run| run.stats.cycles).sum(),
            drafted: runs.iter().map(|run| run.stats.drafted).sum(),
            accepted: runs.iter().map(|run| run.stats.accepted).sum(),
            decoded: runs.iter().map(|run| run.stats.completion_tokens.saturating_sub(1)).sum(),
        })
    };
    ways.iter().zip(&others).map(tally).collect()
}

fn run(model: &ChatModel, request: &GenerateRequest, way: &Way) -> Result<Run> {
    let before = model.engine.stats().finished;
    let request = GenerateRequest {
        policy: Some(way.policy),
        preset: if way.copies { Preset::Summarization } else { Preset::None },
        cache: CacheHints::default(),
        warm: false,
        ..request.clone()
    };
    let mut events = model.engine.submit(request)?;
    let (mut text, mut timings) = (String::new(), None);
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Text { text: more, .. } => text.push_str(&more),
            Event::Finished { timings: t, .. } => timings = Some(t),
            Event::Embedding(_) => {}
            Event::Failed(error) => bail!("{error}"),
        }
    }
    let timings = timings.context("the engine dropped a request")?;
    // The answer is out before its last pass is counted.
    for _ in 0..1000 {
        let stats = model.engine.stats();
        if let Some(stats) = stats.last.filter(|_| stats.finished > before) {
            let (prefill, decode) = (timings.prefill.as_secs_f64(), timings.decode.as_secs_f64());
            return Ok(Run { text, prefill, decode, stats });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("the engine did not count a request")
}

/// Sums over the prompts of a category.
#[derive(Debug, Clone, Default)]
struct Tally {
    category: String,
    prompts: usize,
    tokens: usize,
    /// Seconds of decoding, and of the whole request.
    plain: [f64; 2],
    spec: [f64; 2],
    passes: u64,
    drafted: u64,
    accepted: u64,
    decoded: usize,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.prompts += other.prompts;
        self.tokens += other.tokens;
        for i in 0..2 {
            self.plain[i] += other.plain[i];
            self.spec[i] += other.spec[i];
        }
        self.passes += other.passes;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.decoded += other.decoded;
    }

    fn answers(self, temperature: f64, way: &Way) -> Answers {
        // The first token of every answer comes with its prompt.
        let decoded = (self.tokens - self.prompts.min(self.tokens)) as f64;
        Answers {
            temperature,
            policy: way.to_string(),
            category: self.category,
            prompts: self.prompts,
            tokens: self.tokens,
            plain_tokens_per_second: decoded / self.plain[0].max(f64::MIN_POSITIVE),
            tokens_per_second: decoded / self.spec[0].max(f64::MIN_POSITIVE),
            decode_ratio: self.plain[0] / self.spec[0].max(f64::MIN_POSITIVE),
            request_ratio: self.plain[1] / self.spec[1].max(f64::MIN_POSITIVE),
            tokens_per_pass: self.decoded as f64 / self.passes.max(1) as f64,
            acceptance: (self.drafted > 0).then(|| self.accepted as f64 / self.drafted as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_requests_and_grouped_by_category() {
        let prompts: Vec<Value> = serde_json::from_str(PROMPTS).unwrap();
        let mut categories = Vec::new();
        for prompt in &prompts {
            let category = prompt["category"].as_str().unwrap();
            if categories.last() != Some(&category) {
                assert!(!categories.contains(&category), "{category} is split");
                categories.push(category);
            }
            let mut body = json!({"model": "m", "messages": prompt["messages"]});
            if let Some(tools) = prompt.get("tools") {
                body["tools"] = tools.clone();
            }
            ChatRequest::parse(body.to_string().as_bytes(), &Limits::default()).unwrap();
        }
        assert_eq!(categories, ["tool", "code", "copy", "json", "chat", "unseen code"]);
    }

    #[test]
    fn sums_become_rates() {
        let one = Tally {
            prompts: 1,
            tokens: 11,
            plain: [2.0, 3.0],
            spec: [1.0, 2.0],
            passes: 5,
            drafted: 10,
            accepted: 5,
            decoded: 10,
            ..Tally::default()
        };
        let mut two = one.clone();
        two.add(&one);
        let policy = Blocks { policy: PolicySpec::CostAware, guard: GuardSpec::CostAware };
        let answers = two.answers(0.0, &Way { policy, copies: true });
        assert_eq!(answers.policy, "cost-aware+copy");
        assert_eq!((answers.prompts, answers.tokens), (2, 22));
        assert_eq!((answers.plain_tokens_per_second, answers.tokens_per_second), (5.0, 10.0));
        assert_eq!((answers.decode_ratio, answers.request_ratio), (2.0, 1.5));
        assert_eq!((answers.tokens_per_pass, answers.acceptance), (2.0, Some(0.5)));
    }
}
