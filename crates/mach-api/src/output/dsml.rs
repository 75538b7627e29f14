//! DeepSeek V4's DSML (V3.2 calls the wrapper `function_calls`):
//!
//! ```text
//! <｜DSML｜tool_calls>
//! <｜DSML｜invoke name="get_weather">
//! <｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>
//! <｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
//! </｜DSML｜invoke>
//! </｜DSML｜tool_calls>
//! ```

use super::tags::{Head, Tags};

pub(super) static TAGS: Tags = Tags {
    wrapper_open: &["<｜DSML｜tool_calls>", "<｜DSML｜function_calls>"],
    wrapper_close: &["</｜DSML｜tool_calls>", "</｜DSML｜function_calls>"],
    bare: true,
    call_open: "<｜DSML｜invoke",
    call_close: "</｜DSML｜invoke>",
    parameter_open: "<｜DSML｜parameter",
    parameter_close: "</｜DSML｜parameter>",
    lines: false,
    head,
};

fn head(text: &str) -> Option<Head> {
    let name = attribute(text, "name")?.to_owned();
    let string = match attribute(text, "string") {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => None,
    };
    Some(Head { name, string })
}

fn attribute<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = head;
    loop {
        rest = rest.trim_start();
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = after.split_once('"')?;
        if key == name {
            return Some(value);
        }
        rest = after;
    }
}
