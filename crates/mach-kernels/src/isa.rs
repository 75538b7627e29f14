//! Which instruction set runs: detection, choice by name, and dispatch of kernels.

use std::fmt;
use std::str::FromStr;

use crate::simd::{Simd, scalar::Scalar};

/// An instruction set that the kernels are built for and the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl Isa {
    /// Plain Rust; the definition of the bits.
    pub const SCALAR: Isa = Isa(Kind::Scalar);

    /// Every instruction set of this machine, best first.
    pub fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni");
            if avx512 {
                all.push(Isa(Kind::Avx512));
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                if is_x86_feature_detected!("avxvnni") {
                    all.push(Isa(Kind::AvxVnni));
                }
                all.push(Isa(Kind::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                all.push(Isa(Kind::NeonDot));
            }
            all.push(Isa(Kind::Neon));
        }
        all.push(Isa::SCALAR);
        all
    }

    /// The best one.
    pub fn best() -> Isa {
        Isa::available()[0]
    }

    /// The name that `--isa` takes and `startup model` shows.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => "neon-dotprod",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let all = Isa::available();
        all.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|isa| isa.name()).collect();
            format!("instruction set `{name}` is not available here; available: {}", names.join(", "))
        })
    }
}

/// A computation that runs on any instruction set.
pub trait Kernel {
    /// Runs it. Implementations are `#[inline(always)]`, so that the body is compiled for the target features.
    fn run<S: Simd>(self, simd: S);
}

/// Runs `kernel` on `isa`.
#[inline]
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) {
    match isa.0 {
        Kind::Scalar => scalar(kernel),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Kind::Avx512` is made only after detecting every feature that `avx512` enables.
        Kind::Avx512 => unsafe { avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Kind::Avx2` is made only after detecting every feature that `avx2` enables.
        Kind::Avx2 => unsafe { avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Kind::AvxVnni` is made only after detecting every feature that `avx_vnni` enables.
        Kind::AvxVnni => unsafe { avx_vnni(kernel) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Kind::Neon` is made only after detecting NEON.
        Kind::Neon => unsafe { neon(kernel) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Kind::NeonDot` is made only after detecting NEON and its dot product.
        Kind::NeonDot => unsafe { neon_dot(kernel) },
    }
}

// Never inlined: a kernel's code is large, and it is called from several places.

#[inline(never)]
pub(crate) fn scalar<K: Kernel>(kernel: K) {
    kernel.run(Scalar::new());
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,avx2")]
pub(crate) unsafe fn avx512<K: Kernel>(kernel: K) {
    // SAFETY: the caller guarantees the features, and they are enabled here.
    kernel.run(unsafe { crate::simd::avx512::Avx512::new() });
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn avx2<K: Kernel>(kernel: K) {
    // SAFETY: the caller guarantees the features, and they are enabled here.
    kernel.run(unsafe { crate::simd::avx2::Avx2::<false>::new() });
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma,avxvnni")]
pub(crate) unsafe fn avx_vnni<K: Kernel>(kernel: K) {
    // SAFETY: the caller guarantees the features, and they are enabled here.
    kernel.run(unsafe { crate::simd::avx2::Avx2::<true>::new() });
}

#[cfg(target_arch = "aarch64")]
#[inline(never)]
#[target_feature(enable = "neon")]
pub(crate) unsafe fn neon<K: Kernel>(kernel: K) {
    // SAFETY: the caller guarantees the features, and they are enabled here.
    kernel.run(unsafe { crate::simd::neon::Neon::<false>::new() });
}

#[cfg(target_arch = "aarch64")]
#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn neon_dot<K: Kernel>(kernel: K) {
    // SAFETY: the caller guarantees the features, and they are enabled here.
    kernel.run(unsafe { crate::simd::neon::Neon::<true>::new() });
}
