//! The functions that a request offers: `tools`, and OpenAI's older `functions` with `function_call`.

use serde_json::{Value, json};

use super::constraint::check_schema;
use super::message::function_type;
use super::{Limits, ToolChoice};
use crate::ApiError;
use crate::fields::Fields;

/// What may be called.
#[derive(Debug, Default)]
pub(super) struct Functions {
    /// Tools as templates take them.
    pub(super) tools: Vec<Value>,
    /// Whether they are called.
    pub(super) choice: ToolChoice,
    /// They came as `functions`: calls go back as `function_call`, one an answer.
    pub(super) legacy: bool,
}

impl Functions {
    /// Takes `tools` and `tool_choice`, or `functions` and `function_call`.
    pub(super) fn parse(fields: &mut Fields, limits: &Limits) -> Result<Self, ApiError> {
        let tools = parse_tools(fields, limits)?;
        let older = parse_functions(fields, limits)?;
        let legacy = !older.is_empty();
        if legacy && !tools.is_empty() {
            return Err(fields.error("functions", "cannot be combined with `tools`"));
        }
        let tools = if legacy { older } else { tools };
        let choice = match fields.take("function_call") {
            Some(given) if legacy => {
                if fields.take("tool_choice").is_some() {
                    return Err(fields.error("tool_choice", "cannot be combined with `function_call`"));
                }
                ToolChoice::of_function_call(fields, given, &tools)?
            }
            Some(given) if given == "none" || given == "auto" => ToolChoice::parse(fields, &tools)?,
            Some(_) => return Err(fields.error("function_call", "needs `functions`")),
            None => ToolChoice::parse(fields, &tools)?,
        };
        Ok(Self { tools, choice, legacy })
    }
}

/// Takes `tools`.
pub(crate) fn parse_tools(fields: &mut Fields, limits: &Limits) -> Result<Vec<Value>, ApiError> {
    let tools = fields.array("tools")?.unwrap_or_default();
    if tools.len() > limits.tools {
        return Err(fields.error("tools", format!("must hold at most {} tools", limits.tools)));
    }
    for (i, tool) in tools.iter().enumerate() {
        let path = format!("tools[{i}]");
        let mut tool = fields.nested(path.as_str(), tool.clone())?;
        function_type(&mut tool)?;
        let function = tool.take("function").ok_or_else(|| tool.error("function", "is required"))?;
        check_function(fields, format!("{path}.function"), function, limits)?;
    }
    Ok(tools)
}

/// Takes `functions`, as tools.
fn parse_functions(fields: &mut Fields, limits: &Limits) -> Result<Vec<Value>, ApiError> {
    let functions = fields.array("functions")?.unwrap_or_default();
    if functions.len() > limits.tools {
        return Err(fields.error("functions", format!("must hold at most {} functions", limits.tools)));
    }
    let tool = |(i, function): (usize, Value)| {
        check_function(fields, format!("functions[{i}]"), function.clone(), limits)?;
        Ok(json!({"type": "function", "function": function}))
    };
    functions.into_iter().enumerate().map(tool).collect()
}

/// Templates see a function as it was given, so that only what the server itself reads is checked.
fn check_function(body: &Fields, path: String, function: Value, limits: &Limits) -> Result<(), ApiError> {
    let mut function = body.nested(path, function)?;
    if function.required_string("name")?.is_empty() {
        return Err(function.error("name", "must not be empty"));
    }
    function.string("description")?;
    if let Some(parameters) = function.object("parameters")? {
        check_schema(&function.path("parameters"), &parameters.into(), limits)?;
    }
    function.bool("strict")?;
    Ok(())
}
