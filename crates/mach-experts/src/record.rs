//! One expert as one contiguous record: matrices by what they do, each where the layout says, each with or without a
//! vector that is added to its outputs.

use mach_checkpoint::{CheckpointError, ExpertSource};
use mach_quant::{FloatType, MatrixLayout, Order};
use serde::{Deserialize, Serialize};

/// Records start at, and are padded to, multiples of this: the unit of direct reads.
pub const RECORD_ALIGN: usize = 16 << 10;

/// Matrices and vectors start at multiples of a cache line.
const PART_ALIGN: usize = 64;

/// What a matrix of an expert does. A record has each at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// `[intermediate, hidden]`, passed through the activation.
    Gate,
    /// `[intermediate, hidden]`, multiplied with the former.
    Up,
    /// Both in one, `[2 * intermediate, hidden]`.
    GateUp,
    /// `[hidden, intermediate]`.
    Down,
}

impl Projection {
    /// All of them.
    pub const ALL: [Projection; 4] = [Projection::Gate, Projection::Up, Projection::GateUp, Projection::Down];

    /// As manifests call it.
    pub fn name(self) -> &'static str {
        match self {
            Projection::Gate => "gate",
            Projection::Up => "up",
            Projection::GateUp => "gate_up",
            Projection::Down => "down",
        }
    }
}

/// A matrix of a record. Codes, scales and biases of its groups lie as its layout says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// What it does.
    pub projection: Projection,
    /// Its first byte in the record, a multiple of 64.
    pub at: usize,
    /// Shape, encoding, order.
    pub layout: MatrixLayout,
    /// The expert's bias, if it has one here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<BiasAt>,
}

/// Where the vector is that is added to a matrix's outputs: one value a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BiasAt {
    /// Its first byte in the record, a multiple of 64.
    pub at: usize,
    /// Type of its values.
    pub float: FloatType,
}

impl Part {
    /// First byte and length of the matrix, then of its bias.
    fn extents(&self) -> [Option<(usize, usize)>; 2] {
        let bias = self.bias.map(|b| (b.at, self.layout.rows * b.float.size()));
        [Some((self.at, self.layout.bytes())), bias]
    }
}

/// Why matrices are no record, in words for a person; the caller knows file and layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RecordError(String);

/// Where the matrices of an expert lie in its record. In JSON the list of its [`Part`]s, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Part>", into = "Vec<Part>")]
pub struct RecordLayout {
    parts: [Option<Part>; Projection::ALL.len()],
    len: usize,
}

/// A matrix inside a record.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    /// Shape, encoding, order.
    pub layout: MatrixLayout,
    /// The matrix, `layout.bytes()` long.
    pub data: &'a [u8],
}

/// An expert's bias inside a record.
#[derive(Debug, Clone, Copy)]
pub struct BiasView<'a> {
    /// Type of its values.
    pub float: FloatType,
    /// Its bytes, one value a row of the matrix.
    pub data: &'a [u8],
}

/// A record's bytes, by what they are.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'a> {
    layout: &'a RecordLayout,
    data: &'a [u8],
}

/// The matrices of a gated expert, and the biases of those that have one.
#[derive(Debug, Clone, Copy)]
pub struct ExpertView<'a> {
    /// `[intermediate, hidden]`.
    pub gate: MatrixView<'a>,
    /// `[intermediate, hidden]`.
    pub up: MatrixView<'a>,
    /// `[hidden, intermediate]`.
    pub down: MatrixView<'a>,
    /// What is added to the outputs of gate, up and down.
    pub biases: [Option<BiasView<'a>>; 3],
}

impl RecordLayout {
    /// The layout of this expert's record.
    pub fn of(expert: &ExpertSource<'_>, order: Order) -> Result<Self, CheckpointError> {
        let [gate, up, down] =
            [&expert.gate, &expert.up, &expert.down].map(|m| m.source().map(|s| MatrixLayout::of(&s, order)));
        Self::of_matrices(expert, [gate?, up?, down?])
    }

    /// The layout of this expert's record if its gate, up and down are laid out like these. Biases keep their type, half
    /// precision widened.
    pub fn of_matrices(
        expert: &ExpertSource<'_>,
        [gate, up, down]: [MatrixLayout; 3],
    ) -> Result<Self, CheckpointError> {
        let floats = match &expert.biases {
            Some(biases) => [biases.gate.float()?, biases.up.float()?, biases.down.float()?]
                .map(|float| Some(float.stored())),
            None => [None; 3],
        };
        let matrices = [(Projection::Gate, gate), (Projection::Up, up), (Projection::Down, down)];
        Ok(Self::placed(matrices.into_iter().zip(floats).map(|((p, layout), float)| (p, layout, float))))
    }

    /// The layout of a record that holds these matrices and no biases.
    pub fn new(gate: MatrixLayout, up: MatrixLayout, down: MatrixLayout) -> Self {
        let matrices = [(Projection::Gate, gate), (Projection::Up, up), (Projection::Down, down)];
        Self::placed(matrices.into_iter().map(|(projection, layout)| (projection, layout, None)))
    }

    /// The layout of a record that holds these matrices one after the other, each with a bias after it if it has one of
    /// some type.
    ///
    /// # Errors
    /// A projection that is there twice, or a layout that cannot be.
    pub fn with(matrices: &[(Projection, MatrixLayout, Option<FloatType>)]) -> Result<Self, RecordError> {
        for (i, (projection, layout, _)) in matrices.iter().enumerate() {
            check_matrix(*projection, layout)?;
            if matrices.iter().take(i).any(|(other, ..)| other == projection) {
                return twice(*projection);
            }
        }
        Ok(Self::placed(matrices.iter().copied()))
    }

    /// At most one of each projection.
    fn placed(matrices: impl Iterator<Item = (Projection, MatrixLayout, Option<FloatType>)>) -> Self {
        let (mut parts, mut len) = ([None; Projection::ALL.len()], 0usize);
        for (place, (projection, layout, bias)) in parts.iter_mut().zip(matrices) {
            let at = len.next_multiple_of(PART_ALIGN);
            len = at + layout.bytes();
            let bias = bias.map(|float| {
                let at = len.next_multiple_of(PART_ALIGN);
                len = at + layout.rows * float.size();
                BiasAt { at, float }
            });
            *place = Some(Part { projection, at, layout, bias });
        }
        RecordLayout { parts, len }
    }

    /// The matrices, in the order of their bytes.
    pub fn parts(&self) -> impl Iterator<Item = &Part> + Clone {
        self.parts.iter().flatten()
    }

    /// The matrix of a projection, if the record has one.
    pub fn part(&self, projection: Projection) -> Option<&Part> {
        self.parts().find(|p| p.projection == projection)
    }

    /// Fails, naming the part, unless the record is that of a gated expert: gate, up and down, which is what this build
    /// computes.
    pub fn check_gated(&self) -> Result<(), RecordError> {
        for part in self.parts() {
            let name = part.projection.name();
            if part.projection == Projection::GateUp {
                return Err(RecordError(format!("`{name}` is fused, which this build cannot multiply with")));
            }
        }
        match [Projection::Gate, Projection::Up, Projection::Down]
            .into_iter()
            .find(|&p| self.part(p).is_none())
        {
            Some(missing) => Err(RecordError(format!("there is no `{}`", missing.name()))),
            None => Ok(()),
        }
    }

    /// Fails, naming the part, unless every matrix has a bias if `wanted`, and none has one otherwise.
    pub fn check_biases(&self, wanted: bool) -> Result<(), RecordError> {
        match self.parts().find(|part| part.bias.is_some() != wanted) {
            Some(part) => {
                let (name, has) = (part.projection.name(), if wanted { "no" } else { "an" });
                Err(RecordError(format!("`{name}` has {has} expert bias, which the model does not fit")))
            }
            None => Ok(()),
        }
    }

    /// The record of the same experts in another order.
    pub fn in_order(&self, order: Order) -> Self {
        if self.parts().all(|p| p.layout.in_order(order) == p.layout) {
            return *self;
        }
        let float = |p: &Part| p.bias.map(|b| b.float);
        Self::placed(self.parts().map(|p| (p.projection, p.layout.in_order(order), float(p))))
    }

    /// Whether [`repack`](Self::repack) can make this record from one in the layout `from`.
    pub fn repacks_from(&self, from: &RecordLayout) -> bool {
        self.parts().count() == from.parts().count()
            && self.parts().all(|p| {
                let float = |p: &Part| p.bias.map(|b| b.float);
                from.part(p.projection)
                    .is_some_and(|f| p.layout.repacks_from(&f.layout) && float(p) == float(f))
            })
    }

    /// Writes into `record` what `data` holds in the layout `from`.
    pub fn repack(&self, from: &RecordLayout, data: &[u8], record: &mut [u8]) {
        let view = from.view(data);
        for part in self.parts() {
            if let Some(matrix) = view.matrix(part.projection) {
                let out = &mut record[part.at..part.at + part.layout.bytes()];
                part.layout.repack(&matrix.layout, matrix.data, 0, out);
            }
            if let (Some(at), Some(bias)) = (part.bias, view.bias(part.projection)) {
                record[at.at..at.at + bias.data.len()].copy_from_slice(bias.data);
            }
        }
    }

    /// Fails, in words, unless this build computes with such records and makes them from those `stored` on the drive.
    pub(crate) fn check_usable(&self, stored: &RecordLayout) -> Result<(), RecordError> {
        stored.check_gated()?;
        if self.repacks_from(stored) {
            return Ok(());
        }
        Err(RecordError("records are row-major where tiles are needed; convert again".to_owned()))
    }

    /// Bytes from one record to the next.
    pub fn stride(&self) -> usize {
        self.len.next_multiple_of(RECORD_ALIGN)
    }

    /// Bytes of weights in a record, biases included, padding not counted.
    pub fn weight_bytes(&self) -> usize {
        self.parts().flat_map(Part::extents).flatten().map(|(_, len)| len).sum()
    }

    /// Writes an expert's weights into `record` (at least `stride` bytes); checks that they are finite.
    ///
    /// # Errors
    /// A value that is not finite, or a part that the source does not have.
    pub fn pack(&self, expert: &ExpertSource<'_>, record: &mut [u8]) -> Result<(), CheckpointError> {
        for part in self.parts() {
            let source = match part.projection {
                Projection::Gate => &expert.gate,
                Projection::Up => &expert.up,
                Projection::Down => &expert.down,
                Projection::GateUp => return Err(missing(expert, "`gate_up`")),
            };
            source.check_finite()?;
            part.layout.pack(&source.source()?, 0, &mut record[part.at..part.at + part.layout.bytes()]);
        }
        self.pack_biases(expert, record)
    }

    /// The part of [`pack`](Self::pack) that writes biases.
    pub fn pack_biases(&self, expert: &ExpertSource<'_>, record: &mut [u8]) -> Result<(), CheckpointError> {
        for part in self.parts() {
            let Some(BiasAt { float, .. }) = part.bias else { continue };
            let source = match (part.projection, &expert.biases) {
                (Projection::Gate, Some(biases)) => &biases.gate,
                (Projection::Up, Some(biases)) => &biases.up,
                (Projection::Down, Some(biases)) => &biases.down,
                (Projection::GateUp, _) | (_, None) => return Err(missing(expert, "a bias")),
            };
            let out = self.bias_mut(record, part.projection).unwrap_or_default();
            for (i, value) in source.values()?.into_iter().enumerate() {
                float.write(out, i, value);
            }
        }
        Ok(())
    }

    /// The bytes of a matrix inside a record's (at least `stride`), to be written.
    pub fn matrix_mut<'a>(&self, record: &'a mut [u8], projection: Projection) -> Option<&'a mut [u8]> {
        let part = self.part(projection)?;
        record.get_mut(part.at..part.at + part.layout.bytes())
    }

    /// The bytes of a bias inside a record's, to be written.
    pub fn bias_mut<'a>(&self, record: &'a mut [u8], projection: Projection) -> Option<&'a mut [u8]> {
        let part = self.part(projection)?;
        let BiasAt { at, float } = part.bias?;
        record.get_mut(at..at + part.layout.rows * float.size())
    }

    /// A record's bytes (at least `stride`) by what they are.
    pub fn view<'a>(&'a self, record: &'a [u8]) -> RecordView<'a> {
        RecordView { layout: self, data: record }
    }
}

impl<'a> RecordView<'a> {
    /// The matrix of a projection, if the record has one.
    pub fn matrix(&self, projection: Projection) -> Option<MatrixView<'a>> {
        let part = self.layout.part(projection)?;
        let data = self.data.get(part.at..part.at + part.layout.bytes())?;
        Some(MatrixView { layout: part.layout, data })
    }

    /// What is added to the outputs of a projection, if the record has that.
    pub fn bias(&self, projection: Projection) -> Option<BiasView<'a>> {
        let part = self.layout.part(projection)?;
        let BiasAt { at, float } = part.bias?;
        Some(BiasView { float, data: self.data.get(at..at + part.layout.rows * float.size())? })
    }

    /// A gated expert; `None` if the record does not have all matrices of one or has
    /// [more](RecordLayout::check_gated).
    pub fn gated(&self) -> Option<ExpertView<'a>> {
        self.layout.check_gated().ok()?;
        Some(ExpertView {
            biases: [Projection::Gate, Projection::Up, Projection::Down].map(|p| self.bias(p)),
            gate: self.matrix(Projection::Gate)?,
            up: self.matrix(Projection::Up)?,
            down: self.matrix(Projection::Down)?,
        })
    }
}

impl From<RecordLayout> for Vec<Part> {
    fn from(layout: RecordLayout) -> Vec<Part> {
        layout.parts().copied().collect()
    }
}

impl TryFrom<Vec<Part>> for RecordLayout {
    type Error = RecordError;

    /// Checks what a file says: layouts that can be, no projection twice, parts one after the other on cache lines.
    fn try_from(list: Vec<Part>) -> Result<Self, RecordError> {
        let (mut parts, mut len) = ([None; Projection::ALL.len()], 0usize);
        for (i, part) in list.iter().enumerate() {
            check_matrix(part.projection, &part.layout)?;
            if list.iter().take(i).any(|other| other.projection == part.projection) {
                return twice(part.projection);
            }
            for (at, bytes) in part.extents().into_iter().flatten() {
                let name = part.projection.name();
                if at < len || !at.is_multiple_of(PART_ALIGN) {
                    return Err(RecordError(format!(
                        "`{name}`: byte {at} is before the end of what precedes it, or no multiple of {PART_ALIGN}"
                    )));
                }
                len = at
                    .checked_add(bytes)
                    .filter(|&end| end <= MAX_RECORD)
                    .ok_or_else(|| RecordError(format!("`{name}`: ends beyond byte {MAX_RECORD}")))?;
            }
            if let Some(place) = parts.get_mut(i) {
                *place = Some(*part);
            }
        }
        Ok(RecordLayout { parts, len })
    }
}

/// More bytes than any expert has.
const MAX_RECORD: usize = 1 << 40;

fn check_matrix(projection: Projection, layout: &MatrixLayout) -> Result<(), RecordError> {
    let name = projection.name();
    layout.validate().map_err(|e| RecordError(format!("`{name}`: {e}")))?;
    if layout.rows.max(layout.bytes()) > MAX_RECORD {
        return Err(RecordError(format!("`{name}`: {} x {} is too large", layout.rows, layout.cols)));
    }
    Ok(())
}

fn twice<T>(projection: Projection) -> Result<T, RecordError> {
    Err(RecordError(format!("`{}` is there twice", projection.name())))
}

fn missing(expert: &ExpertSource<'_>, what: &str) -> CheckpointError {
    CheckpointError::Tensor {
        file: expert.gate.file.to_path_buf(),
        tensor: expert.gate.module.to_owned(),
        reason: format!("{what} is wanted, which the source does not have"),
    }
}
