//! `mach serve`: answers over HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use mach_api::UnknownFields;
use mach_api::chat::{Limits, WarmRequest};
use mach_api::output::OutputFormat;
use mach_engine::EngineConfig;
use mach_server::{Caller, ChatModel, Origins, Readiness, ServerConfig};
use tokio::net::TcpListener;
use tracing::info;

use crate::Exit;
use crate::args::{ConfigArgs, LogArgs, LogLevel, ModelArgs};
use crate::budget::Clients;
use crate::host::Host;
use crate::loading::{Opened, Report};
use crate::output::OutputArgs;
use crate::prefix::PrefixArgs;
use crate::signals::{Signal, Signals};
use crate::store::{Place, StoreArgs};

/// Arguments of `mach serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The model
    #[command(flatten)]
    pub model: ModelArgs,

    /// Address or name to listen on
    #[arg(long, help_heading = "Network", default_value = "127.0.0.1", value_parser = Host::parse)]
    pub host: Host,

    /// Port to listen on; 0 picks a free one and prints it
    #[arg(long, help_heading = "Network", default_value_t = 8080)]
    pub port: u16,

    /// Key that requests must bring as a bearer token (better set as MACH_API_KEY); without it any key is accepted
    #[arg(long, help_heading = "Network", value_name = "KEY")]
    pub api_key: Option<String>,

    /// Listen on an address that others can reach although there is no key
    #[arg(long, help_heading = "Network")]
    pub allow_unauthenticated: bool,

    /// Name of the model in requests; may be given more than once; the directory's name if not given
    #[arg(long, help_heading = "Requests", value_name = "NAME")]
    pub served_model_name: Vec<String>,

    /// Requests that may wait; one more is refused with 429
    #[arg(long, help_heading = "Requests", default_value_t = EngineConfig::default().queue_capacity, value_name = "N")]
    pub max_queue: usize,

    /// Sequences that are generated together: requests, and the choices (`n`) of each
    #[arg(long, help_heading = "Requests", alias = "max-sequences", default_value_t = EngineConfig::default().max_batch, value_name = "N")]
    pub max_batch: usize,

    /// Let requests share passes of the model; the default where the model's family can
    #[arg(long, help_heading = "Requests", conflicts_with = "no_continuous_batching")]
    pub continuous_batching: bool,

    /// Run one request after another
    #[arg(long, help_heading = "Requests")]
    pub no_continuous_batching: bool,

    /// Prompt tokens of a pass while other requests decode
    #[arg(long, help_heading = "Requests", default_value_t = EngineConfig::default().prefill_interleave, value_name = "TOKENS")]
    pub prefill_interleave: usize,

    /// Seconds that a request may wait for its turn before it is refused with 503; 0 for no limit
    #[arg(long, help_heading = "Requests", default_value_t = 0.0, value_name = "SECONDS")]
    pub queue_timeout: f64,

    /// Seconds that a request may take, waiting included, before it is cut off with 504; 0 for no limit
    #[arg(long, help_heading = "Requests", default_value_t = 0.0, value_name = "SECONDS")]
    pub request_timeout: f64,

    /// Generating requests that one API key may have at one time; more are refused with 429
    #[arg(long, help_heading = "Requests", value_name = "N")]
    pub max_concurrent_per_key: Option<usize>,

    /// Site whose pages may ask this server, its origin with scheme and host, or * for all; may be given more than once
    #[arg(long, help_heading = "Network", value_name = "ORIGIN")]
    pub cors_origin: Vec<String>,

    /// Names that requests may be for, comma-separated: name, *.example.org for all below, or * for any. Without a key, addresses
    /// and localhost are answered alone; with one, any name is unless this is given
    #[arg(long, help_heading = "Network", value_name = "NAMES", value_delimiter = ',')]
    pub allowed_hosts: Vec<String>,

    /// Seconds that a client may take nothing of its answer before it is cut off; 0 for no limit
    #[arg(long, help_heading = "Network", default_value_t = 60.0, value_name = "SECONDS")]
    pub write_timeout: f64,

    /// Answers that clients have not read yet, all together, in MiB; streams of those who read too slowly are cut off beyond that.
    /// 64 if not given, or a 32nd of the memory budget where that is less
    #[arg(long, help_heading = "Network", value_name = "MIB")]
    pub max_unread_mib: Option<usize>,

    /// Keep what the prefix cache holds for one API key from all others, as if each of its requests had a cache_salt
    #[arg(long, help_heading = "Prefix cache")]
    pub cache_salt_per_key: bool,

    /// Refuse requests with fields that neither OpenAI, vLLM nor mach know, instead of ignoring and naming those
    #[arg(long, help_heading = "Requests")]
    pub strict_fields: bool,

    /// Leave the line with which Claude Code names itself in the prompt; it may be another with every request
    #[arg(long, help_heading = "Requests")]
    pub keep_client_headers: bool,

    /// How the model is run: production (also called dflash); openai, the generic path, is not built yet
    #[arg(long, help_heading = "Computing", value_enum, default_value_t = BackendArg::Production)]
    pub backend: BackendArg,

    /// Largest request head in KiB
    #[arg(long, help_heading = "Network", default_value_t = 64, value_name = "KIB")]
    pub max_head_kib: usize,

    /// Connections that may be open at one time; more wait
    #[arg(long, help_heading = "Network", default_value_t = ServerConfig::default().max_connections, value_name = "N")]
    pub max_connections: usize,

    /// Largest request body in MiB
    #[arg(long, help_heading = "Network", default_value_t = 32, value_name = "MIB")]
    pub max_body_mib: usize,

    /// Memory in MiB that requests may take together on their way to the engine; more are refused with 429, a larger one with 413. Up to an
    /// eighth of the memory budget if not given
    #[arg(long, help_heading = "Requests", value_name = "MIB")]
    pub request_memory_mib: Option<usize>,

    /// Seconds that running generations may take to finish after SIGTERM
    #[arg(long, help_heading = "Network", default_value_t = 30, value_name = "SECONDS")]
    pub drain_timeout: u64,

    /// Kept responses
    #[command(flatten, next_help_heading = "Responses")]
    pub store: StoreArgs,

    /// How answers are read
    #[command(flatten, next_help_heading = "Requests")]
    pub output: OutputArgs,

    /// Prefix cache
    #[command(flatten, next_help_heading = "Prefix cache")]
    pub prefix: PrefixArgs,

    /// Settings
    #[command(flatten)]
    pub config: ConfigArgs,

    /// Logging
    #[command(flatten, next_help_heading = "Logging")]
    pub log: LogArgs,
}

/// Values of `--backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// The engine of this project.
    Production,
    /// The same by its other name.
    Dflash,
    /// The generic path.
    Openai,
}

/// A limit in seconds; 0 is none.
fn limit(flag: &str, seconds: f64) -> Result<Option<Duration>, Exit> {
    if seconds == 0.0 {
        return Ok(None);
    }
    let fits = Some(seconds).filter(|s| (0.001..=1e7).contains(s));
    fits.map(|s| Some(Duration::from_secs_f64(s)))
        .ok_or_else(|| Exit::input(format!("{flag}: must be 0 or between 0.001 and 10000000 seconds")))
}

/// [`ServeArgs`], checked.
#[derive(Debug)]
struct ServeConfig {
    address: SocketAddr,
    names: Vec<String>,
    engine: EngineConfig,
    server: ServerConfig,
    output: OutputArgs,
    clients: Clients,
    /// Where responses are kept.
    store: Place,
    /// Prefixes to be warm before the server is ready.
    warm: Vec<WarmRequest>,
}

fn validate(args: &ServeArgs) -> Result<ServeConfig, Exit> {
    let api_key = args.api_key.clone();
    if api_key.as_deref().is_some_and(|k| k.trim().is_empty() || k.trim() != k) {
        return Err(Exit::input("the API key must not be empty, nor begin or end with a space"));
    }
    let address = args.host.address;
    if !address.is_loopback() && api_key.is_none() && !args.allow_unauthenticated {
        return Err(Exit::input(format!(
            "--host {address}: others could use this server; set --api-key (or MACH_API_KEY), \
             or say --allow-unauthenticated"
        )));
    }
    if args.served_model_name.iter().any(|n| n.trim().is_empty()) {
        return Err(Exit::input("--served-model-name: must not be empty"));
    }
    if args.backend == BackendArg::Openai {
        return Err(Exit::input("--backend openai: not built yet; production (or dflash) is"));
    }
    let counts = [
        ("--max-queue", args.max_queue),
        ("--max-batch", args.max_batch),
        ("--max-body-mib", args.max_body_mib),
        ("--prefill-interleave", args.prefill_interleave),
        ("--max-concurrent-per-key", args.max_concurrent_per_key.unwrap_or(1)),
        ("--max-connections", args.max_connections),
        ("--max-unread-mib", args.max_unread_mib.unwrap_or(1)),
    ];
    if let Some((flag, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
        return Err(Exit::input(format!("{flag}: must be at least 1")));
    }
    if args.request_memory_mib.is_some_and(|mib| !(64..=1 << 20).contains(&mib)) {
        return Err(Exit::input("--request-memory-mib: must be between 64 and 1048576"));
    }
    if !(8..=4096).contains(&args.max_head_kib) {
        return Err(Exit::input("--max-head-kib: must be between 8 and 4096"));
    }
    let unknown_fields = if args.strict_fields { UnknownFields::Refuse } else { UnknownFields::Ignore };
    let unread = args
        .max_unread_mib
        .map(|mib| mib.checked_mul(1 << 20).ok_or_else(|| Exit::input("--max-unread-mib: too large")));
    let max_body = args.max_body_mib.checked_mul(1 << 20);
    Ok(ServeConfig {
        address: SocketAddr::new(address, args.port),
        names: args.served_model_name.clone(),
        engine: EngineConfig {
            queue_capacity: args.max_queue,
            max_batch: args.max_batch,
            prefill_interleave: args.prefill_interleave,
            queue_timeout: limit("--queue-timeout", args.queue_timeout)?,
            request_timeout: limit("--request-timeout", args.request_timeout)?,
            prefix: args.prefix.validate()?,
            ..EngineConfig::default()
        },
        server: ServerConfig {
            api_key,
            max_body: max_body.ok_or_else(|| Exit::input("--max-body-mib: too large"))?,
            drain_timeout: Duration::from_secs(args.drain_timeout),
            max_head: args.max_head_kib << 10,
            max_connections: args.max_connections,
            max_concurrent_per_key: args.max_concurrent_per_key,
            cors: Origins::parse(&args.cors_origin)
                .map_err(|e| Exit::input(format!("--cors-origin: {e}")))?,
            allowed_hosts: args.host.allowed(&args.allowed_hosts, args.api_key.is_some())?,
            write_timeout: limit("--write-timeout", args.write_timeout)?,
            cache_salt_per_key: args.cache_salt_per_key,
            limits: Limits {
                unknown_fields,
                keep_client_headers: args.keep_client_headers,
                ..Limits::default()
            },
            ..ServerConfig::default()
        },
        output: args.output.clone(),
        clients: Clients {
            account: args.request_memory_mib.map(|mib| mib.saturating_mul(1 << 20)),
            connections: args.max_connections,
            head: args.max_head_kib << 10,
            unread: unread.transpose()?,
            store: args.store.memory(),
        },
        store: args.store.validate()?,
        warm: warm_prefixes(args)?,
    })
}

/// The prefixes of `--warm-prefix`, for whoever brings the key.
fn warm_prefixes(args: &ServeArgs) -> Result<Vec<WarmRequest>, Exit> {
    let mut prefixes = args.prefix.prefixes()?;
    if args.cache_salt_per_key {
        let caller = Caller::with_key(args.api_key.as_deref().map(str::as_bytes));
        for prefix in &mut prefixes {
            prefix.cache_salt = Some(caller.salt(prefix.cache_salt.as_deref()));
        }
    }
    Ok(prefixes)
}

/// Threads of work that is not to hold up those that serve sockets.
const BLOCKING_THREADS: usize = 64;

/// Runs the command.
pub fn run(args: ServeArgs) -> Result<(), Exit> {
    let mut config = validate(&args)?;
    crate::logging::init(&args.log, LogLevel::Info);
    let asked = match (args.continuous_batching, args.no_continuous_batching) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let opened = Opened::open(args.model.validate()?)?.for_clients(config.clients);
    config.engine.continuous_batching =
        opened.batching(asked).map_err(|reason| Exit::input(format!("--continuous-batching: {reason}")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Serving needs little; the cores belong to the model.
        .worker_threads(2)
        // Work is bounded by its memory first.
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(Exit::failure)?;
    let result = runtime.block_on(serve(config, opened));
    // The loader may still be at work; its thread ends with the process.
    runtime.shutdown_background();
    result
}

async fn serve(mut config: ServeConfig, opened: Opened) -> Result<(), Exit> {
    let started = Instant::now();
    // First the port, then the weights: a client that asks early is told to come back.
    let listener = TcpListener::bind(config.address)
        .await
        .map_err(|e| Exit::failure(format!("cannot listen on {}: {e}", config.address)))?;
    let address = listener.local_addr().map_err(Exit::failure)?;
    // Said once nothing can fail any more.
    let listening = Signal::new("listening")
        .with("url", format!("http://{address}"))
        .with("host", address.ip())
        .with("port", address.port())
        .with("api_key", if config.server.api_key.is_some() { "required" } else { "any" });

    config.server.store = config.store.open()?;
    let readiness = Readiness::loading();
    let names = if config.names.is_empty() { vec![opened.default_name()] } else { config.names };
    let output = config.output.apply(opened.output_format());
    let mut loaded = load_on_thread(opened, config.engine, names, (output, config.warm), &readiness)?;
    let server = mach_server::serve(listener, config.server, Arc::clone(&readiness), stop_signal()?);
    let mut server = std::pin::pin!(server);
    tokio::select! {
        result = &mut server => return result.map_err(Exit::failure),
        result = &mut loaded => {
            let model = result.map_err(|_| Exit::failure("the loader thread panicked"))??;
            let model = readiness.ready(model);
            listening.emit();
            Signal::new("ready")
                .with("models", model.names.join(","))
                .with("seconds", format!("{:.3}", started.elapsed().as_secs_f64()))
                .emit();
        }
    }
    server.await.map_err(Exit::failure)?;
    if let Some(model) = readiness.model().map(Arc::clone) {
        // What the prefix cache holds is saved before the process ends.
        let done = tokio::task::spawn_blocking(move || model.engine.join()).await;
        done.map_err(Exit::failure)?;
    }
    info!("stopped");
    Ok(())
}

type Loaded = tokio::sync::oneshot::Receiver<Result<ChatModel, Exit>>;

fn load_on_thread(
    opened: Opened,
    engine: EngineConfig,
    names: Vec<String>,
    (output, warm): (OutputFormat, Vec<WarmRequest>),
    readiness: &Arc<Readiness>,
) -> Result<Loaded, Exit> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let readiness = Arc::clone(readiness);
    let work = move || {
        let result = opened.load(engine, names, &Report { signals: Signals::Stdout, bar: true }, &mut |p| {
            readiness.progress(p.bytes_done, p.bytes_total);
        });
        let result = result.and_then(|model| {
            let model = model.with_output(output);
            output_signal(output).emit();
            warm_up(&model, &warm)?;
            Ok(model)
        });
        // Nobody listens any more if the server was stopped meanwhile.
        let _ = sender.send(result);
    };
    std::thread::Builder::new().name("mach-load".into()).spawn(work).map_err(Exit::failure)?;
    Ok(receiver)
}

fn output_signal(output: OutputFormat) -> Signal {
    Signal::new("output")
        .with("tool_call_parser", output.tools.map_or("none", |format| format.name()))
        .with("reasoning_parser", output.reasoning.map_or("none", |format| format.name()))
}

fn warm_up(model: &ChatModel, prefixes: &[WarmRequest]) -> Result<(), Exit> {
    for prefix in prefixes {
        let report = mach_server::warm(model, prefix)
            .map_err(|e| Exit::input(format!("--warm-prefix: {}", e.message)))?;
        Signal::new("warm_prefix")
            .with("key", report.prefix.key)
            .with("tokens", report.prefix.tokens)
            .with("already_warm", report.already_warm)
            .with("seconds", format!("{:.3}", report.seconds))
            .emit();
    }
    Ok(())
}

/// Resolves at SIGTERM, SIGINT or SIGHUP. A second signal ends the process at once.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static, Exit> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut signals = vec![
        signal(SignalKind::terminate()).map_err(Exit::failure)?,
        signal(SignalKind::interrupt()).map_err(Exit::failure)?,
    ];
    // A server started by `nohup` is to outlive its terminal.
    if !hangup_is_ignored() {
        signals.push(signal(SignalKind::hangup()).map_err(Exit::failure)?);
    }
    Ok(async move {
        any(&mut signals).await;
        info!("stopping");
        tokio::spawn(async move {
            any(&mut signals).await;
            std::process::exit(130);
        });
    })
}

/// Resolves when one of the signals comes.
async fn any(signals: &mut [tokio::signal::unix::Signal]) {
    std::future::poll_fn(|context| {
        let came = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if came { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Whether the process was started with SIGHUP ignored; where the system does not tell, it was not.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use mach_server::Hosts;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ServeArgs,
    }

    fn check(line: &str) -> Result<ServeConfig, Exit> {
        let words = std::iter::once("mach-serve").chain(line.split(' '));
        let args = Cli::try_parse_from(words).unwrap().args;
        args.model.clone().validate()?;
        validate(&args)
    }

    #[test]
    fn a_reachable_address_needs_a_key() {
        assert_eq!(check("demo --host 0.0.0.0").unwrap_err().code, 2);
        assert!(check("demo --host 0.0.0.0 --api-key k").is_ok());
        assert!(check("demo --host localhost").unwrap().address.ip().is_loopback());
        assert!(check("demo --host [::1]").is_ok());
        assert!(check("demo --host 0.0.0.0 --allow-unauthenticated").is_ok());
        assert!(check("demo --host ::1").is_ok());
        assert!(check("demo --api-key=").is_err());
    }

    #[test]
    fn amounts_of_memory_are_numbers() {
        assert!(check("demo --streaming --expert-cache-gb 0.5 --wired-gb 3 --memory-gb 4").is_ok());
        let words = |line: &'static str| std::iter::once("mach-serve").chain(line.split(' '));
        for line in [
            "demo --memory-gb lots",
            "demo --expert-cache-gb -1",
            "demo --wired-gb NaN",
            "demo --streaming --no-streaming",
            "demo --bank-eviction belady",
            "demo --io mmap",
        ] {
            assert!(Cli::try_parse_from(words(line)).is_err(), "{line}");
        }
    }

    #[test]
    fn what_is_not_built_or_makes_no_sense_is_refused() {
        for line in [
            "--backend openai",
            "--queue-timeout=-1",
            "--request-timeout NaN",
            "--cors-origin example.org",
            "--allowed-hosts http://example.org",
            "--write-timeout=-1",
            "--max-head-kib 1000000",
            "--request-memory-mib 8",
        ] {
            assert_eq!(check(&format!("demo {line}")).unwrap_err().code, 2, "{line}");
        }
        let config = check("demo --backend dflash --queue-timeout 0.5 --cors-origin *").unwrap();
        assert_eq!(config.engine.queue_timeout, Some(Duration::from_millis(500)));
        assert_eq!((config.engine.request_timeout, config.server.cors), (None, Some(Origins::Any)));
    }

    #[test]
    fn names_of_hosts_are_asked_for_or_follow_from_the_address() {
        let hosts = |line: &str| check(&format!("demo {line}")).unwrap().server.allowed_hosts;
        let named = |names: &[&str]| {
            Some(Hosts::parse(&names.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap())
        };
        assert_eq!(hosts("--host 127.0.0.1"), None);
        assert_eq!(
            hosts("--allowed-hosts a,*.b.example --allowed-hosts c"),
            named(&["a", "*.b.example", "c"])
        );
        assert_eq!(hosts("--host localhost"), named(&["localhost"]));
        assert_eq!(hosts("--host localhost --api-key k"), None);
        assert_eq!(hosts("--host localhost --api-key k --allowed-hosts a"), named(&["a", "localhost"]));
    }

    #[test]
    fn limits_must_not_be_zero() {
        for flag in [
            "--max-queue",
            "--max-batch",
            "--max-sequences",
            "--max-body-mib",
            "--max-head-kib",
            "--max-connections",
            "--max-concurrent-per-key",
            "--max-unread-mib",
            "--prefill-chunk",
            "--prefill-interleave",
            "--max-context",
        ] {
            assert_eq!(check(&format!("demo {flag} 0")).unwrap_err().code, 2, "{flag}");
        }
    }
}
