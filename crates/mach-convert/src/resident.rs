//! `resident.safetensors`: everything but experts, laid out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use mach_checkpoint::{
    Checkpoint, CheckpointError, Dtype, RESIDENT_FILE, RESIDENT_FORMAT, ResidentIndex, ResidentTensor,
    TensorView, WeightSource,
};
use mach_models::{ResidentWeight, resident_weights};
use mach_quant::{Codec, FloatType, Order};
use serde_json::{Map, Value, json};

use crate::ConvertError;
use crate::matrix::{Conversion, Quantize};
use crate::parallel::parallel;
use crate::staging::write_file;

/// Laid out matrices start at multiples of this.
const PAGE: usize = 4096;

/// Bytes that are packed before they are written.
const BATCH: usize = 32 << 20;

// Some hundred of them, short-lived.
#[allow(clippy::large_enum_variant)]
enum Content<'a> {
    Matrix(Conversion<'a>),
    /// As in the source.
    Floats(TensorView<'a>),
}

struct Tensor<'a> {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: usize,
    content: Content<'a>,
}

/// What the file will hold.
pub(crate) struct Resident<'a> {
    tensors: Vec<Tensor<'a>>,
    source: String,
}

impl<'a> Resident<'a> {
    pub(crate) fn of(
        checkpoint: &'a Checkpoint,
        quantize: Option<Quantize>,
        source: &str,
    ) -> Result<Self, ConvertError> {
        let mut tensors = Vec::new();
        let mut seen = BTreeSet::new();
        for weight in resident_weights(checkpoint)? {
            let tensor = match weight {
                ResidentWeight::Matrix { module, rows, cols, float } => {
                    matrix(checkpoint, &module, [rows, cols], if float { None } else { quantize }, float)?
                }
                ResidentWeight::Floats { tensor } => floats(checkpoint.tensor(&tensor)?)?,
            };
            if seen.insert(tensor.name.clone()) {
                tensors.push(tensor);
            }
        }
        // Padded ones first: each of them then starts on a page.
        tensors.sort_by_key(|t| !t.bytes.is_multiple_of(PAGE));
        Ok(Resident { tensors, source: source.to_owned() })
    }

    /// Bytes of tensor data.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes as u64).sum()
    }

    /// Writes the file into `dir`. `progress` hears how many more bytes are done.
    pub(crate) fn write(
        &self,
        dir: &Path,
        threads: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), ConvertError> {
        let path = dir.join(RESIDENT_FILE);
        write_file(&path, |file| -> Result<(), ConvertError> {
            // Checksums are known after the data, and are as long as these zeros.
            let header = self.header(&vec![0; self.tensors.len()])?;
            file.write_all(&header).map_err(ConvertError::io(&path))?;
            let mut sums = Vec::with_capacity(self.tensors.len());
            for tensor in &self.tensors {
                sums.push(tensor.write(&path, file, threads, progress)?);
            }
            let header = self.header(&sums)?;
            file.seek(SeekFrom::Start(0))
                .and_then(|_| file.write_all(&header))
                .map_err(ConvertError::io(&path))
        })
    }

    /// Length field and header, padded so that the data start on a page.
    fn header(&self, sums: &[u32]) -> Result<Vec<u8>, ConvertError> {
        let mut index = BTreeMap::new();
        let mut entries = Map::new();
        let mut offset = 0;
        for (tensor, &crc32c) in self.tensors.iter().zip(sums) {
            let layout = match &tensor.content {
                Content::Matrix(conversion) => Some(conversion.layout),
                Content::Floats(_) => None,
            };
            index.insert(tensor.name.clone(), ResidentTensor { layout, crc32c });
            let end = offset + tensor.bytes;
            let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]});
            entries.insert(tensor.name.clone(), entry);
            offset = end;
        }
        let (format, version) = RESIDENT_FORMAT;
        let index =
            ResidentIndex { format: format.to_owned(), version, source: self.source.clone(), tensors: index };
        let bad = |e: serde_json::Error| ConvertError::Input(e.to_string());
        let (key, value) = index.to_metadata().map_err(bad)?;
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({"format": "pt", key: value}));
        header.extend(entries);
        let mut text = serde_json::to_vec(&Value::Object(header)).map_err(bad)?;
        text.resize((8 + text.len()).next_multiple_of(PAGE) - 8, b' ');
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut text);
        Ok(bytes)
    }
}

fn matrix<'a>(
    checkpoint: &'a Checkpoint,
    module: &str,
    [rows, cols]: [usize; 2],
    quantize: Option<Quantize>,
    float: bool,
) -> Result<Tensor<'a>, ConvertError> {
    let source = match checkpoint.weights(module, rows, cols)? {
        WeightSource::Stored(source) => source,
        WeightSource::Packed(packed) => {
            return Err(CheckpointError::Tensor {
                file: packed.file.to_owned(),
                tensor: module.to_owned(),
                reason: "already in engine format".to_owned(),
            }
            .into());
        }
    };
    let order = if float { Order::Rows } else { Order::Tiles };
    let conversion = Conversion::new(source, order, quantize)?;
    let bytes = conversion.layout.bytes();
    let (dtype, shape, bytes) = match conversion.layout.codec {
        // Row-major floats are a tensor that any reader of safetensors understands.
        Codec::Dense(FloatType::Bf16) => ("BF16", vec![rows, cols], bytes),
        Codec::Dense(_) => ("F32", vec![rows, cols], bytes),
        _ => ("U8", vec![bytes.next_multiple_of(PAGE)], bytes.next_multiple_of(PAGE)),
    };
    let content = Content::Matrix(conversion);
    Ok(Tensor { name: format!("{module}.weight"), dtype, shape, bytes, content })
}

fn floats(view: TensorView<'_>) -> Result<Tensor<'_>, ConvertError> {
    let dtype = match view.dtype {
        Dtype::BF16 => "BF16",
        Dtype::F16 => "F16",
        Dtype::F32 => "F32",
        Dtype::I64 => "I64",
        Dtype::I32 => "I32",
        other => return Err(ConvertError::Input(format!("tensor `{}` of type {other:?}", view.name))),
    };
    Ok(Tensor {
        name: view.name.to_owned(),
        dtype,
        shape: view.shape.to_vec(),
        bytes: view.data.len(),
        content: Content::Floats(view),
    })
}

impl Tensor<'_> {
    /// Appends the tensor's bytes to the file; its CRC32C.
    fn write(
        &self,
        path: &Path,
        file: &mut File,
        threads: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u32, ConvertError> {
        let mut crc = 0;
        let mut append = |bytes: &[u8]| {
            crc = crc32c::crc32c_append(crc, bytes);
            progress(bytes.len() as u64);
            file.write_all(bytes).map_err(ConvertError::io(path))
        };
        match &self.content {
            Content::Floats(view) => append(view.data)?,
            Content::Matrix(conversion) => {
                conversion.check_finite()?;
                let (unit, total) = (conversion.layout.unit_bytes().max(1), conversion.layout.bytes());
                let units = (BATCH / unit).max(1);
                let share = units.div_ceil(threads.max(1)).max(1);
                let mut buffer = vec![0; (units * unit).min(total)];
                for start in (0..total).step_by(units * unit) {
                    let len = (units * unit).min(total - start);
                    let buffer = buffer.get_mut(..len).unwrap_or_default();
                    let first = start / unit;
                    let jobs: Vec<_> = buffer.chunks_mut(share * unit).enumerate().collect();
                    parallel(threads, jobs.into_iter(), |(i, out)| conversion.write(first + i * share, out))?;
                    append(buffer)?;
                }
                append(&vec![0; self.bytes - total])?;
            }
        }
        Ok(crc)
    }
}
