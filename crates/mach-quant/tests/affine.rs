//! Quantization against MLX's own output.

use std::path::PathBuf;

use mach_quant::{Bits, FloatType, affine};
use safetensors::{Dtype, SafeTensors};

#[test]
fn codes_scales_and_biases_equal_mlx() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/quant/mlx.safetensors");
    let bytes = std::fs::read(file).expect("fixture");
    let st = SafeTensors::deserialize(&bytes).unwrap();
    let source = st.tensor("source").unwrap();
    let values: Vec<f32> = (0..24 * 256).map(|i| FloatType::Bf16.read(source.data(), i)).collect();
    let mut checked = 0;
    for bits in Bits::ALL {
        for group in [32, 64, 128] {
            for (suffix, float) in [("", FloatType::Bf16), ("_f16", FloatType::F16), ("_f32", FloatType::F32)]
            {
                let name = format!("affine_b{bits}_g{group}{suffix}");
                let Ok(weight) = st.tensor(&format!("{name}.weight")) else { continue };
                let scales = st.tensor(&format!("{name}.scales")).unwrap();
                let biases = st.tensor(&format!("{name}.biases")).unwrap();
                assert_eq!(scales.dtype() == Dtype::F32, float == FloatType::F32);
                let (mut w, mut s, mut b) = (
                    vec![0; weight.data().len()],
                    vec![0; scales.data().len()],
                    vec![0; biases.data().len()],
                );
                let (wn, sn) = (w.len() / 24, s.len() / 24);
                for row in 0..24 {
                    affine::quantize_row(
                        bits,
                        group,
                        float,
                        &values[row * 256..(row + 1) * 256],
                        &mut w[row * wn..(row + 1) * wn],
                        &mut s[row * sn..(row + 1) * sn],
                        &mut b[row * sn..(row + 1) * sn],
                    );
                }
                assert!(w == weight.data(), "{name}: codes");
                assert!(s == scales.data(), "{name}: scales");
                assert!(b == biases.data(), "{name}: biases");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 20);
}
