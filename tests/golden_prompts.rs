//! Rendering and tokenising the demo's golden conversations gives exactly the golden prompt ids.

use mach_api::chat::Limits;
use mach_api::{ChatRequest, ChatTemplate};
use mach_checkpoint::Checkpoint;
use mach_engine::TextTokenizer;
use serde_json::{Map, Value, json};

#[test]
fn prompts_are_those_of_the_goldens() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let tokenizer = TextTokenizer::new(checkpoint.tokenizer().unwrap(), 16384).unwrap();
    let template = checkpoint.chat_template().unwrap().unwrap();
    let template = ChatTemplate::compile(&template.source, Map::new()).unwrap();
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("golden.json")).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 3);
    assert!(cases.iter().any(|c| c["tools"].is_array()), "some golden conversation has tools");
    for case in cases {
        let body = json!({"model": "m", "messages": case["messages"], "tools": case["tools"]}).to_string();
        let request = ChatRequest::parse(body.as_bytes(), &Limits::default()).unwrap();
        let text = template
            .render(
                &request.conversation.messages,
                &request.conversation.tools,
                &request.conversation.template_kwargs,
            )
            .unwrap();
        let want: Vec<u32> = serde_json::from_value(case["prompt_ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(&text, false).unwrap(), want, "{}", case["name"]);
    }
}
