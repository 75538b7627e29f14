//! Schemas of every kind, in every family's format: whatever the grammar allows meets its schema, as another library reads it.

use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv};
use llguidance::{Matcher, ParserFactory};
use mach_api::chat::{ResponseFormat, ToolChoice};
use mach_api::output::grammar::{GrammarSource, Wanted, grammar};
use mach_api::output::{OutputFormat, Part, ReasoningFormat, ReasoningStart, ToolFormat, ToolSchemas};
use serde_json::{Value, json};

const FORMATS: [ToolFormat; 5] =
    [ToolFormat::QwenXml, ToolFormat::Hermes, ToolFormat::Dsml, ToolFormat::Gemma4, ToolFormat::Harmony];
/// Texts of one grammar.
const TEXTS: u64 = 4;
/// Letters after which a text ends as soon as it can.
const LONG: usize = 160;
/// Letters after which it is given up.
const LONGEST: usize = 2_000;

/// Enough of a grammar to see what is wrong.
fn clip(text: &str) -> String {
    text.chars().take(1500).collect()
}

/// What ends a text that stands as it is.
const ENDS: [&str; 4] = ["\n</parameter>\n", "</｜DSML｜parameter>\n", "<|\"|>", "<|end|><|start|>assistant"];

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
            if random() % if long { 4 } else { 32 } == 0 {
                let from = random() as usize % ENDS.len();
                let called = said.contains("to=functions");
                let mut whole = |end: &&&str| {
                    // Behind the call's head it would be a string's text, which cannot hold control tokens.
                    if called && end.starts_with("<|end|>") {
                        return false;
                    }
                    let bytes: Vec<u32> = end.bytes().map(u32::from).collect();
                    matcher.validate_tokens(&bytes).is_ok_and(|count| count == bytes.len())
                };
                if let Some(end) = ENDS.iter().cycle().skip(from).take(ENDS.len()).find(&mut whole) {
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
        format: output(format),
        start: ReasoningStart::Closed,
        tools: &[tool(schema, strict)],
        choice: &ToolChoice::Required,
        parallel: false,
        response: None,
        control: &|_| None,
    };
    grammar(&wanted).map(|found| found.unwrap().0).map_err(|e| e.to_string())
}

fn output(format: ToolFormat) -> OutputFormat {
    let reasoning = (format == ToolFormat::Harmony).then_some(ReasoningFormat::Harmony);
    OutputFormat { tools: Some(format), reasoning }
}

/// The arguments of the one call in a text.
fn arguments(text: &str, schema: &Value, format: ToolFormat) -> Value {
    let schemas = Arc::new(ToolSchemas::of(&[tool(schema, true)]));
    let mut parser = output(format).parser(Some(schemas), ReasoningStart::Closed);
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
    assert!(texts > 1000 && endless * 20 < texts, "{texts}, {endless} without an end");
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
        for seed in 0..2 {
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

#[test]
fn integers_keep_their_digits() {
    let walker = Walker::new();
    for (text, other) in [
        ("1234567890123456789", "1234567890123456768"),
        ("9007199254740993", "9007199254740992"),
        ("-9223372036854775808", "-9223372036854775809"),
        ("9223372036854775807", "9223372036854775808"),
        ("18446744073709551615", "18446744073709551616"),
    ] {
        for schema in [
            format!("{{\"const\": {text}}}"),
            format!("{{\"enum\": [\"x\", {text}]}}"),
            format!("{{\"type\": \"integer\", \"minimum\": {text}, \"maximum\": {text}}}"),
        ] {
            let source = content(&serde_json::from_str(&schema).unwrap(), true).unwrap();
            let start = walker.matcher(&source).unwrap();
            let whole = |text: &str| {
                let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
                start.deep_clone().validate_tokens(&bytes).unwrap() == bytes.len()
            };
            assert!(whole(text) && !whole(other), "{schema}");
        }
    }
}

#[test]
fn numbers_end() {
    let walker = Walker::new();
    for schema in [
        json!({"type": "number"}),
        json!({"type": "integer"}),
        json!({"type": "integer", "minimum": 1}),
        json!({"type": "number", "exclusiveMinimum": 0}),
        json!({"type": "integer", "multipleOf": 7}),
        json!({}),
    ] {
        let start = walker.matcher(&content(&schema, true).unwrap()).unwrap();
        for text in ["1", "1.", "-1", "1e", "0.0"] {
            for digit in [b'0', b'1', b'9'] {
                let mut matcher = start.deep_clone();
                let all = text.bytes().chain(std::iter::repeat_n(digit, 60));
                let taken = all
                    .take_while(|&byte| matcher.try_consume_tokens(&[byte.into()]).is_ok_and(|n| n == 1))
                    .count();
                assert!(taken < 40, "{schema} {text} {digit}");
            }
        }
    }
}

#[test]
fn what_is_let_go_is_named() {
    let unique = json!({"type": "object", "properties": {"v": {"type": "array", "uniqueItems": true}}, "required": ["v"]});
    let pattern = json!({"type": "object", "properties": {"v": {"type": "string", "pattern": "\\bx"}}});
    for (schema, path) in [(unique, "properties.v.uniqueItems"), (pattern, "properties.v.pattern")] {
        assert!(content(&schema, true).unwrap_err().contains(path));
        let warnings = content(&schema, false).unwrap().warnings;
        assert!(
            warnings.len() == 1 && warnings[0].starts_with("schema.") && warnings[0].contains(path),
            "{warnings:?}"
        );
        for format in FORMATS {
            let error = call(&schema, true, format).unwrap_err();
            assert!(error.contains(path), "{format:?}: {error}");
            let warnings = call(&schema, false, format).unwrap().warnings;
            assert!(warnings.len() == 1 && warnings[0].contains(path), "{format:?}: {warnings:?}");
        }
    }
}

#[test]
fn large_and_tangled_schemas_come_to_an_end() {
    let wide = |n: usize| -> Value {
        let options: Vec<Value> = (0..n)
            .map(|i| json!({"type": "object", "properties": {format!("p{i}"): {"const": i}}}))
            .collect();
        json!({ "anyOf": options })
    };
    let product = json!({"allOf": (0..12).map(|_| wide(9)).collect::<Vec<_>>()});
    let mut nested = json!({"type": "integer"});
    for i in 0..20 {
        nested = json!({"oneOf": [{"minimum": i}, nested], "if": {"type": "string"}, "then": {"not": {"minLength": i}}});
    }
    let node = json!({"type": "object", "required": ["a", "b"], "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "#/$defs/n"}}});
    let tangled = json!({"not": {"$ref": "#/$defs/n"}, "oneOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/m"}], "$defs": {"n": node, "m": node}});
    let mut chain = serde_json::Map::new();
    for i in 0..3000 {
        chain.insert(
            format!("d{i}"),
            json!({"type": "array", "items": {"$ref": format!("#/$defs/d{}", (i + 1) % 3000)}}),
        );
    }
    let chained = json!({"$ref": "#/$defs/d0", "$defs": chain});
    let long: Vec<String> = (0..15_000).map(|i| format!("value {i}")).collect();
    let looped = json!({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}});
    let patterns =
        json!({"type": "string", "enum": ["a".repeat(3000)], "pattern": "^(a*)*(a|aa)*(?!.*b)(a+)+$"});
    let repeated = json!({"type": "string", "pattern": "^(?:(?:a{900}){900}){900}$"});
    for schema in [product, nested, tangled, chained, json!({ "enum": long }), looped, patterns, repeated] {
        for strict in [true, false] {
            // Whatever comes of them.
            let _ = content(&schema, strict);
        }
        let _ = call(&wrapped(&schema), false, ToolFormat::QwenXml);
    }
}

/// Why a schema is refused, if it is, and how long that took to be found out.
fn refusal(schema: Value) -> (Option<String>, std::time::Duration) {
    let response = ResponseFormat::Json(schema, "response_format.schema", true);
    let started = std::time::Instant::now();
    let made = grammar(&Wanted {
        format: OutputFormat::default(),
        start: ReasoningStart::Closed,
        tools: &[],
        choice: &ToolChoice::None,
        parallel: true,
        response: Some(&response),
        control: &|_| None,
    });
    (made.err().map(|error| error.message), started.elapsed())
}

#[test]
fn what_would_be_too_costly_to_follow_is_refused_at_once_by_name() {
    let properties = |n: usize| -> serde_json::Map<String, Value> {
        (0..n).map(|i| (format!("property{i}"), json!({"type": "string"}))).collect()
    };
    let optional = |n| json!({"type": "object", "properties": properties(n), "additionalProperties": false});
    let mut apart = optional(1500);
    apart["required"] = (0..1500).step_by(400).map(|i| format!("property{i}")).collect();
    for fits in [optional(500), apart] {
        assert_eq!(refusal(fits).0, None);
    }
    for (schema, limit) in [
        (optional(501), "500 properties"),
        (optional(20_000), "500 properties"),
        (
            json!({"anyOf": [optional(300), {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"]},
            {"type": "object", "properties": properties(301)}]}),
            "500 properties",
        ),
        (
            json!({"enum": (0..1_001).collect::<Vec<_>>()}),
            "lists 1001 values; at most 10000 texts and 1000 others",
        ),
        (
            json!({"enum": (0..40_000).map(|i| format!("value {i}")).collect::<Vec<_>>()}),
            "lists 40000 values",
        ),
        (
            json!({"type": "string", "pattern": "^([a-z]{1,100}|[b-y]{2,90}){1,60}z$"}),
            "11401 letters; at most 5000",
        ),
        (
            json!({"type": "object", "properties": properties(20_000),
            "required": properties(20_000).keys().collect::<Vec<_>>()}),
            "at most 500000 are supported",
        ),
    ] {
        let (reason, took) = refusal(schema);
        let reason = reason.unwrap_or_else(|| panic!("{limit}: not refused"));
        assert!(reason.contains(limit), "{limit}: {reason}");
        assert!(took.as_millis() < 2_000, "{limit}: {took:?}");
    }
    assert_eq!(
        refusal(json!({"type": "string", "pattern": "^([a-z0-9-]{1,63}\\.){1,8}[a-z]{2,63}$"})).0,
        None
    );
}
