//! The device contract from a device's side: one that stops in the middle of passes, and one that fails.

use std::collections::HashSet;
use std::sync::Arc;

use mach_checkpoint::{Checkpoint, Tensors};
use mach_cpu::{Buf, Cpu, CpuPlacement, CpuState, Matrix, Routing};
use mach_experts::{HotExperts, StreamingStats};
use mach_kernels::{Cores, Isa};
use mach_models::device::{
    AttentionSpec, AttentionWeights, ChoiceWeights, CompressedInputs, CompressedSpec, CompressedWeights,
    ConvolutionSpec, DeltaSpec, DeltaWeights, Device, FfnSpec, Finish, LayerSpec, Mlp, ModelSpec, Placed,
    RouterSpec, RouterWeights, Span, StreamSpec, StreamWeights, Tap,
};
use mach_models::{
    Activations, Decoder, DeviceCard, ExpertMode, Hidden, LogitRows, Model, ModelError, Observer, Segment,
    Wants,
};

type Vector = Vec<f32>;

/// The CPU, but before the experts of each layer in `lacks` it stops once a pass: what is recorded behind is dropped until
/// [`Device::bring`] was called.
#[derive(Debug)]
struct Halting {
    cpu: Cpu,
    lacks: HashSet<usize>,
    /// Layers that this pass has stopped for.
    brought: HashSet<usize>,
    halted: Option<usize>,
    /// Times that a pass was gone on with.
    resumed: usize,
    /// Passes fail when they are submitted.
    fails: bool,
}

impl Halting {
    fn new(lacks: impl IntoIterator<Item = usize>) -> Self {
        let cpu = Cpu::new(Cores::new(2, Isa::best()), Activations::Int8, None);
        let (lacks, brought) = (lacks.into_iter().collect(), HashSet::new());
        Halting { cpu, lacks, brought, halted: None, resumed: 0, fails: false }
    }

    /// Records an operation, unless the pass has stopped before it.
    fn record(&mut self, operation: impl FnOnce(&mut Cpu)) {
        if self.halted.is_none() {
            operation(&mut self.cpu);
        }
    }
}

impl Device for Halting {
    type Buf = Buf;
    type Matrix = Matrix;
    type Vector = Vector;
    type Routing = Routing;
    type LayerState = CpuState;
    type Placement<'a> = CpuPlacement<'a>;

    fn numerics(&self) -> String {
        self.cpu.numerics()
    }
    fn card(&self) -> DeviceCard {
        self.cpu.card()
    }
    fn check(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        self.cpu.check(spec)
    }
    fn streaming_stats(&self) -> Option<Arc<StreamingStats>> {
        self.cpu.streaming_stats()
    }
    fn bring_hot(&mut self, hot: &HotExperts) {
        self.cpu.bring_hot(hot);
    }
    fn placement<'a>(&self, tensors: &'a Tensors) -> CpuPlacement<'a> {
        self.cpu.placement(tensors)
    }
    fn fill(
        &mut self,
        placed: CpuPlacement<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Placed, ModelError> {
        self.cpu.fill(placed, progress)
    }
    fn release(&mut self, placed: Placed) {
        self.cpu.release(placed);
    }
    fn new_state(&self, layer: &LayerSpec) -> CpuState {
        self.cpu.new_state(layer)
    }
    fn state_bytes(&self, spec: &ModelSpec, tokens: usize) -> usize {
        self.cpu.state_bytes(spec, tokens)
    }
    fn begin(&mut self, spans: &[Span]) {
        (self.halted, self.brought) = (None, HashSet::new());
        self.cpu.begin(spans);
    }
    fn finish(&mut self) -> Result<Finish, ModelError> {
        if self.fails {
            self.cpu.finish()?;
            return Err(ModelError::Device("as told".into()));
        }
        match self.halted.take() {
            Some(layer) => Ok(Finish::Missing { layer, experts: vec![0, 1] }),
            None => self.cpu.finish(),
        }
    }
    fn bring(&mut self, layer: usize, experts: &[usize]) -> Result<(), ModelError> {
        assert_eq!(experts, [0, 1]);
        self.brought.insert(layer);
        self.resumed += 1;
        Ok(())
    }
    fn output(&mut self, x: &mut Buf) {
        self.record(|cpu| cpu.output(x));
    }
    fn reuse(&mut self, values: Vec<f32>, buf: &mut Buf) {
        self.cpu.reuse(values, buf);
    }
    fn clear(&mut self, x: &Buf, out: &mut Buf) {
        self.record(|cpu| cpu.clear(x, out));
    }
    fn tap(&mut self, tap: Tap, x: &Buf) {
        self.record(|cpu| cpu.tap(tap, x));
    }
    fn tap_routing(&mut self, layer: usize, routing: &Routing) {
        self.record(|cpu| cpu.tap_routing(layer, routing));
    }
    fn write(&mut self, rows: &[f32], width: usize, out: &mut Buf) {
        self.record(|cpu| cpu.write(rows, width, out));
    }
    fn embed(&mut self, table: &Matrix, ids: &[u32], scale: f32, out: &mut Buf) {
        self.record(|cpu| cpu.embed(table, ids, scale, out));
    }
    fn select(&mut self, x: &Buf, rows: &[usize], out: &mut Buf) {
        self.record(|cpu| cpu.select(x, rows, out));
    }
    fn join(&mut self, left: &Buf, right: &Buf, out: &mut Buf) {
        self.record(|cpu| cpu.join(left, right, out));
    }
    fn norm(&mut self, x: &Buf, weight: &Vector, eps: f32, out: &mut Buf) {
        self.record(|cpu| cpu.norm(x, weight, eps, out));
    }
    fn add(&mut self, x: &mut Buf, y: &Buf) {
        self.record(|cpu| cpu.add(x, y));
    }
    fn add_bias(&mut self, x: &mut Buf, bias: &Vector) {
        self.record(|cpu| cpu.add_bias(x, bias));
    }
    fn linear(&mut self, x: &Buf, weights: &[Matrix], out: &mut [&mut Buf]) {
        self.record(|cpu| cpu.linear(x, weights, out));
    }
    fn gate(&mut self, spec: &FfnSpec, gate: &mut Buf, up: &Buf) {
        self.record(|cpu| cpu.gate(spec, gate, up));
    }
    fn cap(&mut self, x: &mut Buf, scale: f32, cap: Option<f32>) {
        self.record(|cpu| cpu.cap(x, scale, cap));
    }
    fn convolve(&mut self, spec: &ConvolutionSpec, base: &Vector, dynamic: &Buf, x: &Buf, out: &mut Buf) {
        self.record(|cpu| cpu.convolve(spec, base, dynamic, x, out));
    }
    fn margins(&mut self, x: &Buf, out: &mut Buf) {
        self.record(|cpu| cpu.margins(x, out));
    }
    fn top_k(&mut self, x: &Buf, k: usize, out: &mut Routing) {
        self.record(|cpu| cpu.top_k(x, k, out));
    }
    fn attention(
        &mut self,
        spec: &AttentionSpec,
        weights: &AttentionWeights<Vector>,
        q: &Buf,
        k: &Buf,
        v: &Buf,
        states: &mut [&mut CpuState],
        out: &mut Buf,
    ) {
        self.record(|cpu| cpu.attention(spec, weights, q, k, v, states, out));
    }
    fn append(
        &mut self,
        spec: &AttentionSpec,
        weights: &AttentionWeights<Vector>,
        k: &Buf,
        v: &Buf,
        states: &mut [&mut CpuState],
    ) {
        self.record(|cpu| cpu.append(spec, weights, k, v, states));
    }
    fn gated_delta(
        &mut self,
        spec: &DeltaSpec,
        weights: &DeltaWeights<Vector>,
        inputs: [&Buf; 4],
        states: &mut [&mut CpuState],
        out: &mut Buf,
    ) {
        self.record(|cpu| cpu.gated_delta(spec, weights, inputs, states, out));
    }
    fn rewind_delta(
        &mut self,
        spec: &DeltaSpec,
        weights: &DeltaWeights<Vector>,
        state: &mut CpuState,
        keep: usize,
    ) {
        self.cpu.rewind_delta(spec, weights, state, keep);
    }
    fn tokens(&mut self, ids: &[u32]) {
        self.cpu.tokens(ids);
    }
    fn grouped_linear(&mut self, x: &Buf, weight: &Matrix, groups: usize, out: &mut Buf) {
        self.record(|cpu| cpu.grouped_linear(x, weight, groups, out));
    }
    fn compressed_attention(
        &mut self,
        spec: &CompressedSpec,
        weights: &CompressedWeights<Vector>,
        inputs: &CompressedInputs<'_, Buf>,
        states: &mut [&mut CpuState],
        out: &mut Buf,
    ) {
        self.record(|cpu| cpu.compressed_attention(spec, weights, inputs, states, out));
    }
    fn spread(&mut self, x: &Buf, streams: usize, out: &mut Buf) {
        self.record(|cpu| cpu.spread(x, streams, out));
    }
    fn collapse(
        &mut self,
        spec: &StreamSpec,
        weights: &StreamWeights<Vector>,
        streams: &Buf,
        mixing: &mut Buf,
        out: &mut Buf,
    ) {
        self.record(|cpu| cpu.collapse(spec, weights, streams, mixing, out));
    }
    fn mix(&mut self, spec: &StreamSpec, mixing: &Buf, y: &Buf, streams: &mut Buf) {
        self.record(|cpu| cpu.mix(spec, mixing, y, streams));
    }
    fn route_by_score(
        &mut self,
        spec: &RouterSpec,
        x: &Buf,
        router: &Matrix,
        choice: &ChoiceWeights<Vector>,
        out: &mut Routing,
    ) {
        self.record(|cpu| cpu.route_by_score(spec, x, router, choice, out));
    }
    fn route(
        &mut self,
        spec: &RouterSpec,
        x: &Buf,
        router: &Matrix,
        weights: &RouterWeights<Vector>,
        shared_gate: Option<&Matrix>,
        out: &mut Routing,
    ) {
        self.record(|cpu| cpu.route(spec, x, router, weights, shared_gate, out));
    }
    fn experts(
        &mut self,
        layer: usize,
        spec: &FfnSpec,
        x: &Buf,
        routing: &Routing,
        shared: Option<&Mlp<Matrix, Vector>>,
        h: &mut Buf,
    ) -> Result<(), ModelError> {
        if self.halted.is_some() {
            return Ok(());
        }
        if self.lacks.contains(&layer) && !self.brought.contains(&layer) {
            self.halted = Some(layer);
            return Ok(());
        }
        self.cpu.experts(layer, spec, x, routing, shared, h)
    }
    fn placed_experts(
        &mut self,
        experts: &[Mlp<Matrix, Vector>],
        x: &Buf,
        routing: &Routing,
        shared: Option<&Mlp<Matrix, Vector>>,
        h: &mut Buf,
    ) {
        self.record(|cpu| cpu.placed_experts(experts, x, routing, shared, h));
    }
    fn mlp(&mut self, mlp: &Mlp<Matrix, Vector>, x: &Buf, h: &mut Buf) {
        self.record(|cpu| cpu.mlp(mlp, x, h));
    }
}

fn project(path: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn decoder(path: &str, lacks: impl IntoIterator<Item = usize>) -> Decoder<Halting> {
    let checkpoint = Checkpoint::open(&project(path)).unwrap();
    let mut decoder = Decoder::load(&checkpoint, Halting::new(lacks), &mut |_| ()).unwrap();
    decoder.device_mut().cpu.load_experts(&checkpoint, &ExpertMode::Resident).unwrap();
    decoder
}

/// Everything that a pass shows, as bits.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    hidden: Vec<(usize, Vec<u32>)>,
    routed: Vec<(usize, Vec<u32>, Vec<u32>)>,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

impl Observer for Seen {
    fn wants(&self) -> Wants {
        Wants { hidden: Hidden::All, last_norm: false, routed: true }
    }
    fn hidden(&mut self, index: usize, rows: &[f32]) {
        self.hidden.push((index, bits(rows)));
    }
    fn routed(&mut self, layer: usize, experts: &[u32], weights: &[f32]) {
        self.routed.push((layer, experts.to_vec(), bits(weights)));
    }
}

/// Two sequences in shared passes, a block that is cut short, one more token.
fn run(model: &mut dyn Model) -> (Vec<u32>, Seen) {
    let (mut a, mut b, mut seen, mut out) =
        (model.new_state(), model.new_state(), Seen::default(), Vec::new());
    let (long, short): (Vec<u32>, Vec<u32>) = ((5..45).collect(), (60..67).collect());
    let prompts =
        [Segment::prompt(&mut a, &long, LogitRows::All), Segment::prompt(&mut b, &short, LogitRows::Last)];
    out.extend(bits(&model.forward(&mut { prompts }, &mut seen).unwrap().data));
    a.begin_block();
    let logits = model.forward(&mut [Segment::verify(&mut a, &[9, 8, 7, 6])], &mut seen).unwrap();
    out.extend(bits(&logits.data));
    model.recycle(logits);
    model.keep_rows(&mut a, 2).unwrap();
    let last = [Segment::decode(&mut b, &[3]), Segment::decode(&mut a, &[4])];
    out.extend(bits(&model.forward(&mut { last }, &mut seen).unwrap().data));
    (out, seen)
}

#[test]
fn a_pass_that_stops_for_experts_goes_on_to_the_same_bits() {
    for path in [
        "fixtures/qwen3_5_moe/mlx-4bit",
        "fixtures/qwen3_moe/mlx-4bit",
        "fixtures/gpt_oss/mlx-mxfp4-q4",
        "fixtures/gemma4/mlx-4bit",
        "fixtures/deepseek_v4/mlx-4bit",
    ] {
        let mut plain = decoder(path, []);
        let layers = plain.config().layers.len();
        let expected = run(&mut plain);
        assert_eq!(plain.device().resumed, 0);
        let every: Vec<usize> = (0..layers).collect();
        for lacks in [vec![0], vec![layers - 1], every] {
            let mut halting = decoder(path, lacks.clone());
            assert_eq!(run(&mut halting), expected, "{path}, stopping at {lacks:?}");
            let stops = lacks.iter().filter(|&&l| halting.config().moe_layers[l]).count();
            assert_eq!(halting.device().resumed, 3 * stops, "{path}, stopping at {lacks:?}");
        }
    }
}

#[test]
fn a_device_that_fails_fails_the_pass_and_serves_the_next() {
    let path = "fixtures/qwen3_5_moe/mlx-4bit";
    let mut model = decoder(path, []);
    let expected = run(&mut model);
    model.device_mut().fails = true;
    let mut state = model.new_state();
    let segment = Segment::prompt(&mut state, &[1, 2, 3], LogitRows::Last);
    let error = model.forward(&mut [segment], &mut Seen::default()).unwrap_err();
    assert!(matches!(error, ModelError::Device(_)), "{error}");
    model.device_mut().fails = false;
    assert_eq!(run(&mut model), expected);
}

/// A state that another model made is an error, not a panic or a wrong answer.
#[test]
fn a_foreign_state_is_refused() {
    let mut model = decoder("fixtures/qwen3_moe/mlx-4bit", []);
    let mut state = mach_models::SequenceState::without_layers();
    let segment = Segment::prompt(&mut state, &[1], LogitRows::Last);
    let error = model.forward(&mut [segment], &mut Seen::default()).unwrap_err();
    assert!(matches!(error, ModelError::ForeignState { layer: 0 }), "{error}");
}

/// A router's choice whose expert is not in memory is an error, never a sum without it.
#[test]
fn an_expert_that_is_not_there_fails_the_pass() {
    let dir = tempfile::tempdir().unwrap();
    let source = project("fixtures/qwen3_moe/mlx-4bit");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(source.join(file), dir.path().join(file)).unwrap();
    }
    let config = dir.path().join("config.json");
    let fewer = |text: &str| {
        let mut config: serde_json::Value = serde_json::from_str(text).unwrap();
        let layers = config["num_hidden_layers"].as_u64().unwrap();
        // The last layer is dense in this file's eyes: its experts are not loaded.
        config["mlp_only_layers"] = serde_json::json!([layers - 1]);
        config.to_string()
    };
    std::fs::write(&config, fewer(&std::fs::read_to_string(&config).unwrap())).unwrap();
    let whole = Checkpoint::open(&source).unwrap();
    let mut model = Decoder::load(&whole, Halting::new([]), &mut |_| ()).unwrap();
    let partial = Checkpoint::open(dir.path()).unwrap();
    model.device_mut().cpu.load_experts(&partial, &ExpertMode::Resident).unwrap();
    let mut state = model.new_state();
    let segment = Segment::prompt(&mut state, &[1, 2, 3], LogitRows::Last);
    let error = model.forward(&mut [segment], &mut Seen::default()).unwrap_err().to_string();
    assert!(error.contains("is not in memory"), "{error}");
}
