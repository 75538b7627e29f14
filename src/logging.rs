//! Logs on stderr; stdout is for startup signals and answers.

use std::io::IsTerminal;

use tracing_subscriber::filter::LevelFilter;

use crate::args::{LogArgs, LogFormat, LogLevel};

/// Installs the log subscriber for the level that was asked for, or else the `usual` one; a second call changes nothing.
pub(crate) fn init(args: &LogArgs, usual: LogLevel) {
    let level = match args.log_level.unwrap_or(usual) {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    let installed = match args.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Err(error) = installed {
        eprintln!("warning: logging was set up before: {error}");
    }
}
