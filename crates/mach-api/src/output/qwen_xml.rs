//! Qwen3-Coder and Qwen3.5:
//!
//! ```text
//! <tool_call>
//! <function=get_weather>
//! <parameter=city>
//! Paris
//! </parameter>
//! </function>
//! </tool_call>
//! ```
//!
//! Values are typed by the tool's schema.

use super::tags::{Head, Tags};

pub(super) static TAGS: Tags = Tags {
    wrapper_open: &["<tool_call>"],
    wrapper_close: &["</tool_call>"],
    bare: true,
    call_open: "<function=",
    call_close: "</function>",
    parameter_open: "<parameter=",
    parameter_close: "</parameter>",
    lines: true,
    head,
};

fn head(text: &str) -> Option<Head> {
    let name = text.trim().trim_matches('"');
    (!name.is_empty()).then(|| Head { name: name.to_owned(), string: None })
}
