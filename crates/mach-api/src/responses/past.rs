//! Responses that were given before.

use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Seal;
use crate::{ApiError, ErrorKind};

/// A response, with what it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The response it goes on from.
    pub previous: Option<String>,
    /// What was new in the request, as items with ids.
    pub input: Vec<Value>,
    /// The response object as it was given.
    pub response: Value,
}

impl Record {
    /// Id of the response.
    pub fn id(&self) -> &str {
        self.response.get("id").and_then(Value::as_str).unwrap_or_default()
    }

    /// The items of the answer.
    pub fn output(&self) -> &[Value] {
        self.response.get("output").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    /// An item of this turn by its id.
    pub fn item(&self, id: &str) -> Option<&Value> {
        let named = |item: &&Value| item.get("id").and_then(Value::as_str) == Some(id);
        self.input.iter().chain(self.output()).find(named)
    }

    /// Ids of the items of this turn.
    pub fn item_ids(&self) -> impl Iterator<Item = &str> {
        self.input.iter().chain(self.output()).filter_map(|item| item.get("id")?.as_str())
    }
}

/// Reads what was kept, for one caller.
pub trait Past {
    /// A response by its id.
    fn response(&self, id: &str) -> Result<Option<Record>, ApiError>;

    /// The response that an item belongs to.
    fn response_of_item(&self, id: &str) -> Result<Option<Record>, ApiError>;
}

/// Keeps responses, for one caller.
pub trait Keep: Debug + Send + Sync {
    /// Keeps a response; it can be read from now on. That can fail, which the keeper tells its operator.
    fn keep(&self, record: Record);
}

/// What of the server requests go on from.
pub struct Backing<'a> {
    /// What was kept; `None` if nothing ever is.
    pub past: Option<&'a dyn Past>,
    /// Keeps what is answered.
    pub keep: Option<Arc<dyn Keep>>,
    /// Seals what clients carry.
    pub seal: Arc<Seal>,
}

impl Backing<'_> {
    /// A server that keeps nothing.
    pub fn none() -> Self {
        Self { past: None, keep: None, seal: Arc::new(Seal::fleeting()) }
    }
}

/// Turns that one may go on from.
const LONGEST: usize = 10_000;

/// The items of a response and of all that it goes on from, oldest first.
pub(super) fn chain(past: Option<&dyn Past>, id: &str) -> Result<Vec<Value>, ApiError> {
    const FIELD: &str = "previous_response_id";
    let Some(past) = past else {
        return Err(ApiError::field(FIELD, "this server keeps no responses; send the whole conversation"));
    };
    let mut records: Vec<Record> = Vec::new();
    let mut next = Some(id.to_owned());
    while let Some(id) = next {
        let Some(mut record) = past.response(&id)? else {
            let id: String = id.chars().take(80).collect();
            let message = format!("Previous response with id '{id}' not found.");
            let error = ApiError::new(ErrorKind::PreviousResponseNotFound, message);
            return Err(ApiError { param: Some(FIELD.into()), ..error });
        };
        if records.len() == LONGEST {
            return Err(ApiError::field(FIELD, format!("goes on from more than {LONGEST} responses")));
        }
        next = record.previous.take();
        records.push(record);
    }
    let mut items = Vec::new();
    for Record { input, mut response, .. } in records.into_iter().rev() {
        items.extend(input);
        if let Some(Value::Array(output)) = response.get_mut("output").map(Value::take) {
            items.extend(output);
        }
    }
    Ok(items)
}
