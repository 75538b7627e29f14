//! What requests take is never more than was said before. One test: the allocator is counted for the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use mach_api::chat::{Limits, Role};
use mach_api::memory::{self, Weight};
use mach_api::{ChatRequest, ChatTemplate, Message};
use serde_json::{Map, json};

/// Counts what is allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most bytes that were allocated at one time beyond those before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let out = work();
    (out, PEAK.load(Ordering::Relaxed).saturating_sub(before))
}

/// Templates that make as much as they can out of nothing.
const GREEDY: &[&str] = &[
    "{{ [0] * 1000000000 }}",
    "{{ ([0] * 1000000000) | tojson }}",
    "{{ ([0] * 1000000000) ~ '' }}",
    "{{ ([0] * 1000000000).index(1) }}",
    "{{ ([0] * 1000000000).count(1) }}",
    "{{ ([['a', 1]] * 1000000000) | urlencode }}",
    "{{ dict([['a', 1]] * 1000000000) }}",
    "{{ ''.join(['a'] * 1000000000) }}",
    "{{ '%s' % ([0] * 1000000000) }}",
    "{{ '{}'.format([0] * 1000000000) }}",
    "{{ ([0] * 1000000000) | list | length }}",
    "{{ range(100000) | list | map('string') | join(',' * 10000) }}",
    "{{ ('x' * 99999999) | length }}",
    "{{ ('%999999d' * 1000) % range(1000) }}",
    "{{ ('{:>999999}' * 1000).format(1) }}",
    "{{ ('\\n' * 100000) | indent('x' * 10000) }}",
    "{{ ('a,' * 900000).split(',') | length }}{{ ('b,' * 900000).split(',') | length }}",
    "{{ ('<' * 900000) | escape | escape | escape | escape | escape }}",
    "{{ ('\\t' * 900000).expandtabs(64) }}",
    "{{ (('[' * 100) ~ ('0,' * 900000)) | from_json }}",
    "{{ ('[' ~ ('0,' * 900000) ~ '0]') | from_json | length }}",
    "{% set ns = namespace(s='x' * 1000) %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='x' * 1000) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=['x']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% for i in range(100000) %}{{ messages[0].content | upper | lower | title }}{% endfor %}",
];

#[test]
fn what_requests_take_was_said_before() {
    templates_that_make_too_much_are_stopped();
    long_chats_render_within_what_is_said();
    bodies_parse_within_what_is_said();
}

fn templates_that_make_too_much_are_stopped() {
    let hello = [Message::text(Role::User, "hello ".repeat(100))];
    let allowed = |template: &ChatTemplate| template.memory(Weight::of_chat(&hello, &[], &Map::new()));
    for source in GREEDY {
        let template = ChatTemplate::compile(source, Map::new()).unwrap();
        let (rendered, took) = peak(|| template.render(&hello, &[], &Map::new()));
        let most = allowed(&template);
        assert!(most < 20 << 20 && took <= most, "{source}: {took} bytes, {most} were said");
        assert!(rendered.is_err(), "{source}");
    }
}

fn long_chats_render_within_what_is_said() {
    let source = include_str!("../../../demo/chat_template.jinja");
    let template = ChatTemplate::compile(source, Map::new()).unwrap();
    for (count, bytes) in [(1, 2_000_000), (400, 5_000), (9_000, 20)] {
        let said = "Some words, and a <tag>\n".repeat(bytes / 24 + 1);
        let roles = [Role::User, Role::Assistant];
        let messages: Vec<Message> =
            (0..count).map(|i| Message::text(roles[i % 2], format!("{said}</think>{said}"))).collect();
        let weight = Weight::of_chat(&messages, &[], &Map::new());
        let (rendered, took) = peak(|| template.render(&messages, &[], &Map::new()));
        assert!(rendered.is_ok(), "{rendered:?}");
        assert!(took <= template.memory(weight), "{count} messages: {took} of {}", template.memory(weight));
    }
}

fn bodies_parse_within_what_is_said() {
    let n = 60_000;
    let list = |item: &str| format!("[{}]", vec![item; n].join(","));
    let fill = |value: &str| format!(r#"{{"messages":[{{"role":"user","content":"a"}}],"x":{value}}}"#);
    let call = |arguments: &str| {
        let arguments = json!(arguments);
        let call = json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": "?"}});
        let call = call.to_string().replace(r#""?""#, &arguments.to_string());
        format!(r#"{{"messages":[{{"role":"assistant","content":null,"tool_calls":[{call}]}}]}}"#)
    };
    let mut bodies: Vec<String> =
        ["0", "[]", "[[[[0]]]]", "{}", r#"{"a":1}"#, r#""""#, r#"{"":{"":{}}}"#, "null", r#""\ud83e""#]
            .iter()
            .map(|item| fill(&list(item)))
            .collect();
    bodies
        .extend(["0", "[[0]]", r#"{"a":1}"#].iter().map(|item| call(&format!(r#"{{"a":{}}}"#, list(item)))));
    bodies.push(fill(&json!("a".repeat(10 * n)).to_string()));
    bodies.push(fill(&json!("\n".repeat(10 * n)).to_string()));
    bodies.push(fill(&format!("\"{}\"", r"\ud83e".repeat(n))));
    for body in bodies {
        let said = memory::of_json(body.as_bytes());
        let (parsed, took) = peak(|| ChatRequest::parse(body.as_bytes(), &Limits::default()).is_ok());
        assert!(took <= said, "{}: {took} of {said}, {parsed}", &body[..120]);
    }
}
