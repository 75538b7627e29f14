//! `GET /v1/stats`: what decoding and speculation did since the start.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use mach_engine::RequestStats;
use mach_specdec::GuardStats;
use mach_specdec::policy::{ALPHA_THRESHOLD, ALPHA_WINDOW, DEFAULT_BLOCK, LOW_BLOCK, PolicySpec};
use serde_json::{Value, json};

use crate::auth;
use crate::capabilities::Serving;
use crate::chat_model::Decoding;
use crate::failure::Failure;
use crate::server::Shared;

pub(crate) async fn stats(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Failure> {
    auth::check(shared.config.api_key.as_deref(), &headers)?;
    let model = shared.model()?;
    let (stats, decoding) = (model.engine.stats(), &model.decoding);
    let serving = model.serving.as_ref();
    let places = serving.map(|serving| serving.places);
    let mut body = json!({
        "requests": {
            "running": stats.active,
            "waiting": model.engine.waiting(),
            "paused": stats.paused,
            "max_running": places.map(|places| places.running),
            "max_waiting": places.map(|places| places.waiting),
        },
        "model": serving.map(card),
        "memory": serving.map(|serving| serving.memory.now(model, &stats)),
        "finished": stats.finished,
        "decode_tokens": stats.decode_tokens,
        "decode_seconds": stats.decode_time.as_secs_f64(),
        "tok_s": rate(stats.decode_tokens, stats.decode_time),
        "decode_path": decoding.path.to_string(),
        "effective_decode_path": decoding.gate.effective.to_string(),
        "decode_path_reason": decoding.gate.reason,
        "adaptive_block_policy": policy(decoding.policy),
        "guard": guard(decoding, &stats.specdec.guard),
        "last_request": stats.last.map(request),
        "grammar": {"tokens": stats.guided_tokens, "seconds": stats.guide_time.as_secs_f64()},
        "tool_calls": {"complete": model.output_stats.calls(), "malformed": model.output_stats.malformed()},
    });
    if let (Some(body), Ok(Value::Object(specdec))) =
        (body.as_object_mut(), serde_json::to_value(&stats.specdec))
    {
        body.extend(specdec);
    }
    Ok(Json(body))
}

/// What the model is and runs on; numbers as such.
fn card(serving: &Serving) -> Value {
    let number = |text: &str| text.parse::<u64>().ok().map(Value::from);
    let value = |text: &String| number(text).unwrap_or_else(|| Value::from(text.as_str()));
    serving.card.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect()
}

fn rate(tokens: u64, time: Duration) -> Option<f64> {
    (!time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

fn policy(policy: PolicySpec) -> Value {
    let name = policy.to_string();
    match policy {
        PolicySpec::OpencodeSampledV1 => json!({
            "name": name,
            "alpha_window": ALPHA_WINDOW,
            "alpha_threshold": ALPHA_THRESHOLD,
            "low_block": LOW_BLOCK,
            "default_block": DEFAULT_BLOCK,
        }),
        PolicySpec::Fixed(rows) => json!({"name": name, "default_block": rows}),
        PolicySpec::CostAware => json!({"name": name, "default_block": DEFAULT_BLOCK}),
        PolicySpec::Off => json!({"name": name}),
    }
}

/// What stands over the policy, and what it did.
fn guard(decoding: &Decoding, counts: &GuardStats) -> Value {
    let mut guard = json!({"name": decoding.guard.to_string()});
    if let (Some(guard), Ok(Value::Object(counts))) = (guard.as_object_mut(), serde_json::to_value(counts)) {
        guard.extend(counts);
    }
    guard
}

fn request(last: RequestStats) -> Value {
    // The first token comes with the prompt.
    let decoded = last.completion_tokens.saturating_sub(1) as u64;
    json!({
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "decode_seconds": last.decode_time.as_secs_f64(),
        "tok_s": rate(decoded, last.decode_time),
        "cycles": last.cycles,
        "specdec_drafted": last.drafted,
        "specdec_accepted": last.accepted,
    })
}
