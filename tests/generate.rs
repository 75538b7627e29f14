//! `mach generate`: the answer on stdout and nothing else, unless asked for.

mod common;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{DEMO, clean, demo_copy};

/// What a run printed.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    error: String,
}

/// `mach generate` with this on standard input. Greedy, so that runs can be compared.
fn generate(checkpoint: &Path, arguments: &[&str], input: &[u8]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mach"));
    command.arg("generate").arg(checkpoint).args([
        "--threads",
        "1",
        "--temperature",
        "0",
        "--max-tokens",
        "12",
    ]);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = clean(&mut command).spawn().unwrap();
    // Who does not read it has ended already.
    let _ = child.stdin.take().unwrap().write_all(input);
    let out = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Ran { code: out.status.code().unwrap(), out: text(&out.stdout), error: text(&out.stderr) }
}

#[test]
fn the_answer_is_all_that_is_printed() {
    let demo = Path::new(DEMO);
    let asked = "Write a binary search in Python";
    let quiet = generate(demo, &[asked], b"");
    assert_eq!((quiet.code, quiet.error.as_str()), (0, ""), "{quiet:?}");
    assert!(quiet.out.contains("def ") && quiet.out.ends_with('\n'), "{quiet:?}");
    assert!(!quiet.out.contains("startup"), "{quiet:?}");

    // The same by other ways.
    for (arguments, input) in [
        (&["-"][..], &b"Write a binary search in Python\n"[..]),
        (&["--chat", asked], b""),
        (&["-v", asked], b""),
    ] {
        assert_eq!(generate(demo, arguments, input).out, quiet.out, "{arguments:?}");
    }
    let told = generate(demo, &["-v", "--stats", asked], b"");
    for line in [
        "startup mode ",
        "startup model name=demo",
        "startup sampling ",
        "model loaded",
        "\nprompt   ",
        "\nfinished ",
    ] {
        assert!(told.error.contains(line), "{line}: {}", told.error);
    }
    let stats = generate(demo, &["--stats", asked], b"");
    assert!(stats.error.starts_with("prompt   ") && stats.error.lines().count() == 3, "{stats:?}");
    let level = generate(demo, &["--log-level", "info", asked], b"");
    assert!(level.error.contains("model loaded") && !level.error.contains("startup"), "{level:?}");

    // A text to continue is another prompt, and a system message changes the answer's.
    let continued = generate(demo, &["--prompt", asked], b"");
    assert_eq!((continued.code, continued.error.as_str()), (0, ""));
    assert_ne!(continued.out, quiet.out);
    let instructed = ["--system", "Be brief.", asked];
    assert_eq!(
        generate(demo, &instructed, b"").out,
        generate(demo, &["--system", "Be brief.", "--chat", asked], b"").out
    );
}

#[test]
fn what_cannot_be_answered_is_refused() {
    let demo = Path::new(DEMO);
    for (arguments, words) in [
        (&[][..], "--chat or --prompt"),
        (&["-"], "standard input is empty"),
        (&["a", "--chat", "b"], "cannot be used with"),
        (&["--prompt", "a", "--system", "b"], "cannot be used with"),
        (&["a", "--temperature=-1"], "temperature"),
    ] {
        let ran = generate(demo, arguments, b"\n");
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}: {ran:?}");
        assert!(ran.error.contains(words), "{arguments:?}: {}", ran.error);
    }
    assert_eq!(generate(demo, &["-"], b"\xff\xfe").code, 2);
}

#[test]
fn without_a_template_the_text_is_continued() {
    let copy = demo_copy(&["tokenizer_config.json"]);
    std::fs::remove_file(copy.path().join("chat_template.jinja")).unwrap();
    let config = copy.path().join("tokenizer_config.json");
    let mut settings: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    settings.as_object_mut().unwrap().remove("chat_template");
    std::fs::write(&config, settings.to_string()).unwrap();
    let ran = generate(copy.path(), &["def fib(n):"], b"");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, generate(copy.path(), &["--prompt", "def fib(n):"], b"").out);
    let refused = generate(copy.path(), &["--system", "x", "hello"], b"");
    assert!(refused.code == 2 && refused.error.contains("no chat template"), "{refused:?}");
}

#[test]
fn reasoning_is_not_the_answer() {
    // Answers begin inside the reasoning, and to this question the model has not left it after 12 tokens.
    let copy = demo_copy(&["chat_template.jinja"]);
    let template = copy.path().join("chat_template.jinja");
    let text = std::fs::read_to_string(&template).unwrap();
    std::fs::write(&template, text + "{%- if add_generation_prompt %}{{- '<think>\\n' }}{%- endif %}")
        .unwrap();
    let hidden = generate(copy.path(), &["Explain how bread is made."], b"");
    assert_eq!((hidden.code, hidden.out.as_str()), (0, "\n"), "{hidden:?}");
    assert!(hidden.error.starts_with("note: the model was still reasoning"), "{hidden:?}");
    let shown = generate(copy.path(), &["-v", "Explain how bread is made."], b"");
    assert!(shown.out == "\n" && shown.error.contains("(reasoning)\n"), "{shown:?}");
    // As the model wrote it.
    let raw = generate(copy.path(), &["--reasoning-parser", "none", "Explain how bread is made."], b"");
    assert!(raw.out.len() > 1 && shown.error.contains(raw.out.trim()), "{raw:?} {shown:?}");
}
