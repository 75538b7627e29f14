//! Exit codes: 0 done, 1 failed while running, 2 the input (arguments, checkpoint) cannot be used.

use std::process::ExitCode;

/// Why the program ends early.
#[derive(Debug)]
pub struct Exit {
    /// Exit code.
    pub code: u8,
    /// Words for a person.
    pub message: String,
}

impl Exit {
    /// Arguments or checkpoint cannot be used.
    pub fn input(message: impl std::fmt::Display) -> Self {
        Self { code: 2, message: message.to_string() }
    }

    /// Something failed on the way.
    pub fn failure(message: impl std::fmt::Display) -> Self {
        Self { code: 1, message: message.to_string() }
    }
}

/// Runs a command and turns its result into the exit code, the message going to stderr.
pub fn run(command: impl FnOnce() -> Result<(), Exit>) -> ExitCode {
    mach_server::allocator::tune();
    match command() {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            eprintln!("error: {}", exit.message);
            ExitCode::from(exit.code)
        }
    }
}
