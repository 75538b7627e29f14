use super::*;
use proptest::prelude::*;

fn params(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut p = SamplingParams { temperature: 1.0, ..SamplingParams::greedy() };
    change(&mut p);
    p
}

/// The straightforward version: sort everything, cut, take the largest noisy score.
fn reference(logits: &[f32], p: &SamplingParams, position: usize) -> u32 {
    let mut sorted: Vec<Candidate> = logits.iter().zip(0..).map(|(&l, id)| (l, id)).collect();
    sort(&mut sorted);
    let best = sorted[0].0;
    let inverse = 1.0 / p.temperature;
    if p.top_k > 0 {
        sorted.truncate(p.top_k as usize);
    }
    if p.min_p > 0.0 {
        let floor = math::ln(f64::from(p.min_p)) as f32;
        sorted.retain(|c| scaled(c.0, best, inverse) >= floor);
    }
    if p.top_p < 1.0 {
        let all = p.top_k == 0 && p.min_p == 0.0;
        let total = if all {
            mass(logits, best, inverse)
        } else {
            sorted.iter().map(|c| f64::from(math::exp(scaled(c.0, best, inverse)))).sum()
        };
        if let Some(keep) = nucleus(&sorted, best, inverse, p.top_p, total) {
            sorted.truncate(keep);
        }
    }
    let noise = Noise::new(p.seed, position);
    largest(sorted.iter().map(|c| (f64::from(scaled(c.0, best, inverse)) + noise.gumbel(c.1), c.1))).unwrap()
}

fn sample(logits: &[f32], p: SamplingParams, position: usize) -> u32 {
    Sampler::new(p, &[]).sample(&mut logits.to_vec(), position).unwrap()
}

/// Logits with ties.
fn bumpy(n: usize, seed: u64, spread: f32) -> Vec<f32> {
    let noise = Noise::new(seed, 0);
    (0..n as u32).map(|id| (noise.gumbel(id) as f32 * spread * 8.0).round() / 8.0).collect()
}

proptest! {
    #[test]
    fn selection_equals_the_straightforward_version(
        n in 1usize..3000, seed: u64, spread in 0.0f32..6.0, temperature in 0.05f32..2.0,
        top_k in prop_oneof![Just(0u32), 1u32..40, 1u32..4000], top_p in prop_oneof![Just(1.0f32), 0.0f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..1.0], position in 0usize..10_000,
    ) {
        let logits = bumpy(n, seed, spread);
        let p = params(|p| {
            (p.temperature, p.top_k, p.top_p, p.min_p, p.seed) = (temperature, top_k, top_p, min_p, seed);
        });
        prop_assert_eq!(sample(&logits, p.clone(), position), reference(&logits, &p, position));
    }

    #[test]
    fn any_floats_never_panic(logits in prop::collection::vec(any::<f32>(), 1..600), top_k in 0u32..700, top_p in 0.0f32..=1.0) {
        let p = params(|p| (p.top_k, p.top_p) = (top_k, top_p));
        let _ = Sampler::new(p, &[]).sample(&mut logits.clone(), 3);
        let _ = raw_logprobs(&logits, 20);
    }
}

#[test]
fn samples_follow_the_distribution() {
    let logits = [0.0f32, 1.0, 2.0, -1.0];
    let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let mut counts = [0usize; 4];
    let draws = 40_000;
    for position in 0..draws {
        counts[sample(&logits, params(|p| p.seed = 9), position) as usize] += 1;
    }
    for (count, &l) in counts.iter().zip(&logits) {
        let (got, want) = (*count as f64 / draws as f64, f64::from(l).exp() / total);
        assert!((got - want).abs() < 0.01, "{got} {want}");
    }
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    assert_eq!(sample(&[1.0, 3.0, 3.0, 2.0], SamplingParams::greedy(), 0), 1);
    let mut many = vec![0.0; 1000];
    many[700] = 5.0;
    many[33] = 5.0;
    assert_eq!(sample(&many, SamplingParams::greedy(), 0), 33);
}

#[test]
fn top_p_zero_and_top_k_one_are_greedy() {
    let logits = bumpy(500, 3, 2.0);
    let best = argmax(&logits).1;
    for position in 0..50 {
        assert_eq!(sample(&logits, params(|p| p.top_p = 0.0), position), best);
        assert_eq!(sample(&logits, params(|p| p.top_k = 1), position), best);
        assert_eq!(sample(&logits, params(|p| p.temperature = 1e-30), position), best);
        assert_eq!(sample(&logits, params(|p| p.temperature = f32::from_bits(1)), position), best);
    }
}

#[test]
fn penalties_and_bias_change_the_logits_as_in_vllm() {
    let p = params(|p| {
        p.repetition_penalty = 2.0;
        p.frequency_penalty = 0.5;
        p.presence_penalty = 0.25;
        p.logit_bias = vec![(0, 1.0), (99, 5.0)];
    });
    let mut sampler = Sampler::new(p, &[1]);
    sampler.accept(2);
    sampler.accept(2);
    let mut logits = [1.0, 4.0, -1.0, 3.0];
    sampler.adjust(&mut logits);
    assert_eq!(logits, [2.0, 2.0, -2.0 - 1.0 - 0.25, 3.0]);
}

#[test]
fn logits_without_a_finite_maximum_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut sampler = Sampler::new(SamplingParams::greedy(), &[]);
        assert_eq!(sampler.sample(&mut [bad, bad], 0), Err(NotFinite));
    }
}

#[test]
fn logprobs_are_those_of_the_softmax() {
    let logits = bumpy(5000, 5, 1.0);
    let raw = raw_logprobs(&logits, 5);
    let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    assert_eq!(raw.top.len(), 5);
    for &(id, logprob) in &raw.top {
        let want = f64::from(logits[id as usize]) - total.ln();
        assert!((f64::from(logprob) - want).abs() < 1e-5, "{logprob} {want}");
    }
    assert!(raw.top.windows(2).all(|w| w[0].1 >= w[1].1));
}

#[test]
fn each_penalty_counts_what_was_said() {
    let logits = [2.0, 1.5, 1.0];
    let second = |change: &dyn Fn(&mut SamplingParams), said: &[u32]| {
        let mut p = SamplingParams::greedy();
        change(&mut p);
        let mut sampler = Sampler::new(p, &[]);
        said.iter().for_each(|&id| sampler.accept(id));
        sampler.sample(&mut logits.to_vec(), 0).unwrap()
    };
    assert_eq!(second(&|_| (), &[0, 0, 0]), 0);
    assert_eq!(second(&|p| p.frequency_penalty = 0.4, &[0]), 0);
    assert_eq!(second(&|p| p.frequency_penalty = 0.4, &[0, 0]), 1);
    assert_eq!(second(&|p| p.presence_penalty = 0.4, &[0, 0]), 0);
    assert_eq!(second(&|p| p.presence_penalty = 0.6, &[0]), 1);
    assert_eq!(second(&|p| p.presence_penalty = 1.1, &[0, 1]), 2);
    assert_eq!(second(&|p| p.repetition_penalty = 1.5, &[0]), 1);
}
