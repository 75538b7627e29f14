use serde_json::{Map, json};

use super::*;
use crate::chat::{ChatRequest, Limits};

fn compile(source: &str) -> ChatTemplate {
    ChatTemplate::compile(source, Map::new()).unwrap()
}

fn hello() -> Vec<Message> {
    vec![Message::text(Role::User, "hello")]
}

#[test]
fn a_broken_template_is_refused_at_start() {
    let error = ChatTemplate::compile("a\n{% if %}", Map::new()).unwrap_err();
    assert!(matches!(&error, TemplateError::Compile(m) if m.starts_with("line 2:")), "{error}");
}

#[test]
fn raise_exception_carries_its_message() {
    let template = compile("{% if messages[0].role == 'user' %}{{ raise_exception('no users') }}{% endif %}");
    let error = template.render(&hello(), &[], &Map::new()).unwrap_err();
    assert_eq!(error, TemplateError::Refused("no users".into()));
}

#[test]
fn attributes_of_undefined_values_are_errors() {
    let error = compile("{{ a.b }}").render(&hello(), &[], &Map::new()).unwrap_err();
    assert!(matches!(error, TemplateError::Render(_)));
}

#[test]
fn endless_templates_run_out_of_fuel() {
    let template = compile(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a * b %}{% endfor %}{% endfor %}",
    );
    let error = template.render(&hello(), &[], &Map::new()).unwrap_err();
    assert!(matches!(&error, TemplateError::Render(m) if m.contains("fuel")), "{error}");
}

#[test]
fn developer_becomes_system_only_for_templates_that_do_not_know_it() {
    let messages = [Message::text(Role::Developer, "x")];
    let plain = compile("{{ messages[0].role }}");
    assert_eq!(plain.render(&messages, &[], &Map::new()).unwrap(), "system");
    let knows = compile("{{ messages[0].role }}{# developer #}");
    assert_eq!(knows.render(&messages, &[], &Map::new()).unwrap(), "developer");
}

#[test]
fn parts_are_joined_for_templates_that_print_content() {
    let mut message = Message::text(Role::User, "");
    message.content = crate::chat::Content::Parts(vec!["a".into(), "b".into()]);
    let out = compile("{{ messages[0].content }}").render(&[message], &[], &Map::new()).unwrap();
    assert_eq!(out, "a\nb");
}

#[test]
fn strftime_formats_dates() {
    let at = time::OffsetDateTime::from_unix_timestamp(1_750_000_000).unwrap();
    assert_eq!(strftime("%d %b %Y %H:%M %A %B %y %j", at).unwrap(), "15 Jun 2025 15:06 Sunday June 25 166");
    let now = compile("{{ strftime_now('%Y') }}").render(&hello(), &[], &Map::new()).unwrap();
    assert!(now.parse::<i32>().unwrap() > 2024);
}

#[test]
fn renders_as_transformers_does() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/");
    let data: Json =
        serde_json::from_str(&std::fs::read_to_string(format!("{dir}templates.json")).unwrap()).unwrap();
    let cases = data["cases"].as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let (name, conversation) =
            (case["template"].as_str().unwrap(), case["conversation"].as_str().unwrap());
        if (name, conversation) == ("odds", "parts") {
            continue; // transformers prints a Python list there; mach joins the parts
        }
        let path = match name {
            "demo" => concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/chat_template.jinja").to_owned(),
            name => format!("{dir}templates/{name}.jinja"),
        };
        let source = std::fs::read_to_string(path).unwrap();
        let special = json!({"bos_token": "<s>", "eos_token": "</s>"});
        let template = ChatTemplate::compile(&source, special.as_object().unwrap().clone()).unwrap();
        let body = json!({
            "model": "m",
            "messages": case["messages"],
            "tools": case["tools"],
            "chat_template_kwargs": case["kwargs"],
        });
        let request = ChatRequest::parse(body.to_string().as_bytes(), &Limits::default()).unwrap();
        let got = template.render(&request.messages, &request.tools, &request.template_kwargs);
        match case["error"].as_str() {
            Some(_) => assert!(got.is_err(), "{name}/{conversation}"),
            None => assert_eq!(got.unwrap(), case["rendered"].as_str().unwrap(), "{name}/{conversation}"),
        }
    }
}
