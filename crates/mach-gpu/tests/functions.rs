//! Elementary functions in WGSL give the bits of the scalar twin.

mod common;

use common::{DEADLINE, differing, floats, hash, uniform};
use mach_gpu::{Division, Fma, Forms, Pipelines, Shader, Storage};
use mach_kernels::math;
use mach_kernels::simd::Simd;
use mach_kernels::{Isa, Kernel, dispatch};

const N: usize = 1 << 17;

/// The `op`-th function of the test's shader.
fn on_device(pipelines: &Pipelines, op: u32, inputs: [&[f32]; 3]) -> Vec<f32> {
    let context = pipelines.context();
    let shader = Shader::new("functions", include_str!("wgsl/functions.wgsl")).with("OP", op);
    let pipeline = pipelines.get(&shader).unwrap();
    let [x, y, z] = inputs.map(|x| Storage::of(context, x).unwrap());
    let out = Storage::new(context, 4 * N as u64).unwrap();
    let mut recorder = mach_gpu::Recorder::new(context);
    let buffers = [(&x).into(), (&y).into(), (&z).into(), (&out).into()];
    recorder.dispatch(&pipeline, &buffers, &[N as u32], [N as u32 / 64, 1, 1]).unwrap();
    recorder.submit().wait(DEADLINE).unwrap();
    out.read(context, DEADLINE).unwrap()
}

struct Twin<'a> {
    op: u32,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Twin<'_> {
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.chunks_exact(16).zip(self.out.chunks_exact_mut(16)) {
            // SAFETY: chunks of 16.
            unsafe {
                let x = s.load(x.as_ptr());
                let y = match self.op {
                    7 => math::exp(s, x),
                    8 => math::sigmoid(s, x),
                    9 => math::silu(s, x),
                    10 => math::gelu_tanh(s, x),
                    11 => math::sloped_silu(s, x, 1.702),
                    20 => math::softplus(s, x),
                    21 => math::tanh(s, x),
                    14 => s.to_float(s.to_int(x)),
                    _ => unreachable!(),
                };
                s.store(out.as_mut_ptr(), y);
            }
        }
    }
}

fn twin(op: u32, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    dispatch(Isa::SCALAR, Twin { op, x, out: &mut out });
    out
}

fn bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000)
}

fn with_forms(forms: Forms) {
    let Some(context) = common::context() else { return };
    if forms.fma == Fma::Double && !context.has_f64() {
        eprintln!("SKIPPED: no f64");
        return;
    }
    let pipelines = Pipelines::new(&context, forms);
    let (x, y, z) = (floats(N, 1, 30), floats(N, 2, 30), floats(N, 3, 30));
    let all = [&x[..], &y[..], &z[..]];
    let of = |f: &dyn Fn(f32, f32, f32) -> f32| -> Vec<f32> { (0..N).map(|i| f(x[i], y[i], z[i])).collect() };
    let check = |what: &str, op: u32, want: Vec<f32>| {
        if let Some(why) = differing(&on_device(&pipelines, op, all), &want) {
            panic!("{what}: {why}");
        }
    };
    check("sum", 0, of(&|x, y, _| x + y));
    check("product", 1, of(&|x, y, _| x * y));
    check("fma", 2, of(&|x, y, z| x.mul_add(y, z)));
    check(
        "fma of four",
        18,
        of(&|_, y, x| y.mul_add(y, x)).iter().zip(&x).zip(&y).map(|((_, x), y)| y.mul_add(*y, *x)).collect(),
    );
    check("no contraction", 3, of(&|x, y, z| x * y + z));
    check("no contraction of a vector times a scalar", 19, of(&|x, y, z| x * z + y));
    check("no simplification", 4, of(&|x, y, _| (x + y) - x));
    check("quotient", 5, of(&|x, y, _| x / y));
    check("root", 6, of(&|x, _, _| x.abs().sqrt()));
    check("max", 12, of(&|x, y, _| if x > y { x } else { y }));
    check("min", 13, of(&|x, y, _| if x < y { x } else { y }));
    check("bf16", 15, of(&|x, _, _| bf16(x)));
    check("widened bf16", 16, of(&|x, _, _| f32::from_bits(x.to_bits() << 16)));
    // Near sums of products, where a sum that is rounded twice shows.
    let c: Vec<f32> =
        (0..N).map(|i| -(x[i] * y[i]) * (1.0 + (hash(i as u32) % 5) as f32 * f32::EPSILON)).collect();
    let got = on_device(&pipelines, 2, [&x, &y, &c]);
    let want: Vec<f32> = (0..N).map(|i| x[i].mul_add(y[i], c[i])).collect();
    assert_eq!(differing(&got, &want), None, "fma that cancels");

    let mut wide = uniform(N, 4, 100.0);
    let special = [0.0, -0.0, 1.0, -1.0, 200.0, -200.0, 1e20, -1e20, f32::INFINITY, -87.0, 88.0, -64.0, 87.0];
    wide[..special.len()].copy_from_slice(&special);
    for (what, op) in [
        ("exp", 7),
        ("sigmoid", 8),
        ("silu", 9),
        ("gelu", 10),
        ("sloped silu", 11),
        ("softplus", 20),
        ("tanh", 21),
    ] {
        let (mut got, want) = (on_device(&pipelines, op, [&wide, &y, &z]), twin(op, &wide));
        // Nothing may depend on subnormals.
        got.iter_mut()
            .zip(&want)
            .filter(|(_, want)| want.is_subnormal())
            .for_each(|(got, want)| *got = *want);
        assert_eq!(differing(&got, &want), None, "{what}");
    }
    let halves: Vec<f32> = (0..N).map(|i| i as f32 * 0.5 - 30_000.0).collect();
    assert_eq!(differing(&on_device(&pipelines, 14, [&halves, &y, &z]), &twin(14, &halves)), None, "halves");
    let [a, b, c] = [5, 6, 7].map(|seed| uniform(N, seed, 127.49));
    let want: Vec<f32> = (0..N)
        .map(|i| {
            let code = |x: f32| x.round_ties_even() as i32 as i8 as u8;
            f32::from_bits(u32::from_le_bytes([code(a[i]), code(b[i]), code(c[i]), code(a[i])]))
        })
        .collect();
    let got = on_device(&pipelines, 17, [&a, &b, &c]);
    assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "codes");
}

#[test]
fn functions_with_a_division_of_the_adapter_give_the_twin_s_bits() {
    with_forms(Forms { fma: Fma::Double, division: Division::Native });
}

#[test]
fn functions_with_a_scaled_division_give_the_twin_s_bits() {
    with_forms(Forms { fma: Fma::Double, division: Division::Scaled });
}
