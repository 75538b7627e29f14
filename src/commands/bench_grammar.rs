//! `mach bench grammar`: what holding an answer to a grammar costs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use mach_api::ChatRequest;
use mach_api::chat::Limits;
use mach_engine::{EngineConfig, Event, GenerateRequest, RequestStats};
use mach_server::ChatModel;
use mach_specdec::policy::{Blocks, GuardSpec, PolicySpec};
use serde::Serialize;
use serde_json::{Value, json};

use crate::Exit;
use crate::args::ModelArgs;
use crate::bench::Machine;
use crate::loading::{Opened, Report};

/// Arguments of `mach bench grammar`.
#[derive(Debug, Clone, Args)]
pub(super) struct GrammarArgs {
    /// The model
    #[command(flatten)]
    model: ModelArgs,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..), value_name = "N")]
    max_tokens: u32,
    /// Answers of each kind; seeds count up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    reps: u32,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// One kind of answer.
#[derive(Debug, Clone, Serialize)]
struct Row {
    grammar: &'static str,
    sampling: &'static str,
    tokens: u64,
    /// Decoding, the grammar's part included.
    decode_us_per_token: f64,
    /// The grammar's part: masks, checks of single tokens, moving on.
    grammar_us_per_token: f64,
    share_of_decode: f64,
    /// From the request to one that is ready to run: template, tokens, grammar. The first and the second time.
    prepare_ms: [f64; 2],
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

/// Runs `mach bench grammar`.
pub(super) fn run(args: GrammarArgs) -> Result<()> {
    let plain = |exit: Exit| anyhow::anyhow!(exit.message);
    let opened = Opened::open(args.model.clone().validate().map_err(plain)?).map_err(plain)?;
    if !opened.can_chat() {
        bail!("this checkpoint has no chat template");
    }
    let (name, output) = (opened.default_name(), opened.output_format());
    let config = EngineConfig::default();
    let model = opened.load(config, vec![name], &Report { signals: false }, &mut |_| ()).map_err(plain)?;
    let model = model.with_output(output);
    let mut rows = Vec::new();
    for (grammar, fields) in kinds() {
        for (sampling, more) in samplings() {
            rows.push(measure(&model, &args, (grammar, &fields), (sampling, &more))?);
        }
    }
    if args.json {
        let report = json!({"mach": env!("CARGO_PKG_VERSION"), "machine": Machine::this(), "rows": rows});
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    print!("{}", Machine::this());
    println!(
        "grammar      sampling   tokens  decode us/token  grammar us/token   share  prepare ms (first, again)"
    );
    for row in rows {
        println!(
            "{:<12} {:<10} {:>6} {:>16.1} {:>17.1} {:>6.2}% {:>10.1} {:>8.1}",
            row.grammar,
            row.sampling,
            row.tokens,
            row.decode_us_per_token,
            row.grammar_us_per_token,
            100.0 * row.share_of_decode,
            row.prepare_ms[0],
            row.prepare_ms[1],
        );
    }
    Ok(())
}

fn measure(
    model: &ChatModel,
    args: &GrammarArgs,
    (grammar, fields): (&'static str, &Value),
    (sampling, more): (&'static str, &Value),
) -> Result<Row> {
    let mut prepare_ms = [0.0; 2];
    let (mut tokens, mut guided, mut decode, mut guide) = (0, 0, Duration::ZERO, Duration::ZERO);
    for seed in 0..args.reps {
        let mut body = json!({"model": model.names.first(), "max_tokens": args.max_tokens, "seed": seed,
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
    Ok(Row {
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
