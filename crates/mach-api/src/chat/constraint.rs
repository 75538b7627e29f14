//! What an answer must look like: `tool_choice`, `response_format`, `grammar`.

use serde_json::{Map, Value, json};

use super::Limits;
use crate::ApiError;
use crate::fields::{Fields, kind};

/// Whether tools are called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model sees fit.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// At least once.
    Required,
    /// This function, once.
    Function(String),
    /// One of these functions, though the template shows all; `required`: at least once.
    Allowed {
        /// Names of the functions that may be called.
        names: Vec<String>,
        /// At least one is called.
        required: bool,
    },
}

/// What the content must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum ResponseFormat {
    /// JSON that meets a schema; with the path of the field that gave it, and whether everything in it must be enforced.
    Json(Value, &'static str, bool),
    /// A grammar in llguidance's variant of Lark.
    Lark(String),
    /// A regular expression.
    Regex(String),
}

impl ToolChoice {
    /// Takes `tool_choice`; functions must be among `tools`.
    pub(crate) fn parse(fields: &mut Fields, tools: &[Value]) -> Result<Self, ApiError> {
        let Some(value) = fields.take("tool_choice") else { return Ok(Self::Auto) };
        let choice = match value {
            Value::String(name) => match name.as_str() {
                "auto" => Self::Auto,
                "none" => Self::None,
                // `any` is Mistral's word.
                "required" | "any" => Self::Required,
                _ => return Err(fields.error("tool_choice", Self::KNOWN)),
            },
            Value::Object(_) => {
                let choice = fields.nested("tool_choice", value)?;
                Self::of_object(choice)?
            }
            _ => return Err(fields.error("tool_choice", Self::KNOWN)),
        };
        choice.check(fields, "tool_choice", tools)
    }

    /// `{"type": "function", "function": {"name": ...}}`, or `{"type": "allowed_tools", "allowed_tools": {"mode": ...,
    /// "tools": [...]}}`; in both the inner object may be left out, as the Responses API does.
    fn of_object(mut choice: Fields) -> Result<Self, ApiError> {
        match choice.string("type")?.as_deref() {
            None | Some("function") => {
                let mut function = match choice.take("function") {
                    Some(function) => choice.nested("tool_choice.function", function)?,
                    None => choice,
                };
                Ok(Self::Function(function.required_string("name")?))
            }
            Some("allowed_tools") => {
                let mut allowed = match choice.take("allowed_tools") {
                    Some(allowed) => choice.nested("tool_choice.allowed_tools", allowed)?,
                    None => choice,
                };
                let required = match allowed.string("mode")?.as_deref() {
                    None | Some("auto") => false,
                    Some("required") => true,
                    Some(_) => return Err(allowed.error("mode", "must be `auto` or `required`")),
                };
                let list = allowed.array("tools")?.ok_or_else(|| allowed.error("tools", "is required"))?;
                let name = |(i, tool): (usize, Value)| {
                    let mut tool = allowed.nested(allowed.path(&format!("tools[{i}]")), tool)?;
                    super::message::function_type(&mut tool)?;
                    let mut function = match tool.take("function") {
                        Some(function) => tool.nested(tool.path("function"), function)?,
                        None => tool,
                    };
                    function.required_string("name")
                };
                let names: Vec<String> =
                    list.into_iter().enumerate().map(name).collect::<Result<_, ApiError>>()?;
                Ok(Self::Allowed { names, required })
            }
            Some("none") => Ok(Self::None),
            Some("auto") => Ok(Self::Auto),
            Some("required" | "any") => Ok(Self::Required),
            Some(_) => Err(choice.error("type", "must be `function` or `allowed_tools`")),
        }
    }

    /// The value of `function_call`, which goes with `functions`.
    pub(super) fn of_function_call(fields: &Fields, value: Value, tools: &[Value]) -> Result<Self, ApiError> {
        let choice = match value {
            Value::String(name) if name == "auto" => Self::Auto,
            Value::String(name) if name == "none" => Self::None,
            Value::Object(_) => {
                Self::Function(fields.nested("function_call", value)?.required_string("name")?)
            }
            _ => return Err(fields.error("function_call", "must be `auto`, `none` or a function")),
        };
        choice.check(fields, "function_call", tools)
    }

    /// Functions must be among `tools`.
    pub(crate) fn check(self, fields: &Fields, field: &str, tools: &[Value]) -> Result<Self, ApiError> {
        let missing = |name: &&String| !tools.iter().any(|tool| function_name(tool) == Some(name));
        let (unknown, at) = match &self {
            Self::Required if tools.is_empty() => {
                return Err(fields.error(field, "`required` needs `tools`"));
            }
            Self::Allowed { names, .. } if names.is_empty() => {
                return Err(fields.error(field, "`allowed_tools` must name a tool"));
            }
            Self::Function(name) if field == "tool_choice" => {
                (Some(name).filter(missing), format!("{field}.function.name"))
            }
            Self::Function(name) => (Some(name).filter(missing), format!("{field}.name")),
            Self::Allowed { names, .. } => {
                (names.iter().find(missing), format!("{field}.allowed_tools.tools"))
            }
            _ => (None, String::new()),
        };
        match unknown {
            None => Ok(self),
            Some(name) => {
                let name: String = name.chars().take(80).collect();
                Err(fields.error(&at, format!("`{name}` is not among the tools")))
            }
        }
    }

    /// Whether an answer must call a function.
    pub fn forces(&self) -> bool {
        matches!(self, Self::Required | Self::Function(_) | Self::Allowed { required: true, .. })
    }

    /// Whether a function may be called.
    pub fn admits(&self, function: &str) -> bool {
        match self {
            Self::None => false,
            Self::Auto | Self::Required => true,
            Self::Function(name) => name == function,
            Self::Allowed { names, .. } => names.iter().any(|name| name == function),
        }
    }

    const KNOWN: &'static str = "must be `auto`, `none`, `required`, a function or `allowed_tools`";
}

/// The name of a tool that was checked.
pub fn function_name(tool: &Value) -> Option<&str> {
    tool.get("function")?.get("name")?.as_str()
}

impl ResponseFormat {
    /// Takes `response_format`, `grammar` and vLLM's guided fields; at most one of them may ask for something.
    pub(super) fn parse(fields: &mut Fields, limits: &Limits) -> Result<Option<Self>, ApiError> {
        let format = match fields.take("response_format") {
            None => None,
            Some(value) => from_object(fields, value, limits)?,
        };
        let guided = super::guided::parse(fields, limits)?;
        if format.is_some() && guided.is_some() {
            return Err(fields.error("response_format", "cannot be combined with a guided answer"));
        }
        let format = format.or(guided);
        let Some(value) = fields.take("grammar") else { return Ok(format) };
        if format.is_some() {
            return Err(fields.error("grammar", "cannot be combined with `response_format`"));
        }
        let (syntax, text) = match value {
            Value::String(text) => ("lark".to_owned(), text),
            value => {
                let mut object = fields.nested("grammar", value)?;
                let syntax = object.required_string("syntax")?;
                let text = object.required_string("definition")?;
                object.end(&[])?;
                (syntax, text)
            }
        };
        check_grammar("grammar", &text, limits)?;
        match syntax.as_str() {
            "lark" => Ok(Some(Self::Lark(text))),
            "regex" => Ok(Some(Self::Regex(text))),
            _ => Err(fields.error("grammar.syntax", "must be `lark` or `regex`")),
        }
    }
}

/// Refuses grammars whose size alone would make them slow.
pub(super) fn check_grammar(path: &str, text: &str, limits: &Limits) -> Result<(), ApiError> {
    if text.trim().is_empty() {
        return Err(ApiError::field(path, "must not be empty"));
    }
    if text.len() > limits.grammar_bytes {
        let most = limits.grammar_bytes;
        return Err(ApiError::field(path, format!("must be at most {most} bytes long")));
    }
    if nesting(text) > limits.schema_depth {
        let most = limits.schema_depth;
        return Err(ApiError::field(path, format!("must not nest deeper than {most} brackets")));
    }
    Ok(())
}

/// Takes `response_format` apart.
fn from_object(body: &Fields, value: Value, limits: &Limits) -> Result<Option<ResponseFormat>, ApiError> {
    let mut format = body.nested("response_format", value)?;
    let out = match format.required_string("type")?.as_str() {
        "text" => None,
        // Some servers take a schema here.
        "json_object" => {
            let schema = format.take("schema").unwrap_or_else(|| json!({"type": "object"}));
            check_schema("response_format.schema", &schema, limits)?;
            Some(ResponseFormat::Json(schema, "response_format", false))
        }
        "json_schema" => {
            // Some clients leave the inner object out.
            let mut given = match format.take("json_schema") {
                Some(given) => body.nested("response_format.json_schema", given)?,
                None if format.has("schema") => {
                    let given = json!({"name": format.take("name"), "schema": format.take("schema")});
                    body.nested("response_format", given)?
                }
                None => return Err(format.error("json_schema", "is required")),
            };
            given.string("name")?;
            given.string("description")?;
            let strict = given.bool("strict")?.unwrap_or(false);
            let schema = given.take("schema").ok_or_else(|| given.error("schema", "is required"))?;
            given.end(&[])?;
            let path = "response_format.json_schema.schema";
            check_schema(path, &schema, limits)?;
            Some(ResponseFormat::Json(schema, path, strict))
        }
        _ => return Err(format.error("type", "must be `text`, `json_object` or `json_schema`")),
    };
    format.end(&[])?;
    Ok(out)
}

/// Refuses schemas whose size alone would make them slow.
pub(crate) fn check_schema(path: &str, schema: &Value, limits: &Limits) -> Result<(), ApiError> {
    if !matches!(schema, Value::Object(_) | Value::Bool(_)) {
        return Err(ApiError::field(path, format!("must be an object, not {}", kind(schema))));
    }
    let (depth, values) = measure(schema);
    if depth > limits.schema_depth {
        let most = limits.schema_depth;
        return Err(ApiError::field(path, format!("nests {depth} deep; at most {most} are supported")));
    }
    if values > limits.schema_values {
        let most = limits.schema_values;
        return Err(ApiError::field(path, format!("holds {values} values; at most {most} are supported")));
    }
    Ok(())
}

/// Depth and number of values.
fn measure(value: &Value) -> (usize, usize) {
    let (mut depth, mut values) = (0, 0);
    let mut open = vec![(value, 1)];
    while let Some((value, at)) = open.pop() {
        depth = depth.max(at);
        values += 1;
        match value {
            Value::Array(list) => open.extend(list.iter().map(|item| (item, at + 1))),
            Value::Object(map) => open.extend(map.values().map(|item| (item, at + 1))),
            _ => {}
        }
    }
    (depth, values)
}

/// How deep brackets nest in a grammar, those inside its strings counted as well.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The texts that a schema allows, if they are few: an `enum` of strings, or an object whose properties are all such. What a
/// proposer of labels goes by.
pub(super) fn few_answers(schema: &Value, most: usize) -> Option<Vec<String>> {
    fn values(schema: &Value, most: usize, depth: usize) -> Option<Vec<String>> {
        let schema = schema.as_object().filter(|_| depth > 0)?;
        if let Some(list) = schema.get("enum").and_then(Value::as_array) {
            return (list.len() <= most).then(|| list.iter().map(ToString::to_string).collect());
        }
        if let Some(value) = schema.get("const") {
            return Some(vec![value.to_string()]);
        }
        if schema.get("type").and_then(Value::as_str) == Some("boolean") {
            return Some(vec!["true".to_owned(), "false".to_owned()]);
        }
        let properties = schema.get("properties").and_then(Value::as_object)?;
        object(properties, most, depth)
    }
    fn object(properties: &Map<String, Value>, most: usize, depth: usize) -> Option<Vec<String>> {
        let mut all = vec!["{".to_owned()];
        for (i, (name, schema)) in properties.iter().enumerate() {
            let values = values(schema, most, depth - 1)?;
            if all.len() * values.len() > most {
                return None;
            }
            let key = format!("{}{}: ", if i > 0 { ", " } else { "" }, Value::from(name.as_str()));
            let with = |start: &String| values.iter().map(|v| format!("{start}{key}{v}")).collect::<Vec<_>>();
            all = all.iter().flat_map(with).collect();
        }
        Some(all.into_iter().map(|text| text + "}").collect())
    }
    values(schema, most, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_answers_are_listed() {
        let labels = json!({"enum": ["a", "b\n"]});
        assert_eq!(few_answers(&labels, 9), Some(vec!["\"a\"".into(), "\"b\\n\"".into()]));
        let object = json!({"type": "object", "properties": {"x": labels, "y": {"type": "boolean"}}});
        let all = few_answers(&object, 9).unwrap();
        assert_eq!((all.len(), all[1].as_str()), (4, "{\"x\": \"a\", \"y\": false}"));
        assert_eq!(few_answers(&object, 3), None);
        assert_eq!(few_answers(&json!({"type": "string"}), 9), None);
    }

    #[test]
    fn depth_and_size_are_measured() {
        assert_eq!(measure(&json!({"a": [1, {"b": 2}]})), (4, 5));
        assert_eq!(nesting("a(b[c]{d})("), 2);
    }
}
