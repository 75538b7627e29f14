//! What holding an answer to a grammar costs beside decoding it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mach_api::ChatRequest;
use mach_api::chat::Limits;
use mach_engine::{Event, GenerateRequest, RequestStats};
use mach_server::ChatModel;
use mach_specdec::policy::{Blocks, GuardSpec, PolicySpec};
use serde::Serialize;
use serde_json::{Value, json};

/// What to ask for.
#[derive(Debug, Clone, Copy)]
pub struct GrammarPlan {
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Answers of each kind; seeds count up.
    pub reps: u32,
}

/// One kind of answer.
#[derive(Debug, Clone, Serialize)]
pub struct GrammarRow {
    /// What the answers are held to.
    pub grammar: &'static str,
    /// How tokens are chosen.
    pub sampling: &'static str,
    /// Tokens of all answers.
    pub tokens: u64,
    /// Decoding, the grammar's part included.
    pub decode_us_per_token: f64,
    /// The grammar's part: masks, checks of single tokens, moving on.
    pub grammar_us_per_token: f64,
    /// The second to the first.
    pub share_of_decode: f64,
    /// From the request to one that is ready to run: template, tokens, grammar. The first and the second time.
    pub prepare_ms: [f64; 2],
}

fn kinds() -> [(&'static str, Value); 4] {
    let person = json!({"type": "object", "additionalProperties": false, "required": ["name", "age", "address", "tags"],
        "properties": {
            "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "address": {"type": "object", "additionalProperties": false, "required": ["street", "city"],
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}}},
            "tags": {"type": "array", "items": {"type": "string"}}}});
    let tool = json!({"type": "function", "function": {"name": "save", "strict": true, "parameters": {"type": "object",
        "required": ["path", "text"], "properties": {"path": {"type": "string"}, "text": {"type": "string"}}}}});
    [
        ("json_object", json!({"response_format": {"type": "json_object"}})),
        (
            "json_schema",
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": person}}}),
        ),
        ("tool call", json!({"tools": [tool], "tool_choice": "required"})),
        ("regex", json!({"grammar": {"syntax": "regex", "definition": "([A-Z][a-z]{2,9} ){3,40}"}})),
    ]
}

/// Greedy and without candidate rules, only tokens that turn out not to be allowed cost a mask; with rules every one does.
fn samplings() -> [(&'static str, Value); 2] {
    [
        ("greedy", json!({"temperature": 0})),
        ("top_p 0.9", json!({"temperature": 1, "top_p": 0.9, "top_k": 0})),
    ]
}

/// Every kind of grammar under every kind of sampling.
pub fn measure_grammars(model: &ChatModel, plan: GrammarPlan) -> Result<Vec<GrammarRow>> {
    let mut rows = Vec::new();
    for (grammar, fields) in kinds() {
        for (sampling, more) in samplings() {
            rows.push(measure(model, plan, (grammar, &fields), (sampling, &more))?);
        }
    }
    Ok(rows)
}

fn measure(
    model: &ChatModel,
    plan: GrammarPlan,
    (grammar, fields): (&'static str, &Value),
    (sampling, more): (&'static str, &Value),
) -> Result<GrammarRow> {
    let mut prepare_ms = [0.0; 2];
    let (mut tokens, mut guided, mut decode, mut guide) = (0, 0, Duration::ZERO, Duration::ZERO);
    for seed in 0..plan.reps {
        let mut body = json!({"model": model.names.first(), "max_tokens": plan.max_tokens, "seed": seed,
            "messages": [{"role": "user", "content": "Tell me about Ada, who is 36 and lives in London."}]});
        for part in [fields, more] {
            if let (Some(body), Some(part)) = (body.as_object_mut(), part.as_object()) {
                body.extend(part.clone());
            }
        }
        let started = Instant::now();
        let request = ChatRequest::parse(body.to_string().as_bytes(), &Limits::default())?;
        let generate = model.prepare(&request.into_turn())?.generate;
        if let Some(slot) = prepare_ms.get_mut(seed as usize) {
            *slot = started.elapsed().as_secs_f64() * 1e3;
        }
        let off = Blocks { policy: PolicySpec::Off, guard: GuardSpec::Off };
        let stats = answer(model, GenerateRequest { policy: Some(off), ..generate })?;
        tokens += stats.completion_tokens as u64;
        guided += stats.guided_tokens;
        decode += stats.decode_time;
        guide += stats.guide_time;
    }
    let each = |time: Duration, tokens: u64| time.as_secs_f64() * 1e6 / tokens.max(1) as f64;
    let (decode, guide) = (each(decode, tokens), each(guide, guided));
    let share_of_decode = guide / decode;
    Ok(GrammarRow {
        grammar,
        sampling,
        tokens,
        decode_us_per_token: decode,
        grammar_us_per_token: guide,
        share_of_decode,
        prepare_ms,
    })
}

fn answer(model: &ChatModel, request: GenerateRequest) -> Result<RequestStats> {
    let before = model.engine.stats().finished;
    let mut events = model.engine.submit(request)?;
    while let Some(event) = events.blocking_recv() {
        if let Event::Failed(error) = event {
            bail!("{error}");
        }
    }
    // The answer is out before it is counted.
    for _ in 0..1000 {
        let stats = model.engine.stats();
        if stats.finished > before {
            return stats.last.context("nothing was counted");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("the engine did not count a request")
}
