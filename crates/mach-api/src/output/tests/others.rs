//! The formats without nested tags, and calls in reasoning.

use super::*;

const HERMES: ToolFormat = ToolFormat::Hermes;
const GEMMA: ToolFormat = ToolFormat::Gemma4;
const HARMONY: ToolFormat = ToolFormat::Harmony;

#[test]
fn hermes_is_recovered() {
    let call = "{\"name\": \"f\", \"arguments\": {\"n\": 3}}";
    let one = json!([["f", {"n": 3}]]);
    let two = json!([["f", {"n": 3}], ["f", {"n": 3}]]);
    for (text, content, calls) in [
        (format!("<tool_call>{call}"), "", &one),
        (format!("Ok.<tool_call>{call}</tool_call>\n</tool_call>\nDone."), "Ok.Done.", &one),
        (format!("<tool_call>\n<tool_call>\n{call}\n</tool_call>"), "", &one),
        (format!("<tool_call>\n{call}\n{call}\n</tool_call>"), "", &two),
        (format!("<tool_call>\n[{call}, {call}]\n</tool_call>"), "", &two),
        (format!("<tool_call>\n{call}}}\n</tool_call>"), "", &one),
        (
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 3}\n</tool_call>\nDone.".into(),
            "Done.",
            &one,
        ),
        (format!("{call}\n</tool_call>"), "", &one),
        (format!("Ok.\n{call}"), "Ok.", &one),
        ("<tool_call>{'name': 'f', 'arguments': {'n': 3}}</tool_call>".into(), "", &one),
        ("<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"n\\\": 3}\"}</tool_call>".into(), "", &one),
        ("<tool_call>{\"name\": \"f\", \"arguments\": \"{'n': 3}\"}</tool_call>".into(), "", &one),
        ("<tool_call>{\"name\": \"f\", \"arguments\": {\"n\": 3,},}</tool_call>".into(), "", &one),
        (
            "<tool_call>{\"name\": \"f\", \"parameters\": {\"n\": 3}, \"id\": 1.5e3}</tool_call>".into(),
            "",
            &one,
        ),
    ] {
        check(HERMES, &[(&text, content, calls.clone())]);
    }
    for arguments in
        ["", ", \"arguments\": null", ", \"arguments\": \"\"", ", \"arguments\": {}", ", \"arguments\": None"]
    {
        let text = format!("<tool_call>\n{{\"name\": \"now\"{arguments}}}\n</tool_call>");
        check(HERMES, &[(&text, "", json!([["now", {}]]))]);
    }
    check(
        HERMES,
        &[(
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"b\": True, \"x\": None, \"s\": 'a \"b\"'}}</tool_call>",
            "",
            json!([["f", {"b": true, "x": null, "s": "a \"b\""}]]),
        )],
    );
}

#[test]
fn hermes_text_is_text() {
    is_text(
        HERMES,
        &[
            "Put it between <tool_call> and </tool_call>.",
            "<tool_call>{\"name\": \"nope\", \"arguments\": {\"n\": 3}}</tool_call>",
            "```\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n```",
            "{\"name\": \"f\", \"arguments\": {}} is how.",
            "{\"name\": \"f\"}",
            "{\n  \"name\": \"Paul\",\n  \"arguments\": {\"n\": 3}\n}",
            "{\"a\": {\n{\"b\": 1}}}",
            "<tool_call>\n[1]\n</tool_call>\n",
        ],
    );
    let sound = "<tool_call>{\"name\": \"f\", \"arguments\": {\"n\": 3}}</tool_call>";
    for broken in [
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"ab}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": the \"big\" one}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"the \"big\" one\"}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"f\"",
        "<tool_call>{\"nam",
        "{\"name\": \"f\"",
    ] {
        for gap in ["", "\n"] {
            let text = format!("Ok.\n{broken}{gap}{sound}");
            check(HERMES, &[(&text, &format!("Ok.\n{broken}"), json!([["f", {"n": 3}]]))]);
        }
        let text = format!("Ok.\n\n{broken}");
        assert_eq!(says(HERMES, &text), (text.clone(), vec![]));
    }
}

#[test]
fn gemma_is_recovered() {
    let call = "call:f{n:3}";
    let one = json!([["f", {"n": 3}]]);
    let two = json!([["f", {"n": 3}], ["f", {"n": 3}]]);
    for (text, content, calls) in [
        (format!("Ok. <|tool_call>{call}<tool_call|>"), "Ok.", &one),
        (format!("<|tool_call>{call}<tool_call|><tool_call|>Done."), "Done.", &one),
        (format!("<|tool_call>:{call}"), "", &one),
        (format!("<|tool_call><|tool_call>{call}<tool_call|>"), "", &one),
        (format!("Ok.\n{call}"), "Ok.", &one),
        (format!("<|channel>thought\nHm.\n<channel|>{call}"), "", &one),
        (format!("<|tool_call>{call}{call}<tool_call|>"), "", &two),
        (format!("<|tool_call>{call},\n{call}<tool_call|>"), "", &two),
        (format!("<|tool_call>{call}\n<|tool_call>{call}<tool_call|>"), "", &two),
        (format!("<|tool_call>{call}}}<tool_call|>"), "", &one),
        ("<|tool_call>call:f{n:3<tool_call|>".into(), "", &one),
        ("<|tool_call>call:f{n:3,}<tool_call|>".into(), "", &one),
        ("<|tool_call>call:f{n: 3 }<tool_call|>".into(), "", &one),
    ] {
        check(GEMMA, &[(&text, content, calls.clone())]);
    }
    check(
        GEMMA,
        &[
            ("<|tool_call>call:now{}<tool_call|>", "", json!([["now", {}]])),
            ("<|tool_call>call:now<tool_call|>", "", json!([["now", {}]])),
            (
                "<|tool_call>call:f{u:42,v:true,w:null,y:3.,z:word,o:{k:[1,{<|\"|>3<|\"|>:<|\"|>a]}<|\"|>},],e:{}}}<tool_call|>",
                "",
                json!([["f", {"u": 42, "v": true, "w": null, "y": 3.0, "z": "word", "o": {"k": [1, {"3": "a]}"}], "e": {}}}]]),
            ),
            ("<|tool_call>call:f{s:42}<tool_call|>", "", json!([["f", {"s": "42"}]])),
            (
                "<|tool_call>call:f{s:<|\"|>a <tool_call|> b<|\"|>}<tool_call|>",
                "",
                json!([["f", {"s": "a <tool_call|> b"}]]),
            ),
            // A broken call before a sound one.
            (
                "<|tool_call>call:f{s:<|\"|>ab<tool_call|><|tool_call>call:f{n:3}<tool_call|>",
                "<|tool_call>call:f{s:<|\"|>ab<tool_call|>",
                one.clone(),
            ),
            (
                "Ok.\n<|tool_call>call:f{n:3]<tool_call|>\n<|tool_call>call:f{n:3}<tool_call|>",
                "Ok.\n<|tool_call>call:f{n:3]<tool_call|>",
                one.clone(),
            ),
        ],
    );
    is_text(
        GEMMA,
        &[
            "It writes <|tool_call> first.",
            "<|tool_call>call:nope{n:3}<tool_call|>",
            "please call:f{n:3}",
            "recall: f",
            "```\n<|tool_call>call:f{n:3}<tool_call|>\n```\n",
            "call:f and so on",
        ],
    );
}

#[test]
fn channels_of_gemma_never_leak() {
    for (text, reasoning, content) in [
        ("<|channel>thought\nHm.<channel|>Yes.", "Hm.", "Yes."),
        ("<|channel>Hm.<channel|>Yes.", "Hm.", "Yes."),
        ("<|channel>thousand reasons<channel|>Yes.", "thousand reasons", "Yes."),
        ("<|channel>thought\n<channel|>Yes.", "", "Yes."),
        ("<|channel>thoughtful<channel|>Yes.", "thoughtful", "Yes."),
        ("Before\n<|channel>Hm.<channel|>\nafter", "Hm.", "Before\n\nafter"),
        ("Hm.<channel|>Yes.", "", "Hm.Yes."),
        ("<|channel>thought\n<|channel>thought\nHm.<channel|><channel|>Yes.", "Hm.", "Yes."),
        ("<|channel>thought\nA<channel|>b<|channel>thought\nC<channel|>d", "A\nC", "bd"),
        ("<|channel>thought\nHm.", "Hm.", ""),
    ] {
        let (said, _) = says(GEMMA, text);
        let parts = read(GEMMA, [text], false);
        assert_eq!((thought(&parts).as_str(), said.as_str()), (reasoning, content), "{text}");
    }
}

#[test]
fn channels_of_harmony_never_leak() {
    let call = json!([["f", {"n": 3}]]);
    let none = json!([]);
    for (text, reasoning, content, expected) in [
        // Texts are joined with a line break.
        (
            "<|channel|>commentary<|message|>A.<|end|><|start|>assistant<|channel|>final<|message|>B.<|end|>",
            "",
            "A.\nB.",
            &none,
        ),
        (
            "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B<|end|><|start|>assistant\
             <|channel|>analysis<|message|>C<|end|><|start|>assistant<|channel|>final<|message|>D<|return|>",
            "A\nC",
            "B\nD",
            &none,
        ),
        // A header that lacks something.
        ("analysis<|message|>A<|end|>final<|message|>B", "A", "B", &none),
        ("<|channel|>final {\"answer\": \"hi\"}<|return|>", "", "{\"answer\": \"hi\"}", &none),
        ("<|channel|>final{\"answer\": \"hi\"}", "", "{\"answer\": \"hi\"}", &none),
        ("<|channel|>analysis A<|channel|>final<|message|>B", "A", "B", &none),
        ("<|channel|>analysis<|message|>A<|message|>B", "AB", "", &none),
        ("<|channel|>analysis", "", "", &none),
        ("<|channel|>final<|constrain|> JSON <|message|>B", "", "B", &none),
        ("<|channel|>odd<|message|>B", "", "B", &none),
        ("<|start|>assistant<|start|>assistant<|channel|>final<|message|>B<|end|><|end|>", "", "B", &none),
        ("Plain text.", "", "Plain text.", &none),
        ("final answers are short.", "", "final answers are short.", &none),
        ("assistants help", "", "assistants help", &none),
        (" \n to me", "", " \n to me", &none),
        ("<|end|>B", "", "B", &none),
        // To others, and as others.
        (
            "<|channel|>commentary to=assistant<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B",
            "",
            "B",
            &none,
        ),
        (
            "<|channel|>analysis to=python code<|message|>print(1)<|call|><|channel|>final<|message|>B",
            "",
            "B",
            &none,
        ),
        ("<|channel|>commentary to=browser.search<|message|>{}<|call|>", "", "", &none),
        ("<|start|>user<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B", "", "B", &none),
        (
            "<|start|>functions.f to=assistant<|channel|>commentary<|message|>A<|end|><|channel|>final<|message|>B",
            "",
            "B",
            &none,
        ),
        ("<|channel|>commentary to=functions.nope<|message|>{\"n\": 3}<|call|>", "", "{\"n\": 3}", &none),
        // Calls.
        ("<|channel|>analysis to=functions.f<|message|>{\"n\": 3}<|call|>", "", "", &call),
        ("<|channel|>commentary to=f<|constrain|>json<|message|>{\"n\": 3}<|call|>", "", "", &call),
        ("to=functions.f<|channel|>commentary json<|message|>{\"n\": 3}<|end|>", "", "", &call),
        ("<|start|>assistant to=functions.f<|channel|>commentary<|message|>{\"n\": 3}", "", "", &call),
        (
            "<|channel|>commentary<|message|>A.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json\
             <|message|>{\"n\": 3}<|call|><|start|>assistant<|channel|>final<|message|>B.",
            "",
            "A.\nB.",
            &call,
        ),
        ("<|channel|>commentary to=functions.now<|message|><|call|>", "", "", &json!([["now", {}]])),
        ("<|channel|>commentary to=functions.now<|message|>null<|call|>", "", "", &json!([["now", {}]])),
        // A broken call before a sound one.
        (
            "<|channel|>commentary to=functions.f<|message|>{\"s\": <|call|><|start|>assistant to=functions.f<|channel|>commentary\
             <|message|>{\"n\": 3}<|call|>",
            "",
            "{\"s\": ",
            &call,
        ),
    ] {
        let (said, calls) = says(HARMONY, text);
        let parts = read(HARMONY, [text], false);
        let calls: Vec<Value> = calls.into_iter().map(|(name, arguments)| json!([name, arguments])).collect();
        assert_eq!(
            (thought(&parts).as_str(), said.as_str(), &json!(calls)),
            (reasoning, content, expected),
            "{text}"
        );
    }
}

#[test]
fn calls_in_reasoning() {
    for tools in [ToolFormat::QwenXml, HERMES, GEMMA, ToolFormat::Dsml] {
        let (open, close) = format(tools).reasoning.unwrap().tags().unwrap();
        let text = example(tools);
        let call = &text[text.find("Wait.").unwrap() + "Wait.".len()..].trim();
        let expected = calls(&read(tools, [*call], false));
        assert_eq!(expected.len(), 2);
        // Reasoning that never ends.
        let unclosed = format!("{open}\nI call f.\n\n{call}");
        assert_eq!(says(tools, &unclosed), (String::new(), expected.clone()), "{tools:?}");
        assert_eq!(thought(&read(tools, [unclosed.as_str()], false)), "I call f.");
        // A draft.
        let drafted = format!("{open}\nI could write\n{call}\nbut no.\n{close}\nYes.");
        assert_eq!(says(tools, &drafted), ("Yes.".to_owned(), vec![]), "{tools:?}");
        let parts = read(tools, [drafted.as_str()], false);
        assert_eq!(thought(&parts), format!("I could write\n{call}\nbut no."));
        // A draft, and then the call.
        let both = format!("{open}\n{call}\n{close}\n\n{call}");
        assert_eq!(says(tools, &both), (String::new(), expected.clone()), "{tools:?}");
        // What is none stays reasoning.
        let begun: String = call.chars().take(call.chars().count() / 3).collect();
        let broken = format!("{open}\nHm.\n{begun}");
        assert_eq!(says(tools, &broken), (String::new(), vec![]), "{tools:?}");
        assert_eq!(thought(&read(tools, [broken.as_str()], false)), format!("Hm.\n{}", begun.trim_end()));
        let mention = format!("{open}The tag `{}` is one.{close}Yes.", &call[..call.find('>').unwrap() + 1]);
        assert_eq!(says(tools, &mention).0, "Yes.", "{tools:?}");
    }
}
