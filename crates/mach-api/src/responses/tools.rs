//! Tools as this API writes them, and the names of those that come in groups.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::ApiError;
use crate::chat::{Limits, ToolChoice};
use crate::fields::Fields;

/// Types of tools that a choice may name and that are not called here.
const HOSTED: &[&str] = &[
    "apply_patch",
    "code_interpreter",
    "computer_use_preview",
    "custom",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "shell",
    "tool_search",
];

/// What may be called.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// Tools as templates take them.
    pub(super) functions: Vec<Value>,
    pub(super) names: Names,
}

/// Names of functions that come in groups. The model knows them by their own, or behind that of the group where another function has the
/// same.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// Group and name of what the model calls so.
    originals: HashMap<String, (String, String)>,
    /// How the model calls this name of this group.
    flat: HashMap<(String, String), String>,
}

impl Names {
    fn insert(&mut self, group: &str, name: &str, alone: bool) -> String {
        let flat = if alone { name.to_owned() } else { joined(group, name) };
        let original = (group.to_owned(), name.to_owned());
        self.originals.insert(flat.clone(), original.clone());
        self.flat.insert(original, flat.clone());
        flat
    }

    /// Name that the model knows a function of a group by.
    pub(super) fn flat(&self, group: &str, name: &str) -> String {
        let known = self.flat.get(&(group.to_owned(), name.to_owned()));
        known.cloned().unwrap_or_else(|| joined(group, name))
    }

    /// Group and name in the request.
    pub(super) fn original<'a>(&'a self, flat: &'a str) -> (Option<&'a str>, &'a str) {
        let found = self.originals.get(flat);
        found.map_or((None, flat), |(group, name)| (Some(group.as_str()), name.as_str()))
    }

    /// Gives a function of a group the name that the model knows.
    fn flatten(&self, object: &mut Map<String, Value>) {
        if let Some(Value::String(group)) = object.remove("namespace")
            && let Some(Value::String(name)) = object.get_mut("name")
        {
            *name = self.flat(&group, name);
        }
    }
}

fn joined(group: &str, name: &str) -> String {
    format!("{group}__{name}")
}

impl Tools {
    /// Takes `tools`. What OpenAI would run itself, or what has no schema, is left out, and noted.
    pub(super) fn parse(fields: &Fields, given: Vec<Value>, limits: &Limits) -> Result<Self, ApiError> {
        let mut tools = Self::default();
        let mut groups = Vec::new();
        for (i, tool) in given.into_iter().enumerate() {
            tools.add(fields, &format!("tools[{i}]"), tool, (None, &mut groups), limits)?;
        }
        tools.name(groups);
        Ok(tools)
    }

    fn add(
        &mut self,
        body: &Fields,
        path: &str,
        tool: Value,
        (group, groups): (Option<&str>, &mut Vec<Option<String>>),
        limits: &Limits,
    ) -> Result<(), ApiError> {
        let mut tool = body.nested(path, tool)?;
        match (tool.required_string("type")?.as_str(), group) {
            ("function", _) => {
                self.function(body, tool, limits)?;
                groups.push(group.map(str::to_owned));
                Ok(())
            }
            ("namespace", None) => {
                let name = tool.required_string("name")?;
                let list = tool.array("tools")?.unwrap_or_default();
                tool.end(&["description"])?;
                for (i, tool) in list.into_iter().enumerate() {
                    self.add(body, &format!("{path}.tools[{i}]"), tool, (Some(&name), &mut *groups), limits)?;
                }
                Ok(())
            }
            (kind, _) => {
                let kind: String = kind.chars().take(40).collect();
                body.ignore(&format!("{path}({kind})"));
                Ok(())
            }
        }
    }

    /// Gives the functions of groups the names that the model is to know; `groups` has one entry a function.
    fn name(&mut self, groups: Vec<Option<String>>) {
        let name = |tool: &Value| crate::chat::function_name(tool).unwrap_or_default().to_owned();
        let mut known: HashMap<String, usize> = HashMap::new();
        for tool in &self.functions {
            *known.entry(name(tool)).or_default() += 1;
        }
        for (tool, group) in self.functions.iter_mut().zip(groups) {
            let (Some(group), own) = (group, name(tool)) else { continue };
            let flat = self.names.insert(&group, &own, known.get(&own) == Some(&1));
            if let Some(place) = tool.pointer_mut("/function/name") {
                *place = flat.into();
            }
        }
    }

    fn function(&mut self, body: &Fields, mut tool: Fields, limits: &Limits) -> Result<(), ApiError> {
        if self.functions.len() == limits.tools {
            return Err(body.error("tools", format!("must hold at most {} tools", limits.tools)));
        }
        // Some clients write it as chats do.
        if let Some(inner) = tool.take("function") {
            tool = body.nested(tool.path("function"), inner)?;
        }
        let name = tool.required_string("name")?;
        if name.is_empty() {
            return Err(tool.error("name", "must not be empty"));
        }
        let mut function = Map::new();
        function.insert("name".into(), name.into());
        if let Some(description) = tool.string("description")? {
            function.insert("description".into(), description.into());
        }
        let parameters = Value::from(tool.object("parameters")?.unwrap_or_default());
        crate::chat::check_schema(&tool.path("parameters"), &parameters, limits)?;
        function.insert("parameters".into(), parameters);
        // What is not asked for does not lengthen the prompt.
        if tool.bool("strict")? == Some(true) {
            function.insert("strict".into(), true.into());
        }
        tool.end(&["defer_loading", "allowed_callers", "output_schema"])?;
        self.functions.push(json!({"type": "function", "function": function}));
        Ok(())
    }

    /// Takes `tool_choice`. A choice of what is not called here is none, and noted.
    pub(super) fn choice(&self, fields: &mut Fields) -> Result<ToolChoice, ApiError> {
        let Some(mut value) = fields.take("tool_choice") else { return Ok(ToolChoice::Auto) };
        let kind = value.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if HOSTED.contains(&kind.as_str()) || kind.starts_with("web_search") {
            fields.ignore(&format!("tool_choice({kind})"));
            return Ok(ToolChoice::Auto);
        }
        if let Some(object) = value.as_object_mut() {
            self.names.flatten(object);
            if let Some(Value::Array(list)) = object.get_mut("tools") {
                list.retain(|tool| tool.get("type").is_none_or(|kind| kind == "function"));
                list.iter_mut().filter_map(Value::as_object_mut).for_each(|tool| self.names.flatten(tool));
            }
        }
        fields.put("tool_choice", value);
        ToolChoice::parse(fields, &self.functions)
    }
}
