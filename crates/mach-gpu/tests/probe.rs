//! The probe finds what an adapter needs, and what it then claims is so.

mod common;

use mach_gpu::probe::probe;
use mach_gpu::{Fma, Forms};
use wgpu::Features;

#[test]
fn an_adapter_is_exact_in_some_form() {
    let Some(context) = common::context() else { return };
    let found = probe(&context).unwrap();
    println!("{}: {found:?}", context.facts().name);
    assert!(found.exact(), "{found:?}");
    if context.facts().name.contains("llvmpipe") {
        // It rounds twice.
        assert_eq!(found.forms, Forms { fma: Fma::Double, ..Forms::NATIVE });
    }
}

/// Without f64 there is nothing that an adapter that rounds twice could be exact with, and the probe says so.
#[test]
fn what_is_not_exact_is_named() {
    let Some(context) = common::context_without(Features::SHADER_F64) else { return };
    let found = probe(&context).unwrap();
    if context.facts().name.contains("llvmpipe") {
        assert!(!found.exact());
        assert!(found.failing.contains(&"fma") && found.failing.contains(&"gemv"), "{found:?}");
        assert!(!found.failing.contains(&"sum") && !found.failing.contains(&"contraction"), "{found:?}");
    }
}
