//! Matrix products: int8 by width, instruction set and number of rows; float by width.

use std::rc::Rc;

use mach_io::{HugeBuf, MemoryError};
use mach_kernels::Isa;
use mach_kernels::linear::{MatRef, Product, multiply};
use mach_kernels::quantize::Operand;
use mach_quant::{Bits, Codec, FloatType, MatrixLayout, Order};

use crate::case::{Suite, Work};

const COLS: usize = 2048;

/// Weight rows of the products with one row: at 4 bits 128 MiB, far more than the caches hold.
const LONG: usize = 128 * 1024;

/// Weight rows of the products with many rows, and of those by plain Rust.
const ROWS: usize = 4096;
const SCALAR_ROWS: usize = 64;

/// Name and encoding, 4 bits first: the others are compared with it.
fn codecs() -> Vec<(String, Codec)> {
    let affine = |bits| Codec::Affine { bits, group: 64, scales: FloatType::Bf16 };
    let others = Bits::ALL.into_iter().filter(|&b| b != Bits::B4);
    let widths = std::iter::once(Bits::B4).chain(others).map(|b| (format!("b{b}"), affine(b)));
    widths.chain([("mxfp4".to_owned(), Codec::Mxfp4)]).collect()
}

pub(crate) fn add(suite: &mut Suite) -> Result<(), MemoryError> {
    for (width, codec) in codecs() {
        let mut weights = Vec::new();
        for isa in Isa::available() {
            for (count, rows) in [("row", LONG), ("2", ROWS), ("4", ROWS), ("8", ROWS), ("64", ROWS)] {
                let name = |width: &str| format!("int8 {isa} {count} {width}");
                if !suite.wants(&name(&width)) {
                    continue;
                }
                let rows = if isa == Isa::SCALAR { SCALAR_ROWS } else { rows };
                let layout = MatrixLayout { rows, cols: COLS, codec, order: Order::Tiles };
                let data = shared(&mut weights, layout)?;
                let m: usize = count.parse().unwrap_or(1);
                let work = if m == 1 { Work::Bytes(layout.bytes()) } else { Work::Dots(m * rows * COLS) };
                let beside = (width != "b4").then(|| name("b4"));
                suite.add(name(&width), beside, isa, work, product(layout, data, m));
            }
        }
        weights.clear();
        for isa in Isa::available() {
            for m in [1, 64] {
                let name = |width: &str| format!("float {isa} {m} {width}");
                let rows = if isa == Isa::SCALAR { SCALAR_ROWS / 16 } else { ROWS / 4 };
                let layout = MatrixLayout { rows, cols: COLS, codec, order: Order::Rows };
                if suite.wants(&name(&width)) {
                    let data = shared(&mut weights, layout)?;
                    let beside = (width != "b4").then(|| name("b4"));
                    suite.add(name(&width), beside, isa, Work::Rows(m), product(layout, data, m));
                }
            }
        }
    }
    Ok(())
}

/// The weights of a layout: one copy for all instruction sets.
fn shared(
    made: &mut Vec<(MatrixLayout, Rc<HugeBuf>)>,
    layout: MatrixLayout,
) -> Result<Rc<HugeBuf>, MemoryError> {
    if let Some((_, data)) = made.iter().find(|(l, _)| *l == layout) {
        return Ok(Rc::clone(data));
    }
    let mut data = HugeBuf::zeroed(layout.bytes())?;
    for (i, b) in data.iter_mut().enumerate() {
        // As bf16 scales these are around 1 and 0.1: denormal ones are slow on some processors, and no model has them.
        *b = match i % 2 {
            1 => 0x3F - u8::from(i / 2 % 4 == 3),
            _ => (i.wrapping_mul(2_654_435_761) >> 13) as u8,
        };
    }
    let data = Rc::new(data);
    made.push((layout, Rc::clone(&data)));
    Ok(data)
}

fn product(layout: MatrixLayout, data: Rc<HugeBuf>, m: usize) -> impl FnMut(&mut mach_kernels::Cores) {
    let x: Vec<f32> = (0..m * COLS).map(|i| (i as f32).sin()).collect();
    let mut out = vec![0.0; m * layout.rows];
    let mut operand = Operand::default();
    move |cores| {
        operand.prepare(cores, &layout, &x, COLS, m);
        let matrix = MatRef::new(layout, &data);
        let stride = layout.rows;
        multiply(cores, &mut [Product { matrix, operand: &operand, out: &mut out, stride }]);
    }
}
