//! Forced calls in every family's format, by a model whose logits are noise: whatever it says, it is a call that its parser reads and
//! its schema allows.

#[path = "../../mach-engine/tests/double/mod.rs"]
mod double;

use std::sync::Arc;

use double::Double;
use mach_api::chat::Limits;
use mach_api::output::{OutputFormat, Part, ReasoningFormat, ToolFormat, ToolSchemas};
use mach_api::{ChatRequest, ChatTemplate};
use mach_engine::{Engine, EngineConfig, Event, FinishReason, SamplingParams, TextTokenizer};
use mach_server::{ChatModel, Decoding, Templates};
use mach_specdec::policy::{GuardSpec, PolicySpec};
use mach_specdec::{DecodePath, DraftState, resolve};
use serde_json::{Map, Value, json};

const FORMATS: [(ToolFormat, ReasoningFormat); 5] = [
    (ToolFormat::QwenXml, ReasoningFormat::Think),
    (ToolFormat::Hermes, ReasoningFormat::Think),
    (ToolFormat::Dsml, ReasoningFormat::Think),
    (ToolFormat::Gemma4, ReasoningFormat::Gemma4),
    (ToolFormat::Harmony, ReasoningFormat::Harmony),
];

/// The demo's tokenizer with the markers of other families as control tokens, in the places of reserved ones.
fn tokenizer(format: OutputFormat) -> Arc<TextTokenizer> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tokenizer.json");
    let mut file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let free = [
        "<|mask|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|reserved_0|>",
        "<|reserved_1|>",
    ];
    let markers = format.markers();
    let mut free = free.iter();
    for marker in markers {
        let tokens = file["added_tokens"].as_array_mut().unwrap();
        if tokens.iter().any(|token| token["content"] == marker) {
            continue;
        }
        let place = free.next().unwrap();
        let token = tokens.iter_mut().find(|token| token["content"] == *place).unwrap();
        token["content"] = marker.into();
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        vocab.remove(*place);
    }
    let inner = tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap();
    Arc::new(TextTokenizer::new(inner, 16384).unwrap())
}

fn model(format: OutputFormat) -> ChatModel {
    let engine =
        Engine::start(Box::new(Double::new(16384, 2000)), tokenizer(format), EngineConfig::default())
            .unwrap();
    let source = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let templates = Templates::single(ChatTemplate::compile(source, Map::new()).unwrap());
    let (path, policy, guard) = (DecodePath::TargetOnly, PolicySpec::Off, GuardSpec::Off);
    let decoding = Decoding { path, gate: resolve(path, policy, false, DraftState::Absent), policy, guard };
    ChatModel::new(engine, Some(templates), SamplingParams::greedy(), vec![16370], vec!["m".into()], decoding)
        .with_output(format)
}

/// Runs a request to its end; what it says.
fn ask(model: &ChatModel, mut fields: Value) -> (Vec<Part>, FinishReason, String) {
    fields["model"] = "m".into();
    // The prompt ends where the model has done with reasoning, which by chance alone would not end; on channels that cannot be said.
    let prompt = match model.output.reasoning.unwrap() {
        ReasoningFormat::Think => "Hello</think>",
        ReasoningFormat::Gemma4 => "Hello<channel|>",
        ReasoningFormat::Harmony => "Hello",
    };
    fields["messages"] = json!([{"role": "user", "content": prompt}]);
    let request = ChatRequest::parse(fields.to_string().as_bytes(), &Limits::default()).unwrap();
    let tools = request.conversation.tools.clone();
    let prepared = model.prepare(&request.into_turn()).unwrap();
    let mut events = model.engine.submit(prepared.generate).unwrap();
    let schemas = (!tools.is_empty()).then(|| Arc::new(ToolSchemas::of(&tools)));
    let start = model.output.reasoning.unwrap().start(prompt);
    let mut parser = model.output.parser(schemas, start);
    let (mut parts, mut all) = (Vec::new(), String::new());
    loop {
        match events.blocking_recv().unwrap() {
            Event::Text { text, .. } => {
                parser.push(&text, &mut parts);
                all.push_str(&text);
            }
            Event::Finished { reason, .. } => {
                parser.finish(reason == FinishReason::Length, &mut parts);
                return (parts, reason, all);
            }
            Event::Embedding(_) => {}
            Event::Failed(error) => panic!("{error}: {all}"),
        }
    }
}

fn calls(parts: &[Part]) -> Vec<(String, Value)> {
    let (mut calls, mut name, mut text) = (Vec::new(), String::new(), String::new());
    for part in parts {
        match part {
            Part::CallStart { name: started } => (name, text) = (started.clone(), String::new()),
            Part::Arguments(more) => text.push_str(more),
            Part::CallEnd => calls.push((name.clone(), serde_json::from_str(&text).unwrap())),
            Part::CallBroken(_) | Part::Malformed => panic!("{parts:?}"),
            Part::Reasoning(_) | Part::Content(_) => {}
        }
    }
    calls
}

fn tools() -> Value {
    let function = |name: &str| {
        json!({"type": "function", "function": {"name": name, "strict": true, "parameters": {
            "type": "object", "required": ["n", "kind"], "additionalProperties": false, "properties": {
                "n": {"type": "integer", "minimum": -5, "maximum": 99}, "kind": {"enum": ["red", "gr een"]},
                "b": {"type": "boolean"}, "xs": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9},
                    "maxItems": 3},
                "o": {"type": "object", "properties": {"k": {"type": "boolean"}}, "required": ["k"],
                    "additionalProperties": false}}}}})
    };
    json!([function("first"), function("second")])
}

#[test]
fn forced_calls_are_calls_in_every_format() {
    let mut names = std::collections::BTreeSet::new();
    for (tools_format, reasoning) in FORMATS {
        let model = model(OutputFormat { tools: Some(tools_format), reasoning: Some(reasoning) });
        for seed in 0..6 {
            let (parts, reason, all) = ask(
                &model,
                json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": seed % 2 == 0, "temperature": 1,
                    "seed": seed, "max_tokens": 1500, "logit_bias": short_reasoning(&model)}),
            );
            // Several calls in a row may go on to the length.
            assert!(reason == FinishReason::Stop || seed % 2 == 0, "{tools_format:?}: {all}");
            let calls = calls(&parts);
            assert!(!calls.is_empty() && (calls.len() == 1 || seed % 2 == 0), "{tools_format:?}: {all}");
            for (name, given) in calls {
                names.insert(name);
                // `-0` is a whole number, though not to all who read it.
                let n = given["n"].as_f64().filter(|n| n.fract() == 0.0 && (-5.0..=99.0).contains(n));
                assert!(n.is_some(), "{tools_format:?}: {given}: {all}");
                let kind = given["kind"].as_str();
                assert!(
                    kind.is_some_and(|k| ["red", "gr een"].contains(&k)),
                    "{tools_format:?}: {given}: {all}"
                );
                assert!(given.get("b").is_none_or(Value::is_boolean), "{tools_format:?}: {given}");
                let xs = given.get("xs").and_then(Value::as_array);
                assert!(xs.is_none_or(|xs| xs.iter().all(Value::is_i64)), "{tools_format:?}: {given}");
                assert!(given.get("o").is_none_or(|o| o["k"].is_boolean()), "{tools_format:?}: {given}");
            }
        }
        let named = json!({"type": "function", "function": {"name": "second"}});
        let (parts, reason, _) = ask(
            &model,
            json!({"tools": tools(), "tool_choice": named, "temperature": 1, "max_tokens": 1500,
                "logit_bias": short_reasoning(&model)}),
        );
        assert_eq!((calls(&parts)[0].0.as_str(), reason), ("second", FinishReason::Stop), "{tools_format:?}");
    }
    assert_eq!(names.len(), 2);
}

/// A bias towards the token that ends a message.
fn short_reasoning(model: &ChatModel) -> Value {
    let id = model.engine.tokenizer().id("<|end|>");
    id.map_or_else(|| json!({}), |id| json!({id.to_string(): 30}))
}

#[test]
fn content_is_held_to_its_schema_in_every_format() {
    for (tools_format, reasoning) in FORMATS {
        let model = model(OutputFormat { tools: Some(tools_format), reasoning: Some(reasoning) });
        for tools in [json!([]), tools()] {
            let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                "additionalProperties": false});
            let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
            let (parts, reason, all) = ask(
                &model,
                json!({"response_format": format, "tools": tools, "temperature": 1, "seed": 2, "max_tokens": 1500,
                    "parallel_tool_calls": false, "logit_bias": short_reasoning(&model)}),
            );
            assert_eq!(reason, FinishReason::Stop, "{tools_format:?}: {all}");
            if calls(&parts).is_empty() {
                let Some(Part::Content(text)) = parts.last() else { panic!("{tools_format:?}: {parts:?}") };
                let value: Value =
                    serde_json::from_str(text).unwrap_or_else(|e| panic!("{tools_format:?}: {e}: {all}"));
                assert!(value["ok"].is_boolean(), "{tools_format:?}: {all}");
            }
        }
    }
}
