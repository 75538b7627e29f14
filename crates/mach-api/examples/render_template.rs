//! Renders chat templates for comparison with other renderers: a JSON object a line in, a JSON object a line out.
//!
//! In: `template`, `special_tokens`, and `requests`, each with `messages`, `tools`, `kwargs`. Out: `error` of the
//! template, or `results`, each with `text` or `error`.

use std::io::{BufRead, Write};

use mach_api::chat::{ChatRequest, Limits};
use mach_api::{ChatTemplate, TemplateError};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let job: Value = serde_json::from_str(&line?)?;
        let special = job["special_tokens"].as_object().cloned().unwrap_or_default();
        let answer = match ChatTemplate::compile(job["template"].as_str().unwrap_or_default(), special) {
            Ok(template) => {
                let requests = job["requests"].as_array().map(Vec::as_slice).unwrap_or_default();
                json!({"results": requests.iter().map(|request| render(&template, request)).collect::<Vec<_>>()})
            }
            Err(error) => json!({"error": error.to_string()}),
        };
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

fn render(template: &ChatTemplate, request: &Value) -> Value {
    let body = json!({
        "model": "m",
        "messages": request["messages"],
        "tools": request["tools"],
        "chat_template_kwargs": request["kwargs"],
    });
    let request = match ChatRequest::parse(body.to_string().as_bytes(), &Limits::default()) {
        Ok(request) => request,
        Err(error) => return json!({"error": format!("request: {error:?}")}),
    };
    match template.render(
        &request.conversation.messages,
        &request.conversation.tools,
        &request.conversation.template_kwargs,
    ) {
        Ok(text) => json!({"text": text}),
        Err(TemplateError::Refused(reason)) => json!({"error": reason, "refused": true}),
        Err(error) => json!({"error": error.to_string()}),
    }
}
