//! The formats of nested tags: what is a tag, what is text, and what can be recovered.

use super::*;

const QWEN: ToolFormat = ToolFormat::QwenXml;
const DSML: ToolFormat = ToolFormat::Dsml;

#[test]
fn values_end_where_the_format_goes_on() {
    check(
        QWEN,
        &[
            // The next parameter.
            (
                "Ok.\n<tool_call>\n<function=write>\n<parameter=path>\n/a\n<parameter=body>\nhi\n</parameter>\n</function>\n\
                 </tool_call>",
                "Ok.",
                json!([["write", {"path": "/a", "body": "hi"}]]),
            ),
            (
                "<function=f>\n<parameter=s>Paris\n<parameter=b>true\n<parameter=n>3\n</function>",
                "",
                json!([["f", {"s": "Paris", "b": true, "n": 3}]]),
            ),
            // One that the schema does not know.
            (
                "<tool_call>\n<function=write>\n<parameter=path>\n/a\n<parameter=mode>\nw\n</parameter>\n</function>\n</tool_call>",
                "",
                json!([["write", {"path": "/a", "mode": "w"}]]),
            ),
            (
                "<tool_call>\n<function=write>\n<parameter=path>\n/a\n</parameter>\n<parameter=mode>\nw\n</parameter>\n\
                 </function>\n</tool_call>",
                "",
                json!([["write", {"path": "/a", "mode": "w"}]]),
            ),
            // The end of the function, of the call.
            (
                "<tool_call>\n<function=f>\n<parameter=s>\n/srv\n</function>\n</tool_call>\n<tool_call>\n<function=f>\n\
                 <parameter=s>\n/var\n</parameter>\n</function>\n</tool_call>",
                "",
                json!([["f", {"s": "/srv"}], ["f", {"s": "/var"}]]),
            ),
            (
                "<tool_call>\n<function=f>\n<parameter=s>\n/srv\n</tool_call>\nDone.",
                "Done.",
                json!([["f", {"s": "/srv"}]]),
            ),
            (
                "<tool_call>\n<function=f>\n<parameter=s>/srv</function>\n</tool_call>",
                "",
                json!([["f", {"s": "/srv"}]]),
            ),
            // The next call.
            (
                "<tool_call>\n<function=f>\n<parameter=s>\n/srv\n<tool_call>\n<function=f>\n<parameter=s>\n/var\n</parameter>\n\
                 </function>\n</tool_call>",
                "",
                json!([["f", {"s": "/srv"}], ["f", {"s": "/var"}]]),
            ),
            // A tag of another name is text.
            (
                "<tool_call>\n<function=f>\n<parameter=s>\nhi\n</s>\n<parameter=n>\n7\n</parameter>\n</function>\n</tool_call>",
                "",
                json!([["f", {"s": "hi\n</s>", "n": 7}]]),
            ),
        ],
    );
}

#[test]
fn values_speak_of_tags() {
    let bodies = [
        "say `</parameter>` or <parameter=path> or </function> here",
        "a = [\n    \"<tool_call>\\n\",\n    \"<parameter=path>\\n\",\n    \"\\n</parameter>\\n\",\n    \"</function>\\n\",\n]",
        "t = \"\"\"\n</parameter>\n<parameter=other>\nx\n</parameter>\n\"\"\"",
        "t = \"\"\"\n<parameter=path>\nx\n</parameter>\n\"\"\"",
        "doc\n<tool_call>\n<function=write>\n<parameter=path>\nx\n</parameter>\n<parameter=body>\ny\n</parameter>\n</function>\n\
         </tool_call>\nend",
        "doc\n<tool_call>\n<function=nope>\n<parameter=bar>baz</parameter>\n</function>\n</tool_call>\nend",
        "<tool_call>\nis a tag",
        "a </parameter> b\n</parameter> c",
        "```\n<a>\n```\n",
        "",
        "\n",
        "  indented\n    more  ",
        "if a < b and b <c: <",
    ];
    for body in bodies {
        let text = format!(
            "<tool_call>\n<function=write>\n<parameter=path>\n/a\n</parameter>\n<parameter=body>\n{body}\n</parameter>\n\
             </function>\n</tool_call>"
        );
        check(QWEN, &[(&text, "", json!([["write", {"path": "/a", "body": body}]]))]);
        let body = body.replace("</", "</｜DSML｜").replace("<tool_call>", "<｜DSML｜tool_calls>");
        let body = body.replace("<parameter=path>", "<｜DSML｜parameter name=\"path\" string=\"true\">");
        let text = format!(
            "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"write\">\n<｜DSML｜parameter name=\"body\" string=\"true\">{body}\
             </｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
        );
        check(DSML, &[(&text, "", json!([["write", {"body": body}]]))]);
    }
}

#[test]
fn wrappers_and_ends_may_lack_or_be_doubled() {
    let call = "<function=f>\n<parameter=n>\n3\n</parameter>\n</function>";
    let one = json!([["f", {"n": 3}]]);
    let two = json!([["f", {"n": 3}], ["f", {"n": 3}]]);
    for (text, content, calls) in [
        (format!("Ok.\n\n{call}"), "Ok.", &one),
        (format!("Ok.\n\n{call}\n</tool_call>"), "Ok.", &one),
        (format!("{call}\n</tool_call>\n</tool_call>\nDone."), "Done.", &one),
        (format!("<tool_call>\n{call}\nDone."), "Done.", &one),
        (format!("<tool_call>\n{call}\n</function>\n</tool_call>"), "", &one),
        (format!("<tool_call>\n<tool_call>\n{call}\n</tool_call>"), "", &one),
        (format!("<tool_call>\n{call}\n{call}\n</tool_call>"), "", &two),
        (format!("<tool_call>\n{call}\n<tool_call>\n{call}\n</tool_call>"), "", &two),
        (format!("{call}\n{call}"), "", &two),
        (format!("Sure!<tool_call>\n{call}\n</tool_call><tool_call>\n{call}\n</tool_call>"), "Sure!", &two),
        ("<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n</tool_call>".into(), "", &one),
        ("<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n</parameter>\n</function>\n</tool_call>".into(), "", &one),
        ("<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n<tool_call>\n<function=f>\n<parameter=n>3</parameter>\n\
          </function>\n</tool_call>".into(), "", &two),
        ("<tool_call><function=f><parameter=n>3</parameter></function></tool_call>".into(), "", &one),
        ("Go.<tool_call><function=f><parameter=n>3</parameter></function></tool_call>".into(), "Go.", &one),
        ("<tool_call>\n<function=f>\n<parameter=n>3\n</parameter></function></tool_call>".into(), "", &one),
    ] {
        check(QWEN, &[(&text, content, calls.clone())]);
    }
    let call = "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"n\" string=\"false\">3</｜DSML｜parameter>\n</｜DSML｜invoke>";
    for (text, content, calls) in [
        (format!("{call}</｜DSML｜tool_calls>"), "", &one),
        (format!("Ok.\n{call}"), "Ok.", &one),
        (format!("<｜DSML｜toolcalls>\n{call}\n</｜DSML｜tool_calls>"), "<｜DSML｜toolcalls>", &one),
        (format!("<｜DSML｜tool_calls>\n{call}\n</｜DSML｜tool_calls>\n</｜DSML｜tool_calls>"), "", &one),
        (format!("<｜DSML｜tool_calls>\n{call}\n{call}"), "", &two),
    ] {
        check(DSML, &[(&text, content, calls.clone())]);
    }
}

#[test]
fn empty_calls_are_calls() {
    check(
        QWEN,
        &[
            ("<tool_call>\n<function=now>\n</function>\n</tool_call>", "", json!([["now", {}]])),
            ("<tool_call>\n<function=now></function>\n</tool_call>", "", json!([["now", {}]])),
            ("<tool_call>\n<function=now>\n</tool_call>", "", json!([["now", {}]])),
            ("<tool_call>\n<function=now>", "", json!([["now", {}]])),
            ("<function=now>\n</function>", "", json!([["now", {}]])),
            (
                "<tool_call>\n<function=f>\n<parameter=s>\n\n</parameter>\n<parameter=x>\nnull\n</parameter>\n</function>\n</tool_call>",
                "",
                json!([["f", {"s": "", "x": null}]]),
            ),
            (
                "<tool_call>\n<function=f>\n<parameter=s></parameter>\n</function>\n</tool_call>",
                "",
                json!([["f", {"s": ""}]]),
            ),
        ],
    );
    check(
        DSML,
        &[(
            "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
            "",
            json!([["now", {}]]),
        )],
    );
}

#[test]
fn a_broken_call_does_not_hide_a_sound_one() {
    let sound = "<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>";
    for broken in [
        "<tool_call>\n<function=f\n<parameter=n>3</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=nope>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function={{ name }}>\n<parameter={{ k }}>\n{{ v }}\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\nexample\n</tool_call>",
        "I show: <tool_call>example</tool_call>. Now:",
        "<tool_call>\n<function=f>\n<parameter=n\n3\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n and more\n</function>\n</tool_call>",
    ] {
        let text = format!("{broken}\n{sound}");
        check(QWEN, &[(&text, broken, json!([["f", {"n": 3}]]))]);
        let text = format!("Ok.\n\n{broken}\n\n{sound}\nDone.");
        let content = format!("Ok.\n\n{broken}Done.");
        check(QWEN, &[(&text, &content, json!([["f", {"n": 3}]]))]);
    }
}

#[test]
fn prose_is_prose() {
    is_text(
        QWEN,
        &[
            "Docs say `<function=read_file></function>` is an empty call, nothing more.",
            "A call begins with <function=f> as the docs say.",
            "`<function=now></function>` is an empty call.",
            "<function=now></function> is an empty call.",
            "`<tool_call><function=now></function></tool_call>` is one.",
            "<tool_call><function=now></function></tool_call> is one.",
            "The tags <tool_call> and </tool_call> go around it.",
            "Quoted `<tool_call>` prose </tool_call> still visible.",
            "Write <tool_call><function=f><parameter=n>3</parameter></function></tool_call> to call it.",
            "<tool_call>\n<function=nope>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>\n",
            "<function=nope>\n<parameter=n>\n3\n</parameter>\n</function>",
            "Like so:\n\n```xml\n<tool_call>\n<function=f>\n<parameter=n>3</parameter>\n</function>\n</tool_call>\n```\n\nThat is it.",
            "~~~~\n~~~\n<function=now>\n</function>\n~~~~\n",
            "\n\n <tool_call> \n",
            "<function=f>",
            "<function=f>\n",
        ],
    );
    is_text(
        DSML,
        &[
            "Docs quote <｜DSML｜invoke name=\"f",
            "Write <｜DSML｜invoke name=\"f\"> first.",
            "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"nope\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        ],
    );
    // After an example comes a call.
    check(
        QWEN,
        &[(
            "```\n<tool_call>\n<function=f>\n</function>\n</tool_call>\n```\nNow:\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
            "```\n<tool_call>\n<function=f>\n</function>\n</tool_call>\n```\nNow:",
            json!([["now", {}]]),
        )],
    );
}

#[test]
fn broken_text_comes_back_as_it_was_written() {
    for text in [
        "Ok.\n \n<tool_call>\n<function=f>\n<parameter=s>\n  ab\n\n",
        "\n\n<tool_call>\n<function=f>\n<parameter=s>\nab\n</param",
        "Ok. <tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n\n  and so on\n",
    ] {
        assert_eq!(says(QWEN, text), (text.to_owned(), vec![]));
    }
}

#[test]
fn values_have_their_types() {
    let cases = [
        ("x", "3.5", json!(3.5)),
        ("x", "None", json!(null)),
        ("n", "+3", json!(3)),
        ("b", "True", json!(true)),
        ("a", "[1, 2, true]", json!([1, 2, true])),
        ("a", "(1, 2)", json!([1, 2])),
        ("a", "['a', None, True]", json!(["a", null, true])),
        ("o", "{'k': 'it\\'s', \"j\": [1,],}", json!({"k": "it's", "j": [1]})),
        ("o", "\"{'k': 1}\"", json!({"k": 1})),
        ("o", "{k: 1}", json!("{k: 1}")),
        ("s", "null", json!("null")),
        ("s", "42", json!("42")),
        ("s", "\"q\"", json!("\"q\"")),
        ("n", "nan", json!("nan")),
    ];
    for (name, value, expected) in cases {
        let text = format!(
            "<tool_call>\n<function=f>\n<parameter={name}>\n{value}\n</parameter>\n</function>\n</tool_call>"
        );
        let mut arguments = serde_json::Map::new();
        arguments.insert(name.to_owned(), expected);
        check(QWEN, &[(&text, "", json!([["f", arguments]]))]);
    }
    // What the tag says of the type gives way to the schema.
    let dsml = |name: &str, string: bool, value: &str| {
        let text = format!(
            "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"{name}\" string=\"{string}\">{value}\
             </｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
        );
        says(DSML, &text).1[0].1[name].clone()
    };
    assert_eq!(dsml("n", true, "42"), json!(42));
    assert_eq!(dsml("s", false, "42"), json!("42"));
    assert_eq!(dsml("o", true, "{\"k\": 1}"), json!({"k": 1}));
    assert_eq!(dsml("unknown", false, "{\"k\": 1}"), json!("{\"k\": 1}"));
}
