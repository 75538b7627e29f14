//! The probe finds what an adapter needs, and what it then claims is so.

mod common;

use mach_gpu::probe::probe;
use mach_gpu::{Fma, Forms};

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
