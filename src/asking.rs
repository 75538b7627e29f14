//! Flags of how an answer is generated, for commands that ask the model themselves.

use clap::Args;
use mach_api::chat::Limits;
use mach_api::{ApiError, ChatRequest};
use serde_json::{Map, Value};

/// How answers are generated. What is not given is as the checkpoint has it.
#[derive(Debug, Clone, Args)]
pub struct AskingArgs {
    /// Most tokens to generate; as many as the context holds if not given
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,

    /// Temperature; 0 is greedy; the checkpoint's default if not given
    #[arg(long)]
    pub temperature: Option<f64>,

    /// Keep the fewest tokens with this much probability together
    #[arg(long)]
    pub top_p: Option<f64>,

    /// Keep this many tokens
    #[arg(long)]
    pub top_k: Option<u32>,

    /// Seed; random if not given
    #[arg(long)]
    pub seed: Option<u64>,

    /// Text that ends the answer; may be given more than once
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl AskingArgs {
    /// The request that these flags and messages (JSON) stand for, through the checks that HTTP requests pass.
    pub(crate) fn request(&self, model: &str, messages: Vec<Value>) -> Result<ChatRequest, ApiError> {
        let mut body = Map::new();
        body.insert("model".into(), model.into());
        body.insert("messages".into(), messages.into());
        let fields = [
            ("max_tokens", self.max_tokens.map(Value::from)),
            ("temperature", self.temperature.map(Value::from)),
            ("top_p", self.top_p.map(Value::from)),
            ("top_k", self.top_k.map(Value::from)),
            ("seed", self.seed.map(Value::from)),
            ("stop", Some(self.stop.clone().into())),
        ];
        body.extend(fields.into_iter().filter_map(|(name, v)| Some((name.to_owned(), v?))));
        ChatRequest::parse(Value::from(body).to_string().as_bytes(), &Limits::default())
    }
}
