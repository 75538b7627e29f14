//! A real server process on a free port, and a small HTTP client.

// Each test binary compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The demo checkpoint.
pub(crate) const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");

/// A running server; killed when dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) port: u16,
    /// Startup signals up to `startup ready`.
    pub(crate) signals: Vec<String>,
}

impl Server {
    /// Starts the demo, all experts in memory, and waits until it is ready.
    pub(crate) fn demo(arguments: &[&str]) -> Self {
        Self::start(DEMO.as_ref(), &[&["--no-streaming"], arguments].concat())
    }

    /// Starts a checkpoint and waits until it is ready.
    pub(crate) fn start(checkpoint: &std::path::Path, arguments: &[&str]) -> Self {
        Self::run(command(checkpoint, &[&["--log-level", "warn"], arguments].concat()))
    }

    /// The same with a log that can be read.
    pub(crate) fn logged(checkpoint: &std::path::Path, arguments: &[&str], log: std::fs::File) -> Self {
        let mut command = command(checkpoint, arguments);
        command.stderr(log);
        Self::run(command)
    }

    /// Runs a command and waits until it is ready.
    pub(crate) fn run(mut command: Command) -> Self {
        let child = command.spawn().unwrap();
        let mut server = Self { child, port: 0, signals: Vec::new() };
        let mut lines = BufReader::new(server.child.stdout.take().unwrap()).lines();
        for line in lines.by_ref().map_while(Result::ok) {
            if line.starts_with("startup listening") {
                server.port = value(&line, "port").and_then(|p| p.parse().ok()).unwrap();
            }
            let ready = line.starts_with("startup ready");
            server.signals.push(line);
            if ready {
                return server;
            }
        }
        panic!("the server ended early: {:?}", server.signals);
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for the end and gives the exit code.
    pub(crate) fn wait(&mut self, at_most: Duration) -> i32 {
        let start = Instant::now();
        while start.elapsed() < at_most {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the server did not end");
    }

    /// Opens a connection and sends a request; the answer is still to be read.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if method == "POST" && !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-length")) {
            head += &format!("content-length: {}\r\n", body.len());
        }
        stream.write_all((head + "\r\n").as_bytes()).unwrap();
        // The server may refuse a large body before it has read it all.
        let _ = stream.write_all(body);
        stream
    }

    /// A request and its whole answer.
    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        Answer::read(self.send(method, path, headers, body))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        self.request("POST", path, &[("content-type", "application/json")], body.as_bytes())
    }

    /// A chat request about the demo with these fields besides the model.
    pub(crate) fn chat(&self, mut fields: Value) -> Answer {
        fields["model"] = "demo".into();
        self.post("/v1/chat/completions", &fields.to_string())
    }
}

/// The command that serves a checkpoint on a free port.
pub(crate) fn command(checkpoint: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mach-serve"));
    let uncached = ["--disk-kv-dir", "--no-prefix-cache", "--disk-kv-budget-gb"];
    command
        .arg(checkpoint)
        .args(["--port", "0", "--threads", "1"])
        // Nothing of a test is to be found by the next one.
        .args(match arguments.iter().any(|argument| uncached.contains(argument)) {
            true => &[][..],
            false => &["--disk-kv-budget-gb", "0"],
        })
        .args(match arguments.iter().any(|argument| argument.starts_with("--response-store")) {
            true => &[][..],
            false => &["--no-response-store"],
        })
        .args(arguments)
        .stdout(Stdio::piped());
    clean(&mut command);
    command
}

/// Takes the settings of this process's environment away from a command.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("MACH_") || name.starts_with("LME_"))
    {
        command.env_remove(name);
    }
    command
}

/// A copy of the demo whose large files are links; `plain` names files that are copied, to be damaged.
pub(crate) fn demo_copy(plain: &[&str]) -> tempfile::TempDir {
    fn copy(from: &std::path::Path, to: &std::path::Path, plain: &[&str]) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let name = entry.file_name().into_string().unwrap();
            if source.is_dir() {
                copy(&source, &target, plain);
            } else if plain.contains(&name.as_str()) {
                std::fs::copy(&source, &target).unwrap();
            } else {
                std::os::unix::fs::symlink(&source, &target).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy(std::path::Path::new(DEMO), dir.path(), plain);
    dir
}

/// What becomes true soon.
pub(crate) fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "it did not become true");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of `key=` in a startup signal.
pub(crate) fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// Reads to the end of the connection.
    pub(crate) fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A reset after the answer, because the server did not read the whole body, loses nothing.
        let _ = stream.read_to_end(&mut bytes);
        let split = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..split].to_vec()).unwrap().to_lowercase();
        let mut body = bytes[split + 4..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            body = dechunk(&body);
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: String::from_utf8(body).unwrap() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The text of the first choice.
    pub(crate) fn text(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    /// The data of all server-sent events.
    pub(crate) fn events(&self) -> Vec<String> {
        assert_eq!(self.status, 200, "{}", self.body);
        assert!(self.head.contains("content-type: text/event-stream"));
        self.body.split("\n\n").filter_map(|e| e.strip_prefix("data: ")).map(str::to_owned).collect()
    }

    /// The events but the last, which must be `[DONE]`, as JSON.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|e| serde_json::from_str(e).unwrap()).collect()
    }
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(line) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap().trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        out.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 4 + size..];
    }
    out
}
