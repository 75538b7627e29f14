//! The int8 path is held to the float path: KL divergence of next-token distributions on the demo checkpoint's golden
//! conversations.

mod common;

use common::{all_logits, model, project};
use mach_models::Activations;

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let top = row.iter().fold(f64::MIN, |m, &v| m.max(f64::from(v)));
    let total: f64 = row.iter().map(|&v| (f64::from(v) - top).exp()).sum();
    row.iter().map(|&v| f64::from(v) - top - total.ln()).collect()
}

/// Mean KL(float || int8) in nats.
#[test]
fn mean_kl_of_int8_activations_is_below_a_thousandth() {
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(project("demo/golden.json")).unwrap()).unwrap();
    let mut exact = model("demo", Activations::F32, 0, None);
    let mut int8 = model("demo", Activations::Int8, 0, None);
    let (mut sum, mut rows) = (0.0, 0);
    for case in golden["cases"].as_array().unwrap() {
        let ids = |key: &str| -> Vec<u32> {
            case[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
        };
        let tokens = [ids("prompt_ids"), ids("greedy_ids")].concat();
        let (mut a, mut b) = (exact.new_state(), int8.new_state());
        let p = all_logits(&mut *exact, &mut a, &tokens, 512);
        let q = all_logits(&mut *int8, &mut b, &tokens, 512);
        let vocab = exact.config().vocab_size;
        let mut here = 0.0;
        for (p, q) in p.chunks(vocab).zip(q.chunks(vocab)) {
            let (p, q) = (log_softmax(p), log_softmax(q));
            here += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        }
        println!("{}: mean KL {:.2e} over {} rows", case["name"], here / tokens.len() as f64, tokens.len());
        sum += here;
        rows += tokens.len();
    }
    let mean = sum / f64::from(rows as u32);
    println!("mean KL {mean:.3e} over {rows} rows");
    assert!(mean < 1e-3, "mean KL {mean}");
}
