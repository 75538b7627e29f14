use serde_json::{Map, json};

use super::*;
use crate::chat::{ChatRequest, Limits, ToolCall};

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
fn texts_are_kept_short() {
    for expression in [
        "'%999999999999d' % 1",
        "'%99999999s' % 'a'",
        "'%.99999999f' % 1.5",
        "'{:>99999999}'.format('a')",
        "'a'.ljust(99999999)",
        "'a' | center(99999999)",
        "('a' * 1000000).replace('a', 'b' * 1000000)",
        "('a' * 1000000) | replace('a', 'b' * 1000000)",
        "('b' * 1000000).join(('a' * 100000) | list)",
        "('a' * 1000000) | list | join('b' * 1000000)",
    ] {
        let error = compile(&format!("{{{{ ({expression}) | length }}}}")).render(&hello(), &[], &Map::new());
        assert!(matches!(error, Err(TemplateError::Render(_))), "{expression}");
    }
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
fn dates_are_todays() {
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
        let got = template.render(
            &request.conversation.messages,
            &request.conversation.tools,
            &request.conversation.template_kwargs,
        );
        match case["error"].as_str() {
            Some(_) => assert!(got.is_err(), "{name}/{conversation}"),
            None => assert_eq!(got.unwrap(), case["rendered"].as_str().unwrap(), "{name}/{conversation}"),
        }
    }
}

#[test]
fn expressions_print_as_in_jinja2() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/expressions.json");
    let data: Json = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let call =
        json!({"id": "i", "type": "function", "function": {"name": "f", "arguments": data["arguments"]}});
    let body = json!({"model": "m", "messages": [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "c", "tool_calls": [call]}]});
    let request = ChatRequest::parse(body.to_string().as_bytes(), &Limits::default()).unwrap();
    let cases = data["cases"].as_array().unwrap();
    assert!(cases.len() > 500);
    for case in cases {
        let expression = case[0].as_str().unwrap();
        let source = format!("{}{{{{ {expression} }}}}", data["prelude"].as_str().unwrap());
        let got = ChatTemplate::compile(&source, Map::new())
            .and_then(|template| template.render(&request.conversation.messages, &[], &Map::new()));
        match case[1].as_str() {
            None => assert!(got.is_err(), "{expression}: {got:?}"),
            Some(want) => assert_eq!(got.as_deref(), Ok(want), "{expression}"),
        }
    }
}

#[test]
fn constructs_render_as_in_jinja2() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/constructs.json");
    let data: Json = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let body = json!({"model": "m", "messages": data["messages"]});
    let request = ChatRequest::parse(body.to_string().as_bytes(), &Limits::default()).unwrap();
    let cases = data["cases"].as_array().unwrap();
    assert!(cases.len() > 150);
    for case in cases {
        let source = case[0].as_str().unwrap();
        let got = ChatTemplate::compile(source, Map::new())
            .and_then(|template| template.render(&request.conversation.messages, &[], &Map::new()));
        match case[1].as_str() {
            None => assert!(got.is_err(), "{source}: {got:?}"),
            Some(want) => assert_eq!(got.as_deref(), Ok(want), "{source}"),
        }
    }
}

fn turn_with_call(content: Json, arguments: &str, more: &Json) -> Vec<Message> {
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}});
    let mut assistant = json!({"role": "assistant", "content": content, "tool_calls": [call]});
    for (key, value) in more.as_object().into_iter().flatten() {
        assistant[key] = value.clone();
    }
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "q"}, assistant]});
    ChatRequest::parse(body.to_string().as_bytes(), &Limits::default()).unwrap().conversation.messages
}

#[test]
fn what_is_missing_is_refused_at_start_by_name() {
    for (source, names) in [
        ("{{ messages | pprint }}", "the filter `pprint`"),
        ("{{ messages | map('nope') }}", "the filter `nope`"),
        ("{% if x is nope %}{% endif %}", "the test `nope`"),
        ("{{ messages | selectattr('a', 'nope') }}", "the test `nope`"),
        ("{{ lipsum() }}", "the function `lipsum`"),
        ("{{ 'a'.encode() }}", "the method `encode`"),
        ("{% include 'x' %}", "the statement `include`"),
        ("{% if false %}{{ a.b(c | d2) }}{% endif %}", "the filter `d2`, the method `b`"),
        ("{% filter nope %}{% endfilter %}", "the filter `nope`"),
        ("{% macro m(x=nope()) %}{% endmacro %}", "the function `nope`"),
    ] {
        let error = ChatTemplate::compile(source, Map::new()).unwrap_err();
        assert_eq!(error, TemplateError::Unsupported(names.into()), "{source}");
    }
    for source in [
        "{% macro m(x) %}{{ x }}{{ caller() }}{% endmacro %}{% call m(1) %}{% endcall %}",
        "{% macro m() %}{% endmacro %}{% set ns = namespace(f=m) %}{{ ns.f() }}",
        "{% set ns = namespace() %}{% set ns.g = range %}{{ ns.g(2) }}",
        "{% if nope is defined %}{{ nope() }}{% endif %}{% if a.b is defined %}{{ a.b() }}{% endif %}",
        "{% for x in messages recursive %}{{ loop.cycle('a', 'b') }}{{ loop([]) }}{% endfor %}",
        "{% generation %}a{% endgeneration %}{{ self.b() }}{% block b %}{% endblock %}",
    ] {
        compile(source);
    }
}

#[test]
fn absent_content_is_none_only_for_templates_that_take_it() {
    let render = |source: &str| {
        let source = format!("{{% for m in messages if m.tool_calls %}}{source}{{% endfor %}}");
        compile(&source).render(&turn_with_call(Json::Null, "{}", &Json::Null), &[], &Map::new()).unwrap()
    };
    assert_eq!(render("{{ m.content is none }}"), "True");
    assert_eq!(render("[{{ m.content.split('x')[0] }}]"), "[]");
    assert_eq!(render("[{{ m.content }}]"), "[None]"); // as transformers prints it
    assert_eq!(render("{% if '</think>' in m.content %}x{% endif %}."), ".");
    // Found only in this conversation, not by the one at start.
    assert_eq!(render("{% if messages | length == 2 and not tools %}{{ m.content + 'x' }}{% endif %}"), "x");
    // An absent content without calls is an empty one.
    let mut message = Message::text(Role::Assistant, "");
    message.content = crate::chat::Content::None;
    message.reasoning_content = Some("hm".into());
    let out = compile("[{{ messages[0].content }}]").render(&[message], &[], &Map::new()).unwrap();
    assert_eq!(out, "[]");
}

#[test]
fn reasoning_goes_by_all_names_and_is_written_once() {
    let messages = turn_with_call("c".into(), "{}", &json!({"reasoning_content": "hm"}));
    let render = |source: &str| compile(source).render(&messages, &[], &Map::new()).unwrap();
    for name in ["reasoning_content", "reasoning", "thinking", "thought"] {
        assert_eq!(render(&format!("{{{{ messages[1].{name} }}}}")), "hm");
    }
    let both = "{% for m in messages %}{{ m.reasoning or '' }}{{ m.reasoning_content or '' }}{% endfor %}";
    assert_eq!(render(both), "hm");
    let one = "{% for m in messages %}{{ m.thinking or m.reasoning_content or '' }}{% endfor %}";
    assert_eq!(render(one), "hm");
    // As the template of gpt-oss refuses it.
    let refuses = "{% for m in messages %}{% if m.content and m.thinking and m.tool_calls %}\
        {{ raise_exception('both') }}{% endif %}{{ m.content }}{{ m.thinking or '' }}{% endfor %}";
    assert_eq!(render(refuses), "qc");
}

#[test]
fn arguments_are_what_the_template_takes() {
    let written = "{\"a\":  12345678901234567890123, \"b\": [1e5]}";
    let messages = turn_with_call(Json::Null, written, &Json::Null);
    let render = |source: &str| {
        let source = format!(
            "{{% for m in messages if m.tool_calls %}}{{% set a = m.tool_calls[0].function.arguments %}}{source}{{% endfor %}}"
        );
        compile(&source).render(&messages, &[], &Map::new()).unwrap()
    };
    assert_eq!(render("{{ a | tojson }}"), "{\"a\": 12345678901234567890123, \"b\": [100000.0]}");
    assert_eq!(
        render("{% for k, v in a.items() %}{{ k }}={{ v }};{% endfor %}"),
        "a=12345678901234567890123;b=[100000.0];"
    );
    assert_eq!(
        render("{{ a if a is string else a | tojson }}"),
        "{\"a\": 12345678901234567890123, \"b\": [100000.0]}"
    );
    // Written for text: it fails on a dict, or prints it as Python does.
    assert_eq!(render("{{ '<' + a + '>' }}"), format!("<{written}>"));
    assert_eq!(render("<{{ a }}>"), format!("<{written}>"));
}

#[test]
fn broken_arguments_are_what_the_template_takes() {
    let cut = r#"{"path": "/sr"#;
    let messages = turn_with_call(Json::Null, cut, &Json::Null);
    let render = |source: &str| {
        let source = format!(
            "{{% for m in messages if m.tool_calls %}}{{% set a = m.tool_calls[0].function.arguments %}}{source}{{% endfor %}}"
        );
        compile(&source).render(&messages, &[], &Map::new()).unwrap()
    };
    assert_eq!(render("{{ a if a is string else a | tojson }}"), cut);
    assert_eq!(render("{{ '<' + a }}"), format!("<{cut}"));
    // Text would be quoted once more there, or fail.
    assert_eq!(render("{{ a | tojson }}"), r#"{"path": "/sr"}"#);
    assert_eq!(render("{% for k, v in a | items %}{{ k }}={{ v }}{% endfor %}"), "path=/sr");
    let list = turn_with_call(Json::Null, r#"["/srv"]"#, &Json::Null);
    let source = "{% for m in messages if m.tool_calls %}{% for k in m.tool_calls[0].function.arguments.items() %}{{ k }}{% endfor %}{% endfor %}";
    assert_eq!(compile(source).render(&list, &[], &Map::new()).unwrap(), "('arguments', ['/srv'])");
}

#[test]
fn ids_of_calls_are_short_for_templates_that_want_them_so() {
    let mut messages = turn_with_call(Json::Null, "{}", &Json::Null);
    let mut answer = Message::text(Role::Tool, "ok");
    answer.tool_call_id = Some("c".into());
    messages.push(answer);
    let source = |check: &str| {
        format!(
            "{{% for m in messages %}}{{% for c in m.tool_calls or [] %}}{{{{ c.id }}}} {check}{{% endfor %}}{{{{ m.tool_call_id }}}}{{% endfor %}}"
        )
    };
    let render = |check: &str| compile(&source(check)).render(&messages, &[], &Map::new()).unwrap();
    assert_eq!(render(""), "c c");
    let out = render("{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}");
    let (call, answer) = out.split_once(' ').unwrap();
    assert_eq!((call.len(), call), (9, answer));
}

#[test]
fn line_breaks_of_the_source_are_jinjas() {
    let template = compile("{% if true %}\r\na\r\n{% endif %}\r\nb\rc\r\n");
    assert_eq!(template.render(&hello(), &[], &Map::new()).unwrap(), "a\nb\nc");
    assert_eq!(template.source(), "{% if true %}\r\na\r\n{% endif %}\r\nb\rc\r\n");
}

#[test]
fn lines_of_errors_are_those_of_the_source() {
    let error =
        compile("{{ 'a' ~ 1 }}\n{{ 'x' ~ (messages[9].a.items\n ~ 5) }}").render(&hello(), &[], &Map::new());
    assert!(matches!(&error, Err(TemplateError::Render(m)) if m.starts_with("line 2:")), "{error:?}");
}

/// Instructions at the start become one, those in the middle the user's, where the template takes one message of them; what
/// stands before is rendered as it was without them.
#[test]
fn instructions_come_where_the_template_takes_them() {
    let says = |role, text: &str| Message::text(role, text);
    let all = [
        says(Role::System, "a"),
        says(Role::Developer, "b"),
        says(Role::User, "c"),
        says(Role::System, "d"),
        says(Role::Assistant, "e"),
        says(Role::System, "f"),
        says(Role::User, "g"),
    ];
    let render = |source: &str, n: usize| {
        let messages = all.get(..n).unwrap();
        compile(source).render_as(messages, &[], &Map::new(), false).unwrap()
    };
    let each = "{% for m in messages %}[{{ m.role }} {{ m.content }}]{% endfor %}";
    assert_eq!(render(each, 7), "[system a][system b][user c][system d][assistant e][system f][user g]");
    let first = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}[{{ m.role }} {{ m.content }}]{% endfor %}";
    assert_eq!(render(first, 7), "[system a\n\nb][user c\n\nd][assistant e][user f\n\ng]");
    // What a template leaves out is left out, as `transformers` has it.
    let silent = "{% for m in messages %}{% if m.role != 'system' or loop.first %}[{{ m.role }} {{ m.content }}]{% endif %}{% endfor %}";
    assert_eq!(render(silent, 7), "[system a][user c][assistant e][user g]");
    let with_end = render(first, 5);
    assert!(render(first, 7).starts_with(&with_end), "{with_end}");
    let none = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}{% endfor %}";
    let error = compile(none).render(&all, &[], &Map::new()).unwrap_err();
    assert_eq!(error, TemplateError::Refused("none".into()));
}

#[test]
fn nobody_is_rendered_for_who_has_gone() {
    let template = compile("{% for i in range(9) %}{{ messages[0].content ~ i }}{% endfor %}");
    let gone = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let render = || until(&gone, || template.render(&hello(), &[], &Map::new()));
    assert!(render().is_ok());
    gone.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(render().is_err());
    assert!(template.render(&hello(), &[], &Map::new()).is_ok(), "others go on");
}

/// A long conversation with calls, as agents have it, is rendered within what nearly all prompts need; a template that is
/// quadratic in it within the most.
#[test]
fn long_conversations_are_rendered_in_the_usual_memory() {
    let mut messages = vec![Message::text(Role::System, "You help.")];
    for i in 0..500 {
        let mut call = Message::text(Role::Assistant, "I look.");
        let arguments = Map::from_iter([("path".to_owned(), json!(format!("file{i}")))]);
        let id = Some(format!("call{i}"));
        call.tool_calls.push(ToolCall {
            id: id.clone(),
            name: "read".into(),
            arguments,
            text: None,
            broken: false,
        });
        messages.extend([Message::text(Role::User, "What is in it?"), call]);
        messages.push(Message { tool_call_id: id, ..Message::text(Role::Tool, "many lines ".repeat(30)) });
    }
    let demo = compile(include_str!("../../../../demo/chat_template.jinja"));
    let render = |template: &ChatTemplate| template.render(&messages, &[], &Map::new());
    let text = modestly(|| render(&demo)).expect("the usual is enough").unwrap();
    assert_eq!(text, render(&demo).unwrap());
    let weight = crate::memory::Weight::of_chat(&messages, &[], &Map::new());
    assert!(demo.usual_memory(weight) < 100 << 20, "{}", demo.usual_memory(weight));

    let quadratic = compile(
        "{% for m in messages %}{% set ns = namespace(n=0) %}{% for later in messages[loop.index:] %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }} {% endfor %}",
    );
    assert!(modestly(|| render(&quadratic)).is_none());
    assert!(render(&quadratic).unwrap().starts_with("1500 1499"));
}
