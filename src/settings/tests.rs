use std::io::Write as _;

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: Option<String>,
    #[arg(long)]
    config: Option<String>,
    #[arg(long, default_value_t = 8080)]
    port: u16,
    #[arg(long, conflicts_with = "no_streaming")]
    streaming: bool,
    #[arg(long)]
    no_streaming: bool,
    #[arg(long, alias = "max-sequences")]
    max_batch: Option<usize>,
    #[arg(long)]
    served_model_name: Vec<String>,
    #[arg(long)]
    bank_eviction: Option<String>,
}

fn ask(words: &str, variables: &[(&str, &str)]) -> Result<(Cli, Vec<String>), String> {
    use clap::CommandFactory as _;
    let arguments = std::iter::once("mach").chain(words.split(' ').filter(|w| !w.is_empty()));
    let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let layered =
        layer(Cli::command(), arguments.map(OsString::from).collect(), variables).map_err(|e| e.message)?;
    let cli = Cli::try_parse_from(layered.arguments).map_err(|e| e.to_string())?;
    Ok((cli, layered.notices))
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let file = file("port = 3\nmax-batch = 3\nserved_model_name = [\"a\", \"b\"]\nstreaming = true\n");
    let config = file.path().to_str().unwrap();
    let (cli, notices) =
        ask("ckpt --port 1", &[("MACH_PORT", "2"), ("MACH_MAX_BATCH", "2"), ("MACH_CONFIG", config)])
            .unwrap();
    assert_eq!((cli.port, cli.max_batch, cli.streaming), (1, Some(2), true));
    assert_eq!(
        (cli.served_model_name, notices),
        (vec!["a".to_owned(), "b".to_owned()], Vec::<String>::new())
    );
    assert_eq!(ask("", &[]).unwrap().0.port, 8080);
    let (cli, _) = ask(&format!("--config {config}"), &[("MACH_SERVED_MODEL_NAME", "x, y")]).unwrap();
    assert_eq!((cli.port, cli.served_model_name), (3, vec!["x".to_owned(), "y".to_owned()]));
    // An alias on the command line settles the flag too.
    assert_eq!(ask("--max-sequences=7", &[("MACH_MAX_BATCH", "2")]).unwrap().0.max_batch, Some(7));
    assert_eq!(ask("", &[("MACH_CHECKPOINT", "there")]).unwrap().0.checkpoint.as_deref(), Some("there"));
    let (cli, _) = ask("--port 1 here", &[("MACH_CHECKPOINT", "there")]).unwrap();
    assert_eq!(cli.checkpoint.as_deref(), Some("here"));
}

#[test]
fn what_a_higher_layer_contradicts_is_dropped_and_told() {
    let (cli, notices) = ask("--no-streaming", &[("MACH_STREAMING", "1")]).unwrap();
    assert!(cli.no_streaming && !cli.streaming);
    assert_eq!(notices, ["MACH_STREAMING: --no-streaming stands against it"]);
    // Within one layer it is an error, as on the command line.
    let error = ask("", &[("MACH_STREAMING", "1"), ("MACH_NO_STREAMING", "yes")]).unwrap_err();
    assert!(error.contains("--no-streaming") && error.contains("--streaming"), "{error}");
    // A switch that is off settles nothing but itself.
    let file = file("streaming = true\n");
    let config = file.path().to_str().unwrap();
    let (cli, _) = ask("", &[("MACH_STREAMING", "off"), ("MACH_CONFIG", config)]).unwrap();
    assert!(!cli.streaming);
}

#[test]
fn names_and_values_that_cannot_be_are_named() {
    for (text, words) in [
        ("prot = 3", "`prot` is no setting"),
        ("port = {}", "`port` must be"),
        ("port = [1, 2]", "takes one value"),
        ("streaming = 3", "neither true nor false"),
        ("config = \"x\"", "cannot be set"),
        ("port = ", "--config"),
    ] {
        let file = file(text);
        let error = ask(&format!("--config {}", file.path().display()), &[]).unwrap_err();
        assert!(error.contains(words) && error.contains(file.path().to_str().unwrap()), "{error}");
    }
    assert!(ask("--config /no/such/file", &[]).unwrap_err().contains("/no/such/file"));
    let (_, notices) = ask("", &[("MACH_PROT", "1"), ("MACH_PORT", "")]).unwrap();
    assert_eq!(notices, ["MACH_PROT is no setting of this command"]);
    assert!(ask("", &[("MACH_PORT", "many")]).unwrap_err().contains("--port"));
    assert!(ask("", &[("MACH_STREAMING", "maybe")]).unwrap_err().contains("MACH_STREAMING"));
}

#[test]
fn names_of_earlier_servers_are_read_with_a_notice() {
    let (cli, notices) =
        ask("", &[("LME_CONTINUOUS_BATCHING_MAX_B", "3"), ("LME_BANK_EVICTION_POLICY", "lru")]).unwrap();
    assert_eq!((cli.max_batch, cli.bank_eviction.as_deref()), (Some(3), Some("lru")));
    let told = [
        "LME_BANK_EVICTION_POLICY is read as --bank-eviction lru",
        "LME_CONTINUOUS_BATCHING_MAX_B is read as --max-batch 3",
    ];
    assert_eq!(notices, told);
    let both = [("LME_CONTINUOUS_BATCHING_MAX_B", "3"), ("MACH_MAX_BATCH", "5")];
    let (cli, notices) = ask("", &both).unwrap();
    assert_eq!(cli.max_batch, Some(5));
    assert!(notices[0].contains("is ignored"), "{notices:?}");
    for name in ["TRANSIENT_PREFILL", "DECODE_RESIDENCY", "DISK_KV_EVICTION_POLICY", "NO_SUCH_THING"] {
        let (_, notices) = ask("", &[(format!("LME_{name}").as_str(), "1")]).unwrap();
        assert!(notices.len() == 1 && notices[0].starts_with(&format!("LME_{name}=1: ")), "{notices:?}");
    }
}
