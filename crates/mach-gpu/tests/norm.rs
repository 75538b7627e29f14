//! RMS norm gives the bits of the scalar twin.

mod common;

use common::{DEADLINE, differing, floats};
use mach_gpu::kernels::norm::{Norm, norm};
use mach_gpu::{Recorder, Storage};
use mach_kernels::elementwise::rms_norm;
use mach_kernels::{Cores, Isa};

#[test]
fn norms_give_the_twin_s_bits() {
    let Some(pipelines) = common::pipelines() else { return };
    let context = pipelines.context();
    for (rows, n) in [(1, 2048), (3, 128), (5, 17), (2, 4097), (1, 8200), (40_000, 16)] {
        let (x, w) = (floats(rows * n, 1, 6), floats(n, 2, 2));
        let mut want = vec![0.0; rows * n];
        rms_norm(&mut Cores::new(1, Isa::SCALAR), &x, &w, 1e-6, &mut want);
        let (bx, bw) = (Storage::of(context, &x).unwrap(), Storage::of(context, &w).unwrap());
        let out = Storage::new(context, 4 * (rows * n) as u64).unwrap();
        let mut recorder = Recorder::new(context);
        let params = Norm::of(rows as u32, n as u32, 1e-6);
        norm(&mut recorder, &pipelines, &params, (&bx).into(), (&bw).into(), (&out).into()).unwrap();
        recorder.submit().wait(DEADLINE).unwrap();
        let got: Vec<f32> = out.read(context, DEADLINE).unwrap();
        assert_eq!(differing(&got, &want), None, "{rows} x {n}");
    }
}

#[test]
fn rows_may_lie_in_wider_ones() {
    let Some(pipelines) = common::pipelines() else { return };
    let context = pipelines.context();
    let (rows, n, stride) = (4, 48, 50);
    let (x, w) = (floats(3 + rows * stride, 1, 6), floats(n, 2, 2));
    let (bx, bw) = (Storage::of(context, &x).unwrap(), Storage::of(context, &w).unwrap());
    let out = Storage::new(context, 4 * (1 + rows * n) as u64).unwrap();
    let mut recorder = Recorder::new(context);
    let params =
        Norm { x_at: 3, x_stride: stride as u32, out_at: 1, ..Norm::of(rows as u32, n as u32, 1e-5) };
    norm(&mut recorder, &pipelines, &params, (&bx).into(), (&bw).into(), (&out).into()).unwrap();
    recorder.submit().wait(DEADLINE).unwrap();
    let got: Vec<f32> = out.read(context, DEADLINE).unwrap();
    for row in 0..rows {
        let mut want = vec![0.0; n];
        let x = &x[3 + row * stride..][..n];
        rms_norm(&mut Cores::new(1, Isa::SCALAR), x, &w, 1e-5, &mut want);
        assert_eq!(differing(&got[1 + row * n..][..n], &want), None, "row {row}");
    }
}

#[test]
fn a_timed_recorder_times_each_dispatch() {
    let Some(pipelines) = common::pipelines() else { return };
    let context = pipelines.context();
    let x = Storage::of(context, &floats(4096, 1, 6)).unwrap();
    let out = Storage::new(context, 4 * 4096).unwrap();
    let mut recorder = Recorder::timed(context);
    for round in 0..3 {
        let params = Norm::of(2, 2048, 1e-6);
        norm(&mut recorder, &pipelines, &params, (&x).into(), (&x).into(), (&out).into()).unwrap();
        if round == 1 {
            // A copy ends the pass.
            recorder.copy_storage(&out, 0, &x, 0, 64);
        }
    }
    let timings = recorder.submit().timings(DEADLINE).unwrap();
    if context.features().contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
        assert_eq!(timings.iter().map(|timing| timing.name).collect::<Vec<_>>(), ["norm"; 3]);
    }
}
