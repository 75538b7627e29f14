//! What a template takes, found by rendering small conversations when it is compiled.

use serde_json::{Map, Value as Json, json};

use super::ChatTemplate;
use super::conversation::{Arguments, REASONING, Shape};
use crate::Message;
use crate::chat::{Content, Role, ToolCall};

/// A word that no template writes by itself.
pub(super) const PROBE: &str = "a8f31c";

/// The shape that suits a template.
pub(super) fn shape(template: &ChatTemplate) -> Shape {
    let mut shape =
        Shape { developer_as_system: !template.source().contains("developer"), ..Shape::default() };
    let probe = Probe { template };
    for role in [Role::System, Role::Developer, Role::User, Role::Assistant, Role::Tool] {
        let all = Shape { walks_parts: vec![role], ..shape.clone() };
        if probe.walks_parts(&all, role) {
            shape.walks_parts.push(role);
        }
    }
    shape.arguments = probe.arguments(&shape);
    shape.null_content = probe.null_content(&shape);
    shape.broken_arguments = probe.broken_arguments(&shape);
    shape.reasoning = probe.reasoning(&shape);
    shape.short_ids = probe.short_ids(&shape);
    shape
}

struct Probe<'a> {
    template: &'a ChatTemplate,
}

/// A call of `probe`, which is also the tool there is.
fn call(text: &str) -> ToolCall {
    let arguments = serde_json::from_str::<Map<String, Json>>(text);
    ToolCall {
        // Some templates want nine letters and digits.
        id: Some("a8f31c000".into()),
        name: "probe".into(),
        broken: arguments.is_err(),
        arguments: arguments.unwrap_or_default(),
        text: Some(text.into()),
    }
}

fn turn_with_call(call: ToolCall) -> Vec<Message> {
    let mut assistant = Message::text(Role::Assistant, "");
    assistant.content = Content::None;
    let mut answer = Message::text(Role::Tool, "done");
    answer.tool_call_id = call.id.clone();
    assistant.tool_calls.push(call);
    vec![Message::text(Role::User, "question"), assistant, answer]
}

fn count(text: Option<&String>) -> usize {
    text.map_or(0, |text| text.matches(PROBE).count())
}

impl Probe<'_> {
    fn render(&self, shape: &Shape, messages: &[Message]) -> Option<String> {
        let with_tools = messages.iter().any(|m| !m.tool_calls.is_empty());
        let parameters =
            json!({"type": "object", "properties": {PROBE: {"type": "string", "description": "text"}}});
        let tool = json!({"type": "function", "function":
            {"name": "probe", "description": "looks", "parameters": parameters}});
        let tools = if with_tools { vec![tool] } else { Vec::new() };
        self.template.render_shape(shape, messages, &tools, &Map::new(), true).ok()
    }

    /// Whether it loops over content parts itself: a part's text comes out, and not as a printed list.
    fn walks_parts(&self, shape: &Shape, role: Role) -> bool {
        let mut message = Message::text(role, "");
        message.content = Content::Parts(vec![PROBE.to_owned()]);
        let messages = match role {
            Role::User => vec![message],
            Role::System | Role::Developer => vec![message, Message::text(Role::User, "question")],
            Role::Assistant => {
                vec![Message::text(Role::User, "question"), message, Message::text(Role::User, "more")]
            }
            Role::Tool => {
                let mut messages = turn_with_call(call("{}"));
                message.tool_call_id = messages.pop().and_then(|answer| answer.tool_call_id);
                messages.push(message);
                messages
            }
        };
        self.render(shape, &messages).is_some_and(|out| {
            out.contains(PROBE)
                && !out.contains(&format!("'{PROBE}'"))
                && !out.contains(&format!("\"{PROBE}\""))
        })
    }

    /// A dict, unless only text is taken, or the dict would be printed as Python prints it.
    fn arguments(&self, shape: &Shape) -> Arguments {
        let messages = turn_with_call(call(&format!("{{\"x{PROBE}\": \"{PROBE}\"}}")));
        let as_object = self.render(&Shape { arguments: Arguments::Object, ..shape.clone() }, &messages);
        let printed = as_object.as_ref().is_some_and(|out| out.contains(&format!("{{'x{PROBE}'")));
        if as_object.is_some() && !printed {
            return Arguments::Object;
        }
        let as_text = self.render(&Shape { arguments: Arguments::Text, ..shape.clone() }, &messages);
        if as_text.is_some() { Arguments::Text } else { Arguments::Object }
    }

    /// Whether `none` is taken: in an answered call, and in one that is not.
    fn null_content(&self, shape: &Shape) -> bool {
        let without = Shape { null_content: false, ..shape.clone() };
        [3, 2].iter().all(|turns| {
            let mut messages = turn_with_call(call("{}"));
            messages.truncate(*turns);
            self.render(shape, &messages).is_some() || self.render(&without, &messages).is_none()
        })
    }

    /// Text, if it comes out as it is.
    fn broken_arguments(&self, shape: &Shape) -> Arguments {
        let text = format!("{{\"{PROBE}\": \"{PROBE}");
        let shape = Shape { broken_arguments: Arguments::Text, ..shape.clone() };
        let out = self.render(&shape, &turn_with_call(call(&text)));
        if out.is_some_and(|out| out.contains(&text)) { Arguments::Text } else { Arguments::Object }
    }

    /// Whether an id like those of answers is refused, and a short one is not.
    fn short_ids(&self, shape: &Shape) -> bool {
        let mut messages = turn_with_call(call("{}"));
        let id = Some("call_a8f31c00d4b24b0b8b0e4c1f".to_owned());
        for message in &mut messages {
            message.tool_calls.iter_mut().for_each(|call| call.id.clone_from(&id));
            if message.role == Role::Tool {
                message.tool_call_id.clone_from(&id);
            }
        }
        let short = Shape { short_ids: true, ..shape.clone() };
        self.render(shape, &messages).is_none() && self.render(&short, &messages).is_some()
    }

    /// All names, unless the template then writes the reasoning more often than with one of them.
    fn reasoning(&self, shape: &Shape) -> Vec<&'static str> {
        let conversations = [true, false].map(|with_call| {
            let mut messages = turn_with_call(call("{}"));
            if !with_call {
                messages.truncate(1);
                messages.push(Message::text(Role::Assistant, "answer"));
            }
            if let Some(assistant) = messages.get_mut(1) {
                assistant.reasoning_content = Some(PROBE.to_owned());
            }
            messages
        });
        let written = |names: &[&'static str]| {
            let shape = Shape { reasoning: names.to_vec(), ..shape.clone() };
            conversations.each_ref().map(|messages| {
                // The name of the tool's parameter is written whatever the names are.
                count(self.render(&shape, messages).as_ref())
            })
        };
        let all = written(REASONING);
        let none = written(&[]);
        let single: Vec<_> = REASONING.iter().map(|name| (*name, written(&[name]))).collect();
        let most = |at: usize| single.iter().filter_map(|(_, n)| n.get(at)).max().copied().unwrap_or(0);
        let twice = all.iter().enumerate().any(|(at, n)| *n > most(at));
        if !twice {
            return REASONING.to_vec();
        }
        let reads = |(_, n): &&(&'static str, [usize; 2])| n.iter().zip(&none).any(|(n, none)| n > none);
        single.iter().find(reads).map_or_else(|| REASONING.to_vec(), |(name, _)| vec![*name])
    }
}
