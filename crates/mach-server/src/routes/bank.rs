//! `GET /v1/bank`: every expert of every layer, where it is and how often it was used.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use mach_engine::LayerUses;
use serde_json::{Value, json};

use crate::auth;
use crate::failure::Failure;
use crate::server::Shared;

/// Never waits for the engine.
pub(crate) async fn bank(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let model = shared.model()?;
    let known = model.serving.as_ref().map(|serving| &serving.experts);
    let (layers, experts) = match (model.engine.expert_uses(), known) {
        (Some(uses), _) => (uses.layers().into_iter().map(counted).collect(), uses.experts()),
        (None, Some(known)) => {
            let all = |&layer: &usize| uncounted(layer, known.experts);
            (known.layers.iter().map(all).collect::<Vec<_>>(), known.experts)
        }
        (None, None) => (Vec::new(), 0),
    };
    let streaming = model.engine.streaming();
    let residency = model.serving.as_ref().map(|serving| serving.residency).unwrap_or_default();
    Ok(Json(json!({
        "object": "bank",
        "expert_residency": residency.as_str(),
        "streaming": streaming.is_some(),
        "slots": streaming.as_ref().map_or(layers.len() * experts, |bank| bank.bank_slots),
        "eviction": streaming.as_ref().map(|bank| bank.bank_eviction),
        "experts": experts,
        "experts_per_token": known.map(|known| known.per_token),
        "layers": layers,
    })))
}

fn counted(uses: LayerUses) -> Value {
    let resident: Vec<u8> = uses.resident.into_iter().map(u8::from).collect();
    json!({
        "layer": uses.layer,
        "resident": resident,
        "hits": uses.hits,
        "misses": uses.misses,
        "transient_hits": uses.transient_hits,
        "transient_reads": uses.transient_reads,
    })
}

/// A layer whose experts are in memory to stay: nothing has to be found or read, so nothing is counted.
fn uncounted(layer: usize, experts: usize) -> Value {
    json!({
        "layer": layer,
        "resident": vec![1; experts],
        "hits": null,
        "misses": null,
        "transient_hits": null,
        "transient_reads": null,
    })
}
