//! What an adapter may claim: every operation that results depend on is run beside the scalar twin, and replaced where
//! the adapter's own is not exact.

use std::time::Duration;

use mach_kernels::simd::Simd;
use mach_kernels::{Isa, Kernel, dispatch, math};

use crate::kernels::{SUMS, swap};
use crate::shader::{Division, Fma, Forms, Shader};
use crate::{Context, GpuError, Pipelines, Recorder, Storage};

/// Inputs of each operation.
const N: usize = 2048;
/// Sums over all inputs.
const SUMS_OF_ALL: usize = N / 64;
/// Far above what a software adapter takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// Names of the operations, in the order of the shader.
const OPERATIONS: [&str; 18] = [
    "sum",
    "product",
    "fma",
    "fma",
    "contraction",
    "reassociation",
    "division",
    "root",
    "max",
    "rounding",
    "bf16",
    "exp",
    "silu",
    "softplus",
    "integer dot",
    "gemv",
    "shuffle",
    "reduction",
];

/// What was found out about an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exactness {
    /// What the shaders' `fma_` and `div_` must be.
    pub forms: Forms,
    /// Operations whose results still differ from the CPU's.
    pub failing: Vec<&'static str>,
}

impl Exactness {
    /// Whether results are the CPU's, bit by bit.
    pub fn exact(&self) -> bool {
        self.failing.is_empty()
    }
}

/// The shader; `shuffle` where values are swapped inside subgroups.
pub fn shader(shuffle: bool) -> Shader {
    Shader::new("probe", include_str!("wgsl/probe.wgsl"))
        .after(SUMS)
        .after(swap(shuffle))
        .with("TEAMS", 1)
        .with("N", N as u32)
}

/// Runs every operation, with the adapter's own first.
pub fn probe(context: &Context) -> Result<Exactness, GpuError> {
    let inputs = Inputs::new();
    let want = inputs.twin();
    let mut forms = Forms::NATIVE;
    loop {
        let failing = compare(&run(context, forms, &inputs)?, &want);
        // All else depends on it.
        if failing.contains(&"fma") && forms.fma == Fma::Native && context.has_f64() {
            forms.fma = Fma::Double;
        } else if failing.contains(&"division") && forms.division == Division::Native {
            forms.division = Division::Scaled;
        } else {
            return Ok(Exactness { forms, failing });
        }
    }
}

fn run(context: &Context, forms: Forms, inputs: &Inputs) -> Result<Vec<u32>, GpuError> {
    let pipelines = Pipelines::new(context, forms);
    let pipeline = pipelines.get(&shader(context.has_shuffles()))?;
    let x = Storage::of(context, &inputs.x)?;
    let y = Storage::of(context, &inputs.y)?;
    let z = Storage::of(context, &inputs.z)?;
    let e = Storage::of(context, &inputs.e)?;
    let out = Storage::new(context, 4 * ((OPERATIONS.len() - 1) * N + SUMS_OF_ALL) as u64)?;
    let mut recorder = Recorder::new(context);
    let buffers = [(&x).into(), (&y).into(), (&z).into(), (&e).into(), (&out).into()];
    recorder.dispatch::<u32>(&pipeline, &buffers, &[], [(N / 64) as u32, 1, 1])?;
    recorder.submit().wait(DEADLINE)?;
    out.read(context, DEADLINE)
}

/// Operations with a result that is not the twin's, each once.
fn compare(got: &[u32], want: &[u32]) -> Vec<&'static str> {
    let mut failing = Vec::new();
    let parts = got.chunks(N).zip(want.chunks(N));
    for (name, (got, want)) in OPERATIONS.into_iter().zip(parts) {
        if got != want && !failing.contains(&name) {
            failing.push(name);
        }
    }
    failing
}

/// Numbers of both signs without a pattern.
struct Inputs {
    x: Vec<f32>,
    y: Vec<f32>,
    z: Vec<f32>,
    /// Exponents.
    e: Vec<f32>,
}

/// Wellons, "Prospecting for hash functions", 2018.
fn hash(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

impl Inputs {
    fn new() -> Inputs {
        // Magnitudes of 2^-20 to 2^20: sums cancel and round, nothing comes near subnormals.
        let float = |i: usize, seed: u32| {
            let h = hash(i as u32 ^ hash(seed));
            f32::from_bits((h & 0x807f_ffff) | ((107 + hash(h) % 41) << 23))
        };
        let of = |seed: u32| (0..N).map(|i| float(i, seed)).collect();
        let e = (0..N).map(|i| (hash(i as u32 ^ 0x5bd1) as f32 / u32::MAX as f32 - 0.5) * 180.0).collect();
        Inputs { x: of(1), y: of(2), z: of(3), e }
    }

    fn twin(&self) -> Vec<u32> {
        let Inputs { x, y, z, e } = self;
        let mut out = Vec::with_capacity(OPERATIONS.len() * N);
        let mut each = |f: &dyn Fn(f32, f32, f32) -> u32| out.extend((0..N).map(|i| f(x[i], y[i], z[i])));
        each(&|x, y, _| (x + y).to_bits());
        each(&|x, y, _| (x * y).to_bits());
        each(&|x, y, z| x.mul_add(y, z).to_bits());
        each(&|x, y, _| x.mul_add(y, -(x * y)).to_bits());
        each(&|x, y, z| (x * y + z).to_bits());
        each(&|x, y, _| ((x + y) - x).to_bits());
        each(&|x, y, _| (x / y).to_bits());
        each(&|x, _, _| x.abs().sqrt().to_bits());
        each(&|x, y, _| if x > y { x } else { y }.to_bits());
        each(&|x, _, _| x.round_ties_even() as i32 as u32);
        each(&|x, _, _| (x.to_bits() + 0x7FFF + ((x.to_bits() >> 16) & 1)) >> 16);
        for function in [Function::Exp, Function::Silu, Function::Softplus] {
            let mut values = vec![0.0; N];
            dispatch(Isa::SCALAR, Twin { function, x: e, out: &mut values });
            out.extend(values.into_iter().map(f32::to_bits));
        }
        out.extend((0..N).map(|i| dot(x[i].to_bits(), y[i].to_bits()) as u32));
        out.extend((0..N).map(|i| self.row(i).to_bits()));
        out.extend((0..N as u32).map(|i| ((i % 64) ^ 1) + 256 * ((i % 64) ^ 2)));
        out.extend((0..SUMS_OF_ALL).map(|g| self.sum(37 * g).to_bits()));
        out
    }

    /// A row of a product of 4-bit codes.
    fn row(&self, i: usize) -> f32 {
        let Inputs { x, y, z, .. } = self;
        (0..8).fold(0.0, |acc, k| {
            let (mut d, mut sum) = (0, 0);
            for j in 0..16 {
                let act = y[(16 * k + j) % N].to_bits();
                d += dot(x[(i + 16 * k + j) % N].to_bits() & 0x0F0F_0F0F, act);
                sum += dot(0x0101_0101, act);
            }
            let (s, b) = (x[(i + k) % N], y[(i + k) % N]);
            s.mul_add(d as f32, b * sum as f32).mul_add(z[k], acc)
        })
    }

    /// Sixteen partial sums, then the tree.
    fn sum(&self, first: usize) -> f32 {
        let mut p = [0.0f32; 16];
        for j in 0..N {
            p[j % 16] = self.x[(j + first) % N].mul_add(self.y[j], p[j % 16]);
        }
        let a: [f32; 8] = std::array::from_fn(|i| p[i] + p[i + 8]);
        let b: [f32; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
        (b[0] + b[2]) + (b[1] + b[3])
    }
}

fn dot(a: u32, b: u32) -> i32 {
    let pairs = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
    pairs.map(|(a, b)| i32::from(a as i8) * i32::from(b as i8)).sum()
}

#[derive(Clone, Copy)]
enum Function {
    Exp,
    Silu,
    Softplus,
}

struct Twin<'a> {
    function: Function,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Twin<'_> {
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.chunks_exact(16).zip(self.out.chunks_exact_mut(16)) {
            // SAFETY: chunks of 16.
            unsafe {
                let x = s.load(x.as_ptr());
                let y = match self.function {
                    Function::Exp => math::exp(s, x),
                    Function::Silu => math::silu(s, x),
                    Function::Softplus => math::softplus(s, x),
                };
                s.store(out.as_mut_ptr(), y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_bit_names_its_operation() {
        let want = Inputs::new().twin();
        assert_eq!(want.len(), (OPERATIONS.len() - 1) * N + SUMS_OF_ALL);
        assert!(compare(&want, &want).is_empty());
        for (k, name) in OPERATIONS.into_iter().enumerate() {
            let mut got = want.clone();
            got[k * N + 5] ^= 1;
            assert_eq!(compare(&got, &want), [name]);
        }
    }

    /// What is run tells right from wrong: each form of a wrong operation differs somewhere.
    #[test]
    fn inputs_show_what_is_wrong() {
        let Inputs { x, y, z, .. } = Inputs::new();
        let differ = |f: &dyn Fn(f32, f32, f32) -> f32, g: &dyn Fn(f32, f32, f32) -> f32| {
            (0..N).filter(|&i| f(x[i], y[i], z[i]).to_bits() != g(x[i], y[i], z[i]).to_bits()).count()
        };
        assert!(differ(&|x, y, z| x.mul_add(y, z), &|x, y, z| x * y + z) > 20);
        assert!(differ(&|x, y, _| (x + y) - x, &|_, y, _| y) > N / 4);
        assert!(differ(&|x, y, _| x / y, &|x, y, _| x * (1.0 / y)) > N / 10);
    }
}
