//! Checkpoints as MLX quantizes them, of any width: made of the published bfloat16 ones by the project's own quantizer,
//! which other tests hold to MLX's own output.

use std::collections::BTreeMap;
use std::path::Path;

use mach_quant::{Bits, FloatType, affine, decode};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

/// Width and group of a module.
pub(crate) type Scheme = (Bits, usize);

/// A tensor to be written.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// Writes the checkpoint `from` to `to` with every matrix quantized as `scheme` says of its module and columns.
pub(crate) fn quantized(from: &Path, to: &Path, scheme: impl Fn(&str, usize) -> Scheme) {
    each_matrix(from, to, |out, module, matrix, config| {
        let cols = *matrix.shape.last().unwrap();
        let (bits, group) = scheme(module, cols);
        let rows = matrix.data.len() / 2 / cols;
        let (code_len, scale_len) = (cols * bits.get() / 8, cols / group * 2);
        let mut parts = [vec![0; rows * code_len], vec![0; rows * scale_len], vec![0; rows * scale_len]];
        let [weight, scales, biases] = &mut parts;
        for row in 0..rows {
            let values: Vec<f32> =
                (0..cols).map(|j| FloatType::Bf16.read(&matrix.data, row * cols + j)).collect();
            affine::quantize_row(
                bits,
                group,
                FloatType::Bf16,
                &values,
                &mut weight[row * code_len..(row + 1) * code_len],
                &mut scales[row * scale_len..(row + 1) * scale_len],
                &mut biases[row * scale_len..(row + 1) * scale_len],
            );
        }
        let last = [code_len / 4, cols / group, cols / group];
        let names = ["weight", "scales", "biases"];
        for ((part, data), last) in names.into_iter().zip(parts).zip(last) {
            let dtype = if part == "weight" { Dtype::U32 } else { Dtype::BF16 };
            let shape = [&matrix.shape[..matrix.shape.len() - 1], &[last]].concat();
            out.insert(format!("{module}.{part}"), Tensor { dtype, shape, data });
        }
        config.insert(module.to_owned(), json!({"bits": bits.get(), "group_size": group}));
    });
}

/// Writes the values that the codes of [`quantized`] stand for, as single precision floats.
pub(crate) fn expanded(from: &Path, to: &Path, scheme: impl Fn(&str, usize) -> Scheme) {
    each_matrix(from, to, |out, module, matrix, _| {
        let cols = *matrix.shape.last().unwrap();
        let (bits, group) = scheme(module, cols);
        let mut data = Vec::with_capacity(2 * matrix.data.len());
        for row in matrix.data.chunks_exact(2 * cols) {
            let mut values: Vec<f32> = (0..cols).map(|j| FloatType::Bf16.read(row, j)).collect();
            let (mut w, mut s, mut b) =
                (vec![0; cols * bits.get() / 8], vec![0; cols / group * 2], vec![0; cols / group * 2]);
            affine::quantize_row(bits, group, FloatType::Bf16, &values, &mut w, &mut s, &mut b);
            decode::affine_row(bits, group, FloatType::Bf16, &w, &s, &b, &mut values);
            data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        out.insert(format!("{module}.weight"), Tensor { dtype: Dtype::F32, shape: matrix.shape, data });
    });
}

/// Copies a checkpoint; matrices are put to `out` by `write`, which may say something of them in the configuration.
fn each_matrix(
    from: &Path,
    to: &Path,
    write: impl Fn(&mut BTreeMap<String, Tensor>, &str, Tensor, &mut serde_json::Map<String, serde_json::Value>),
) {
    std::fs::create_dir_all(to).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut stacks: BTreeMap<String, BTreeMap<usize, Tensor>> = BTreeMap::new();
    let (mut out, mut config) = (BTreeMap::new(), serde_json::Map::new());
    let mut matrices = Vec::new();
    for (name, view) in tensors.tensors() {
        let tensor = Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), data: view.data().to_vec() };
        let module = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
        let is_matrix =
            tensor.shape.len() > 1 && !["conv1d", "visual", "mtp."].iter().any(|s| name.contains(s));
        match module.split_once(".experts.") {
            // One tensor an expert becomes a stack, as MLX has it.
            Some((mlp, rest)) if let Some((expert, projection)) = rest.split_once('.') => {
                let stack = stacks.entry(format!("{mlp}.switch_mlp.{projection}")).or_default();
                stack.insert(expert.parse().unwrap(), tensor);
            }
            _ if is_matrix => matrices.push((module, tensor)),
            _ => {
                out.insert(name, tensor);
            }
        }
    }
    for (module, experts) in stacks {
        let first = experts.values().next().unwrap();
        let (dtype, shape) = (first.dtype, [&[experts.len()], first.shape.as_slice()].concat());
        let data = experts.into_values().flat_map(|t| t.data).collect();
        matrices.push((module, Tensor { dtype, shape, data }));
    }
    for (module, tensor) in matrices {
        write(&mut out, &module, tensor, &mut config);
    }
    let views = out.iter().map(|(name, t)| {
        (name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.data).expect("lengths are right"))
    });
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(to.join("model.safetensors"), file).unwrap();
    let config_json = std::fs::read(from.join("config.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&config_json).unwrap();
    if !config.is_empty() {
        config.insert("bits".into(), json!(4));
        config.insert("group_size".into(), json!(64));
        json["quantization"] = config.into();
    }
    std::fs::write(to.join("config.json"), json.to_string()).unwrap();
}
