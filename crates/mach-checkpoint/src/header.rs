//! The header of a safetensors file: where each tensor lies.

use std::collections::HashMap;

use safetensors::tensor::{Dtype as StDtype, TensorInfo};
use serde::Deserialize;

/// Element types met in checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// 64-bit signed.
    I64,
    /// 32-bit signed.
    I32,
    /// 32-bit unsigned; packed codes of MLX.
    U32,
    /// Unsigned bytes: packed codes or e8m0 scales.
    U8,
    /// Signed bytes.
    I8,
    /// OCP e4m3.
    F8E4M3,
    /// Power-of-two scale.
    F8E8M0,
}

impl Dtype {
    /// Bytes an element.
    pub fn size(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 | Self::I8 | Self::F8E4M3 | Self::F8E8M0 => 1,
        }
    }

    /// Whether it is a float that widens to f32 without loss: F32, F16, BF16.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    fn from_stored(dtype: StDtype) -> Option<Self> {
        Some(match dtype {
            StDtype::F32 => Self::F32,
            StDtype::F16 => Self::F16,
            StDtype::BF16 => Self::BF16,
            StDtype::I64 => Self::I64,
            StDtype::I32 => Self::I32,
            StDtype::U32 => Self::U32,
            StDtype::U8 => Self::U8,
            StDtype::I8 => Self::I8,
            StDtype::F8_E4M3 => Self::F8E4M3,
            StDtype::F8_E8M0 => Self::F8E8M0,
            _ => return None,
        })
    }
}

/// One tensor of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Full name.
    pub name: String,
    /// Element type; `None` for a type that mach does not read.
    pub dtype: Option<Dtype>,
    /// The type as the file spells it.
    pub stored_dtype: String,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub start: usize,
    /// One past the last byte, from the start of the file.
    pub end: usize,
}

/// The header's JSON object.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

/// Longest header accepted, the limit of the format's own library.
const MAX_HEADER: u64 = 100_000_000;

/// Parses the header of a whole safetensors file (`bytes`) and checks it: offsets ascend without holes, sizes equal
/// shape times element size, and the last tensor ends where the file ends. The error is a sentence for a person.
///
/// Returns the entries in file order and the length of the header, its 8-byte length field included.
pub fn parse_header(bytes: &[u8]) -> Result<(Vec<TensorEntry>, usize), String> {
    parse_header_and_metadata(bytes).map(|(entries, length, _)| (entries, length))
}

/// The `__metadata__` object.
pub(crate) type Metadata = HashMap<String, String>;

/// As [`parse_header`], with the file's `__metadata__`.
pub(crate) fn parse_header_and_metadata(bytes: &[u8]) -> Result<(Vec<TensorEntry>, usize, Metadata), String> {
    let Some(length) = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) else {
        return Err(format!("{} bytes is too short for a safetensors file", bytes.len()));
    };
    if length > MAX_HEADER {
        return Err(format!("not a safetensors file: header length {length} is over {MAX_HEADER} bytes"));
    }
    let data_start = 8 + length as usize; // cannot overflow: length <= MAX_HEADER
    let Some(json) = bytes.get(8..data_start) else {
        return Err(format!("truncated: header of {length} bytes in a file of {} bytes", bytes.len()));
    };
    let header: Header =
        serde_json::from_slice(json).map_err(|error| format!("bad safetensors header: {error}"))?;
    let mut tensors: Vec<(String, TensorInfo)> = header.tensors.into_iter().collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets);

    let mut entries = Vec::with_capacity(tensors.len());
    let mut offset = 0usize;
    let available = bytes.len() - data_start;
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        let size = info
            .shape
            .iter()
            .try_fold(info.dtype.bitsize(), |bits, &n| bits.checked_mul(n))
            .filter(|bits| bits % 8 == 0)
            .map(|bits| bits / 8);
        if end.checked_sub(start).is_none_or(|length| Some(length) != size) {
            return Err(format!(
                "bad safetensors header: tensor `{name}` of type {:?} and shape {:?} cannot lie at bytes {start}..{end}",
                info.dtype, info.shape
            ));
        }
        if start != offset {
            return Err(format!(
                "bad safetensors header: tensor `{name}` starts at byte {start} where {offset} was expected"
            ));
        }
        if end > available {
            return Err(format!(
                "truncated: tensor `{name}` ends at byte {end} but the file has {available} bytes of data"
            ));
        }
        offset = end;
        entries.push(TensorEntry {
            dtype: Dtype::from_stored(info.dtype),
            stored_dtype: format!("{:?}", info.dtype),
            shape: info.shape,
            start: data_start + start,
            end: data_start + end,
            name,
        });
    }
    if offset != available {
        return Err(format!("the header describes {offset} bytes of data but the file has {available}"));
    }
    Ok((entries, data_start, header.metadata.unwrap_or_default()))
}
