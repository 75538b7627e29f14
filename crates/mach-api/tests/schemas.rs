//! Schemas of every kind, in every family's format: whatever the grammar allows meets its schema, as another library reads it.

use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv};
use llguidance::{Matcher, ParserFactory};
use mach_api::chat::{ResponseFormat, ToolChoice};
use mach_api::output::grammar::{GrammarSource, Wanted, grammar};
use mach_api::output::{OutputFormat, Part, ReasoningStart, ToolFormat, ToolSchemas};
use serde_json::{Value, json};

const FORMATS: [ToolFormat; 5] =
    [ToolFormat::QwenXml, ToolFormat::Hermes, ToolFormat::Dsml, ToolFormat::Gemma4, ToolFormat::Harmony];
/// Texts of one grammar.
const TEXTS: u64 = 4;
/// Letters after which a text ends as soon as it can.
const LONG: usize = 160;
/// Letters after which it is given up.
const LONGEST: usize = 6_000;

/// Enough of a grammar to see what is wrong.
fn clip(text: &str) -> String {
    text.chars().take(1500).collect()
}

/// What ends a text that stands as it is.
const ENDS: [&str; 3] = ["\n</parameter>\n", "</｜DSML｜parameter>\n", "<|\"|>"];

struct Walker {
    factory: ParserFactory,
}

impl Walker {
    fn new() -> Self {
        let env: TokEnv = ApproximateTokEnv::single_byte_env();
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices).unwrap();
        factory.quiet();
        Self { factory }
    }

    fn matcher(&self, source: &GrammarSource) -> Result<Matcher, String> {
        let lark = GrammarWithLexer::from_lark(source.lark.clone());
        let top = TopLevelGrammar { grammars: vec![lark], max_tokens: None };
        let matcher = Matcher::new(self.factory.create_parser(top));
        match matcher.get_error() {
            Some(error) => Err(clip(&error)),
            None => Ok(matcher),
        }
    }

    /// A text that the grammar allows, chosen by chance; `None` if it does not come to an end.
    fn text(&self, start: &Matcher, seed: u64) -> Option<String> {
        let mut matcher = start.deep_clone();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut out = Vec::new();
        loop {
            if matcher.is_stopped() {
                return Some(String::from_utf8(out).unwrap());
            }
            let said = String::from_utf8_lossy(&out).into_owned();
            let mask = matcher.compute_mask().unwrap_or_else(|e| panic!("{e}: {said}"));
            let allowed: Vec<u32> = (0..256).filter(|&byte| mask.is_allowed(byte)).collect();
            if allowed.is_empty() {
                assert!(matcher.is_accepting().unwrap(), "nothing may follow {said:?}");
                return Some(said);
            }
            let long = out.len() > LONG;
            if matcher.is_accepting().unwrap() && (long || random() % 4 == 0) {
                return Some(said);
            }
            if long || random() % 16 == 0 {
                let whole = |end: &&&str| {
                    let bytes: Vec<u32> = end.bytes().map(u32::from).collect();
                    matcher.clone().validate_tokens(&bytes).is_ok_and(|count| count == bytes.len())
                };
                if let Some(end) = ENDS.iter().find(whole) {
                    end.bytes().for_each(|byte| matcher.consume_token(byte.into()).unwrap());
                    out.extend(end.bytes());
                    continue;
                }
            }
            // Letters that are likely to lead on.
            let closing: Vec<u32> =
                allowed.iter().copied().filter(|&b| b"\"}],:\n</".contains(&(b as u8))).collect();
            let plain: Vec<u32> = allowed.iter().copied().filter(|b| (32..127).contains(b)).collect();
            let from = match random() % 8 {
                _ if long && !closing.is_empty() => &closing,
                0..3 if !closing.is_empty() => &closing,
                3..7 if !plain.is_empty() => &plain,
                _ => &allowed,
            };
            let byte = from[random() as usize % from.len()];
            matcher.consume_token(byte).unwrap();
            out.push(byte as u8);
            if out.len() > LONGEST {
                return None;
            }
        }
    }
}

fn validator(schema: &Value) -> jsonschema::Validator {
    jsonschema::options()
        .should_validate_formats(true)
        .build(schema)
        .unwrap_or_else(|e| panic!("{e}: {schema}"))
}

fn content(schema: &Value, strict: bool) -> Result<GrammarSource, String> {
    let response = ResponseFormat::Json(schema.clone(), "schema", strict);
    let wanted = Wanted {
        format: OutputFormat::default(),
        start: ReasoningStart::Closed,
        tools: &[],
        choice: &ToolChoice::Auto,
        parallel: false,
        response: Some(&response),
        control: &|_| None,
    };
    grammar(&wanted).map(|found| found.unwrap().0).map_err(|e| e.to_string())
}

fn tool(schema: &Value, strict: bool) -> Value {
    json!({"type": "function", "function": {"name": "f", "strict": strict, "parameters": schema}})
}

fn call(schema: &Value, strict: bool, format: ToolFormat) -> Result<GrammarSource, String> {
    let wanted = Wanted {
        format: OutputFormat { tools: Some(format), reasoning: None },
        start: ReasoningStart::Closed,
        tools: &[tool(schema, strict)],
        choice: &ToolChoice::Required,
        parallel: false,
        response: None,
        control: &|_| None,
    };
    grammar(&wanted).map(|found| found.unwrap().0).map_err(|e| e.to_string())
}

/// The arguments of the one call in a text.
fn arguments(text: &str, schema: &Value, format: ToolFormat) -> Value {
    let schemas = Arc::new(ToolSchemas::of(&[tool(schema, true)]));
    let output = OutputFormat { tools: Some(format), reasoning: None };
    let mut parser = output.parser(Some(schemas), ReasoningStart::Closed);
    let mut parts = Vec::new();
    parser.push(text, &mut parts);
    parser.finish(false, &mut parts);
    let mut all = String::new();
    for part in &parts {
        match part {
            Part::CallStart { name } => assert_eq!(name, "f"),
            Part::Arguments(more) => all.push_str(more),
            Part::CallEnd | Part::Reasoning(_) => {}
            Part::Content(more) if more.trim().is_empty() => {}
            other => panic!("{other:?} in {text:?}"),
        }
    }
    serde_json::from_str(&all).unwrap_or_else(|e| panic!("{e}: {all:?} in {text:?}"))
}

/// Schemas by kind, and what is to come of them: `ok`, `let go` (an error if strict), `refused` (in any case).
fn corpus() -> Vec<(String, Value, String)> {
    let file: Value = serde_json::from_str(include_str!("data/schemas.json")).unwrap();
    let kinds = file.as_object().unwrap().iter();
    let all = kinds.flat_map(|(kind, list)| list.as_array().unwrap().iter().map(move |item| (kind, item)));
    let all = all.map(|(kind, item)| match item.get("outcome").and_then(Value::as_str) {
        Some(outcome) => (kind.clone(), item["schema"].clone(), outcome.to_owned()),
        None => (kind.clone(), item.clone(), "ok".to_owned()),
    });
    all.collect()
}

fn wrapped(schema: &Value) -> Value {
    let mut schema = schema.clone();
    let mut out = json!({"type": "object", "required": ["v"], "additionalProperties": false});
    if let Some(map) = schema.as_object_mut() {
        for key in ["$defs", "definitions", "$schema"] {
            if let Some(found) = map.remove(key) {
                out[key] = found;
            }
        }
    }
    out["properties"] = json!({"v": schema, "w": schema});
    out
}

/// What went wrong with some schemas.
fn attempt(name: &str, work: impl FnOnce() -> (u64, u64)) -> Result<(u64, u64), String> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    done.map_err(|e| {
        let text =
            e.downcast_ref::<String>().cloned().or_else(|| e.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        format!("{name}: {}", clip(&text.unwrap_or_default()))
    })
}

fn report(all: Vec<Result<(u64, u64), String>>) {
    let failed: Vec<&String> = all.iter().filter_map(|one| one.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {} schemas: {failed:#?}", failed.len(), all.len());
    let sum = |(a, b): (u64, u64), (c, d): &(u64, u64)| (a + c, b + d);
    let (texts, endless) = all.iter().flatten().fold((0, 0), sum);
    assert!(texts > 1000 && endless * 50 < texts, "{texts}, {endless} without an end");
}

#[test]
fn answers_meet_their_schemas() {
    let walker = Walker::new();
    let one = |schema: &Value, outcome: &str, strict: bool| {
        let source = content(schema, strict);
        let good = match (outcome, strict) {
            ("ok", _) => source.as_ref().is_ok_and(|s| s.warnings.is_empty()),
            ("let go", false) => source.as_ref().is_ok_and(|s| !s.warnings.is_empty()),
            _ => source.is_err(),
        };
        assert!(good, "{:?}", source.map(|s| s.warnings));
        let Ok(source) = source else { return (0, 0) };
        let start = walker.matcher(&source).unwrap_or_else(|e| panic!("{e}\n{}", clip(&source.lark)));
        if outcome != "ok" {
            return (0, 0);
        }
        let validator = validator(schema);
        let (mut texts, mut endless) = (0, 0);
        for seed in 0..TEXTS {
            let Some(text) = walker.text(&start, seed * 2 + u64::from(strict)) else {
                endless += 1;
                continue;
            };
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!(validator.is_valid(&value), "{text}");
            texts += 1;
        }
        (texts, endless)
    };
    let mut all = Vec::new();
    for (kind, schema, outcome) in corpus() {
        for strict in [true, false] {
            let name = format!("{kind}, strict {strict}: {schema}");
            all.push(attempt(&name, || one(&schema, &outcome, strict)));
        }
    }
    report(all);
}

#[test]
fn calls_meet_their_schemas_in_every_format() {
    let walker = Walker::new();
    let one = |schema: &Value, format: ToolFormat| {
        let validator = validator(schema);
        let source = match call(schema, true, format) {
            Ok(source) => source,
            Err(e) if e.contains("cannot be written in the model's format") => return (0, 0),
            Err(e) => panic!("{e}"),
        };
        let start = walker.matcher(&source).unwrap_or_else(|e| panic!("{e}\n{}", clip(&source.lark)));
        let (mut texts, mut endless) = (0, 0);
        for seed in 0..TEXTS / 2 {
            let Some(text) = walker.text(&start, seed) else {
                endless += 1;
                continue;
            };
            let value = arguments(&text, schema, format);
            assert!(validator.is_valid(&value), "{value}: {text}");
            texts += 1;
        }
        (texts, endless)
    };
    let mut all = Vec::new();
    for (kind, schema, _) in corpus().into_iter().filter(|(.., outcome)| outcome == "ok") {
        // References to the root mean another one when it stands inside.
        if schema.to_string().contains("\"#\"") || schema.get("$id").is_some() {
            continue;
        }
        let schema = wrapped(&schema);
        for format in FORMATS {
            all.push(attempt(&format!("{kind}, {format:?}: {schema}"), || one(&schema, format)));
        }
    }
    report(all);
}
