//! Gated DeltaNet gives the bits of the scalar twin, in place, from another state, and a block run again.

mod common;

use common::{DEADLINE, differing, uniform};
use mach_gpu::kernels::delta::{self, Delta, Gates, Rows, Steps};
use mach_gpu::{Pipelines, Recorder, Storage};
use mach_kernels::delta::{
    DeltaInputs, DeltaScratch, DeltaShape, DeltaState, DeltaWeights, gated_delta, rewind,
};
use mach_kernels::{Cores, Isa};

/// Zeros or values of one layer on the device.
struct Device<'a> {
    pipelines: &'a Pipelines,
    shape: Delta,
    weights: [Storage; 4],
    window: Storage,
    matrices: [Storage; 2],
    inputs: [Storage; 4],
    gates: [Storage; 2],
    mixed: Storage,
    out: Storage,
}

const EPS: f32 = 1e-6;

impl Device<'_> {
    /// Runs `rows`; from the first of the two matrices into the second if `copied`, else in place.
    fn run(&self, rows: Rows, copied: bool, gated: bool, fused: bool) {
        let (mut recorder, pipelines) = (Recorder::new(self.pipelines.context()), self.pipelines);
        let [conv, dt_bias, neg_exp_a, weight] = &self.weights;
        let [u, z, b, a] = &self.inputs;
        let [decay, beta] = &self.gates;
        let gates = Gates {
            a: a.into(),
            b: b.into(),
            dt_bias: dt_bias.into(),
            neg_exp_a: neg_exp_a.into(),
            decay: decay.into(),
            beta: beta.into(),
        };
        let steps = Steps {
            u: u.into(),
            before: (&self.window).into(),
            conv: conv.into(),
            mixed: (&self.mixed).into(),
            decay: decay.into(),
            beta: beta.into(),
            start: copied.then_some((&self.matrices[0]).into()),
            matrices: (&self.matrices[usize::from(copied)]).into(),
            out: (&self.out).into(),
        };
        if fused {
            delta::step(&mut recorder, pipelines, &self.shape, &rows, &gates, &steps).unwrap();
        } else {
            if gated {
                delta::gates(&mut recorder, pipelines, &self.shape, &rows, &gates).unwrap();
            }
            delta::steps(&mut recorder, pipelines, &self.shape, &rows, &steps).unwrap();
        }
        if gated {
            let (z, weight, out) = (z.into(), weight.into(), (&self.out).into());
            delta::norm(&mut recorder, pipelines, &self.shape, &rows, EPS, z, weight, out).unwrap();
        }
        delta::shift(&mut recorder, pipelines, &self.shape, &rows, u.into(), (&self.window).into()).unwrap();
        recorder.submit().wait(DEADLINE).unwrap();
    }

    fn read(&self, buffer: &Storage) -> Vec<f32> {
        buffer.read(self.pipelines.context(), DEADLINE).unwrap()
    }
}

fn check(pipelines: &Pipelines, shape: DeltaShape, fused: bool) {
    let context = pipelines.context();
    let (channels, hv) = (shape.channels(), shape.value_heads);
    let width = hv * shape.value_dim;
    let conv = uniform(shape.taps * channels, 1, 0.5);
    let (bias, norm) = (uniform(hv, 2, 1.0), uniform(shape.value_dim, 3, 1.5));
    let rates: Vec<f32> = uniform(hv, 4, 4.0).into_iter().map(|x| -x.abs()).collect();
    let weights = DeltaWeights { conv: &conv, dt_bias: &bias, neg_exp_a: &rates, norm: &norm, eps: EPS };
    const ROWS: usize = 45;
    let inputs = [channels, width, hv, hv].map(|n| uniform(ROWS * n, n as u32, 3.0));
    let zeros = |n: usize| Storage::new(context, 4 * n as u64).unwrap();
    let state = shape.key_dim * width;
    let device = Device {
        pipelines,
        shape: Delta {
            key_heads: shape.key_heads as u32,
            value_heads: hv as u32,
            key_dim: shape.key_dim as u32,
            value_dim: shape.value_dim as u32,
            taps: shape.taps as u32,
        },
        weights: [&conv, &bias, &rates, &norm].map(|x| Storage::of(context, x).unwrap()),
        window: zeros((shape.taps - 1) * channels),
        matrices: [zeros(state), zeros(state)],
        inputs: [0, 1, 2, 3].map(|i| Storage::of(context, &inputs[i]).unwrap()),
        gates: [zeros(ROWS * hv), zeros(ROWS * hv)],
        mixed: zeros(ROWS * channels),
        out: zeros(ROWS * width),
    };
    let mut twin = DeltaState::new(&shape);
    let (mut cores, mut scratch) = (Cores::new(1, Isa::SCALAR), DeltaScratch::default());
    let mut want = vec![0.0; ROWS * width];
    let step = |cores: &mut Cores,
                twin: &mut DeltaState,
                scratch: &mut DeltaScratch,
                first: usize,
                rows: usize,
                want: &mut [f32]| {
        let [u, z, b, a] = &inputs;
        let inputs = DeltaInputs {
            u: &u[first * channels..],
            z: &z[first * width..],
            b: &b[first * hv..],
            a: &a[first * hv..],
        };
        gated_delta(cores, &shape, &weights, twin, scratch, &inputs, rows, &mut want[first * width..]);
    };
    // In place: one row, two, many.
    let mut first = 0;
    for rows in [1, 2, 34] {
        step(&mut cores, &mut twin, &mut scratch, first, rows, &mut want);
        device.run(Rows { rows: rows as u32, first: first as u32, gates: 0 }, false, true, fused);
        first += rows;
        assert_eq!(
            differing(&device.read(&device.window), &twin.conv),
            None,
            "window after {rows}: {shape:?}"
        );
        assert_eq!(
            differing(&device.read(&device.matrices[0]), &twin.state),
            None,
            "state after {rows}: {shape:?}"
        );
    }
    assert_eq!(
        differing(&device.read(&device.out)[..first * width], &want[..first * width]),
        None,
        "{shape:?}"
    );
    // A block of eight from the first matrices into the second, cut back to three.
    let window = device.read(&device.window);
    twin.begin_block();
    step(&mut cores, &mut twin, &mut scratch, first, 8, &mut want);
    device.run(Rows { rows: 8, first: first as u32, gates: 5 }, true, true, fused);
    assert_eq!(differing(&device.read(&device.out), &want), None, "block: {shape:?}");
    assert_eq!(
        differing(&device.read(&device.matrices[1]), &twin.state),
        None,
        "state after a block: {shape:?}"
    );
    rewind(&mut cores, &shape, &weights, &mut twin, &mut scratch, 3);
    device.window.write(context, 0, bytemuck::cast_slice(&window)).unwrap();
    device.run(Rows { rows: 3, first: first as u32, gates: 5 }, true, false, false);
    assert_eq!(differing(&device.read(&device.window), &twin.conv), None, "window cut back: {shape:?}");
    assert_eq!(differing(&device.read(&device.matrices[1]), &twin.state), None, "state cut back: {shape:?}");
}

#[test]
fn gated_delta_gives_the_twin_s_bits() {
    let Some(pipelines) = common::pipelines() else { return };
    let shape = DeltaShape { key_heads: 2, value_heads: 4, key_dim: 128, value_dim: 128, taps: 4 };
    for fused in [false, true] {
        check(&pipelines, shape, fused);
        check(&pipelines, DeltaShape { key_dim: 32, value_dim: 48, ..shape }, fused);
        check(
            &pipelines,
            DeltaShape { key_heads: 3, value_heads: 3, key_dim: 64, value_dim: 16, taps: 2 },
            fused,
        );
    }
}
