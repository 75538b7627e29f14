//! `mach chat` on a pipe: one line a turn. `clients/terminal/check.py` drives it through a terminal.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};

use common::{DEMO, Server, clean};
use serde_json::{Value, json};

fn chat(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mach"));
    command.args(["chat", DEMO, "--threads", "1"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    clean(&mut command);
    command
}

/// Exit code, stdout, stderr.
fn said(arguments: &[&str], lines: &str) -> (i32, String, String) {
    let mut child = chat(arguments).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    let out = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

#[test]
fn a_line_is_a_turn_and_its_answer_that_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chat.json");
    let save = format!("/save {}", file.display());
    let lines = format!("Hello\nWrite a binary search in Python\n{save}\n");
    let flags = ["--seed", "3", "--max-tokens", "40", "--system", "Be brief."];
    let (code, out, error) = said(&flags, &lines);
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    assert!(!out.contains('\x1b') && !out.contains("startup"), "{out}");
    let mut body: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let messages = body["messages"].as_array_mut().unwrap();
    let answer = messages.pop().unwrap()["content"].as_str().unwrap().to_owned();
    let roles: Vec<_> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    let first = messages[2]["content"].as_str().unwrap();
    assert_eq!(out, format!("{first}\n{answer}\n"));
    // The second answer has the second seed.
    body["seed"] = json!(4);
    body["max_tokens"] = json!(40);
    let server = Server::demo(&[]);
    assert_eq!(server.post("/v1/chat/completions", &body.to_string()).text(), answer);
    // Experts from the drive change nothing.
    let streamed = [&flags[..], &["--streaming", "--expert-cache-gb", "0.02"]].concat();
    assert_eq!(said(&streamed, "Hello\nWrite a binary search in Python\n").1, out);
}

#[test]
fn commands_are_followed_on_a_pipe() {
    let (code, out, _) = said(
        &["--seed", "3", "--max-tokens", "6"],
        "Hello\n/stats\nHello\n/stats\n/regenerate\n/clear\n/system Be brief.\n/system\n\n/exit\nHello\n",
    );
    assert_eq!(code, 0);
    let lines: Vec<_> = out.lines().collect();
    let at = |begins: &str| lines.iter().filter(|line| line.starts_with(begins)).count();
    assert_eq!((at("prompt   "), at("seed     3"), at("seed     4"), at("Be brief.")), (2, 1, 1, 1), "{out}");
    assert_eq!(lines.last(), Some(&"Be brief."), "nothing is answered after the end: {out}");
    let cached = lines.iter().find_map(|line| line.strip_suffix(" of them from the prefix cache"));
    let cached: usize = cached.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(cached >= 10, "{out}");
    // The same lines give the same answers: each has its seed.
    assert_eq!(
        said(&["--seed", "3", "--max-tokens", "6"], "Hello\n").1.lines().next(),
        lines.first().copied()
    );

    let (code, out, error) = said(&["--max-tokens", "2"], "/regenerate\n/nope\nHello\n");
    assert!(code == 1 && out.lines().count() == 1, "what can be followed is: {out} {error}");
    assert!(error.contains("no message") && error.contains("/nope"), "{error}");
}

#[test]
fn an_interrupt_stops_the_answer_and_then_the_program() {
    // Nearly random tokens: a long answer.
    let flags = ["--temperature", "2", "--top-k", "0", "--top-p", "1", "--seed", "4"];
    let mut child = chat(&flags).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut out = child.stdout.take().unwrap();
    let interrupt = || {
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    };
    input.write_all(b"Tell me a story\n").unwrap();
    let mut begun = [0; 100];
    out.read_exact(&mut begun).unwrap();
    interrupt();
    // It takes lines again, and the answer that was stopped has no figures.
    input.write_all(b"/stats\n").unwrap();
    let mut lines = BufReader::new(out).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "Nothing was answered yet."));
    interrupt();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(input);
}
