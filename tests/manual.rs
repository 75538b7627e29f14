//! Versions, completions and manual pages: of every program, out of its command line.

mod common;

use std::path::Path;
use std::process::Command;

use common::clean;

/// The programs and where they are.
const PROGRAMS: [(&str, &str); 5] = [
    ("mach", env!("CARGO_BIN_EXE_mach")),
    ("mach-serve", env!("CARGO_BIN_EXE_mach-serve")),
    ("mach-generate", env!("CARGO_BIN_EXE_mach-generate")),
    ("mach-archs", env!("CARGO_BIN_EXE_mach-archs")),
    ("mach-models", env!("CARGO_BIN_EXE_mach-models")),
];

fn run(program: &str, arguments: &[&str]) -> (i32, String, String) {
    let out = clean(Command::new(program).args(arguments)).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

fn mach(arguments: &[&str]) -> String {
    let (code, out, error) = run(PROGRAMS[0].1, arguments);
    assert_eq!(code, 0, "{arguments:?}: {error}");
    out
}

/// Names of the files of a directory.
fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_program_tells_its_version() {
    let version = env!("CARGO_PKG_VERSION");
    for (name, program) in PROGRAMS {
        for flag in ["--version", "-V"] {
            assert_eq!(run(program, &[flag]), (0, format!("{name} {version}\n"), String::new()));
        }
    }
    assert_eq!(mach(&["serve", "--version"]), format!("mach-serve {version}\n"));
}

#[test]
fn shells_complete_every_program() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("bash");
    mach(&["completions", "bash", "--out", out.to_str().unwrap()]);
    assert_eq!(files(&out).len(), PROGRAMS.len());
    // What the shell would offer.
    let offered = |program: &str, words: &str| {
        let script = mach(&["completions", "bash", program]);
        let function = format!("_{}", program.replace('-', "__"));
        let ask = format!(
            "set -- {words}; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
             {function} \"$1\" \"${{@: -1}}\" \"${{@: -2:1}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let out = Command::new("bash").args(["-c", &format!("{script}\n{ask}")]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{program} {words}");
        String::from_utf8(out.stdout)
            .unwrap()
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(offered("mach", "mach gen"), ["generate"]);
    assert_eq!(offered("mach", "mach chat --regen"), Vec::<String>::new());
    assert_eq!(offered("mach", "mach chat --sys"), ["--system"]);
    assert_eq!(offered("mach-serve", "mach-serve --no-str"), ["--no-streaming"]);
    assert_eq!(offered("mach-serve", "mach-serve --activations f"), ["f32"]);
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        for (name, _) in PROGRAMS {
            let script = mach(&["completions", shell, name]);
            assert!(script.contains(name) && script.len() > 200, "{shell} {name}");
        }
    }
    assert!(mach(&["completions", "zsh"]).starts_with("#compdef mach\n"));
    let (code, _, error) = run(PROGRAMS[0].1, &["completions", "bash", "ls"]);
    assert!(code == 2 && error.contains("mach-serve"), "{error}");
    assert_eq!(run(PROGRAMS[0].1, &["completions", "tcsh"]).0, 2);
}

#[test]
fn every_command_has_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let told = mach(&["man", "--out", dir.path().to_str().unwrap()]);
    let names = files(dir.path());
    assert_eq!(told.lines().count(), names.len());
    let help = mach(&["--help"]);
    let listed = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let commands: Vec<_> = listed
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() >= 10, "{help}");
    let pages = commands.iter().map(|name| format!("mach-{name}.1"));
    for page in pages.chain(PROGRAMS.iter().map(|(name, _)| format!("{name}.1"))) {
        assert!(names.contains(&page), "{page}: {names:?}");
        let text = std::fs::read_to_string(dir.path().join(&page)).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}");
    }
    let serve = std::fs::read_to_string(dir.path().join("mach-serve.1")).unwrap();
    assert_eq!(mach(&["man", "serve"]), serve);
    for words in ["max\\-batch", "The program mach\\-serve is the same", "HTTP"] {
        assert!(serve.contains(words), "{words}: {serve}");
    }
    assert!(mach(&["man"]).contains("mach\\-serve"));
    assert_eq!(run(PROGRAMS[0].1, &["man", "ls"]).0, 2);
}
