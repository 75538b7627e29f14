//! Memory by part, as it is now, beside what was set aside for each part at the start.

use mach_engine::EngineStats;
use serde_json::{Value, json};

use crate::ChatModel;

/// How the memory of the process was divided, in bytes.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// All of it.
    pub budget: usize,
    /// Its parts; together they are the budget.
    pub parts: Vec<MemoryPart>,
    /// Physical memory that the process holds now, if the system tells.
    pub process: fn() -> Option<usize>,
}

/// A part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPart {
    /// What it is for.
    pub name: &'static str,
    /// Bytes set aside.
    pub budget: usize,
    /// Bytes of it that are in use.
    pub held: Held,
}

/// How much of a part is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The same from the start to the end.
    Always(usize),
    /// It is not counted.
    Uncounted,
    /// As much as the streaming bank has filled; all of it where experts are not streamed.
    Bank,
    /// The state of sequences.
    State,
    /// What the prefix cache has in memory.
    Prefixes,
    /// What is charged to requests.
    Requests,
}

impl MemoryPlan {
    /// The plan and what has become of it.
    pub(crate) fn now(&self, model: &ChatModel, stats: &EngineStats) -> Value {
        let part = |part: &MemoryPart| {
            json!({
                "name": part.name,
                "budget_bytes": part.budget,
                "held_bytes": part.held(model, stats),
            })
        };
        json!({
            "budget_bytes": self.budget,
            "process_bytes": (self.process)(),
            "parts": self.parts.iter().map(part).collect::<Vec<_>>(),
        })
    }
}

impl MemoryPart {
    fn held(&self, model: &ChatModel, stats: &EngineStats) -> Option<usize> {
        match self.held {
            Held::Always(bytes) => Some(bytes),
            Held::Uncounted => None,
            Held::Bank => Some(match model.engine.streaming() {
                Some(bank) => bank.total.resident_slots * bank.slot_bytes,
                None => self.budget,
            }),
            Held::State => Some(stats.state_bytes),
            Held::Prefixes => model.engine.prefix().map(|cache| cache.stats().l1.bytes),
            Held::Requests => {
                let (held, working) = model.account.charged();
                Some(held + working)
            }
        }
    }
}
