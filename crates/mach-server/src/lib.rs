//! HTTP: routes, server-sent events, limits.
//!
//! A request's way: route, parse, render the template, tokenise, queue, generate, answer. [`ChatModel`] is everything
//! after parsing and before the engine; [`serve`] runs the routes on a listener until told to stop.

mod account;
pub mod allocator;
mod answer;
mod auth;
mod capabilities;
mod chat_model;
mod coalesce;
mod drain;
mod failure;
mod hosts;
mod job;
mod layers;
mod listen;
mod metrics;
mod mode;
mod notes;
mod paths;
mod prompt;
mod reader;
mod refusal;
mod room;
mod routes;
mod server;
mod shape;
mod socket;
mod sse;
mod store;
mod truncation;
mod warm;
mod warmed;
mod writing;

pub use auth::Caller;
pub use capabilities::{Residency, Serving, capabilities};
pub use chat_model::{ChatModel, Decoding, PrepareError, Prepared, Templates};
pub use hosts::Hosts;
pub use layers::Origins;
pub use reader::{OutputStats, Reading};
pub use server::{Readiness, ServerConfig, serve};
pub use store::{Store, StoreConfig, StoreError};
pub use warm::{WarmReport, warm};
