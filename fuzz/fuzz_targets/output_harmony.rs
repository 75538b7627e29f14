//! Any text as an answer in this format.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mach_api::output::{ReasoningFormat, ToolFormat};

fuzz_target!(|bytes: &[u8]| mach_fuzz::answer(ToolFormat::Harmony, ReasoningFormat::Harmony, bytes));
