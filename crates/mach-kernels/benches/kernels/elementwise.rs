//! Norms and activations of 64 rows, 2048 wide.

use mach_kernels::Isa;
use mach_kernels::elementwise::{self, Gating};

use crate::case::{Suite, Work};

const ROWS: usize = 64;
const WIDTH: usize = 2048;

pub(crate) fn add(suite: &mut Suite) {
    let values = |n: usize| -> Vec<f32> { (0..n).map(|i| (i as f32).sin()).collect() };
    for isa in Isa::available() {
        let (x, weight, mut out) = (values(ROWS * WIDTH), values(WIDTH), vec![0.0; ROWS * WIDTH]);
        suite.add(format!("norm {isa}"), None, isa, Work::Rows(ROWS), move |cores| {
            elementwise::rms_norm(cores, &x, &weight, 1e-6, &mut out);
        });
        let (up, gate, mut both) = (values(ROWS * WIDTH), values(ROWS * WIDTH), vec![0.0; ROWS * WIDTH]);
        suite.add(format!("silu {isa}"), None, isa, Work::Rows(ROWS), move |cores| {
            both.copy_from_slice(&gate);
            elementwise::gate(cores, Gating::SILU, &mut both, &up);
        });
        let scores = values(WIDTH);
        let mut row = scores.clone();
        suite.add(format!("softmax {isa}"), None, isa, Work::Rows(1), move |cores| {
            row.copy_from_slice(&scores);
            elementwise::softmax(cores.isa(), &mut row);
        });
    }
}
