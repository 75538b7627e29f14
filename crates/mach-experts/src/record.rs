//! One expert as one contiguous record.

use mach_checkpoint::{CheckpointError, ExpertSource};
use mach_quant::{MatrixLayout, Order};

/// Records start at, and are padded to, multiples of this: the unit of direct reads.
pub const RECORD_ALIGN: usize = 16 << 10;

/// Matrices start at multiples of a cache line.
const MATRIX_ALIGN: usize = 64;

/// Where the three matrices of an expert lie in its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordLayout {
    /// `[intermediate, hidden]`.
    pub gate: MatrixLayout,
    /// `[intermediate, hidden]`.
    pub up: MatrixLayout,
    /// `[hidden, intermediate]`.
    pub down: MatrixLayout,
    up_at: usize,
    down_at: usize,
    len: usize,
}

/// A matrix inside a record.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    /// Shape, encoding, order.
    pub layout: MatrixLayout,
    /// Its bytes.
    pub data: &'a [u8],
}

/// The matrices of one expert.
#[derive(Debug, Clone, Copy)]
pub struct ExpertView<'a> {
    /// `[intermediate, hidden]`.
    pub gate: MatrixView<'a>,
    /// `[intermediate, hidden]`.
    pub up: MatrixView<'a>,
    /// `[hidden, intermediate]`.
    pub down: MatrixView<'a>,
}

impl RecordLayout {
    /// The layout of this expert's record.
    pub fn of(expert: &ExpertSource<'_>, order: Order) -> Result<Self, CheckpointError> {
        let [gate, up, down] =
            [&expert.gate, &expert.up, &expert.down].map(|m| m.source().map(|s| MatrixLayout::of(&s, order)));
        Ok(Self::new(gate?, up?, down?))
    }

    /// The layout of a record that holds these matrices.
    pub fn new(gate: MatrixLayout, up: MatrixLayout, down: MatrixLayout) -> Self {
        let up_at = gate.bytes().next_multiple_of(MATRIX_ALIGN);
        let down_at = (up_at + up.bytes()).next_multiple_of(MATRIX_ALIGN);
        RecordLayout { gate, up, down, up_at, down_at, len: down_at + down.bytes() }
    }

    /// The record of the same experts in another order.
    pub fn in_order(&self, order: Order) -> Self {
        Self::new(self.gate.in_order(order), self.up.in_order(order), self.down.in_order(order))
    }

    /// Whether [`repack`](Self::repack) can make this record from one in the layout `from`.
    pub fn repacks_from(&self, from: &RecordLayout) -> bool {
        self.gate.repacks_from(&from.gate)
            && self.up.repacks_from(&from.up)
            && self.down.repacks_from(&from.down)
    }

    /// Writes into `record` what `data` holds in the layout `from`.
    pub fn repack(&self, from: &RecordLayout, data: &[u8], record: &mut [u8]) {
        let view = from.view(data);
        for (matrix, layout, at) in [
            (view.gate, &self.gate, 0),
            (view.up, &self.up, self.up_at),
            (view.down, &self.down, self.down_at),
        ] {
            layout.repack(&matrix.layout, matrix.data, 0, &mut record[at..at + layout.bytes()]);
        }
    }

    /// Bytes from one record to the next.
    pub fn stride(&self) -> usize {
        self.len.next_multiple_of(RECORD_ALIGN)
    }

    /// Bytes of weights in a record, padding not counted.
    pub fn weight_bytes(&self) -> usize {
        self.gate.bytes() + self.up.bytes() + self.down.bytes()
    }

    /// Writes an expert's weights into `record` (at least `stride` bytes); checks that they are finite.
    pub fn pack(&self, expert: &ExpertSource<'_>, record: &mut [u8]) -> Result<(), CheckpointError> {
        for (source, layout, at) in [
            (&expert.gate, &self.gate, 0),
            (&expert.up, &self.up, self.up_at),
            (&expert.down, &self.down, self.down_at),
        ] {
            source.check_finite()?;
            layout.pack(&source.source()?, 0, &mut record[at..at + layout.bytes()]);
        }
        Ok(())
    }

    /// The matrices inside a record's bytes (at least `stride`), to be written: gate, up, down.
    pub fn parts_mut<'a>(&self, record: &'a mut [u8]) -> [(MatrixLayout, &'a mut [u8]); 3] {
        let (gate, rest) = record.split_at_mut(self.up_at);
        let (up, down) = rest.split_at_mut(self.down_at - self.up_at);
        [
            (self.gate, &mut gate[..self.gate.bytes()]),
            (self.up, &mut up[..self.up.bytes()]),
            (self.down, &mut down[..self.down.bytes()]),
        ]
    }

    /// The matrices inside a record's bytes.
    pub fn view<'a>(&self, record: &'a [u8]) -> ExpertView<'a> {
        let part =
            |layout: MatrixLayout, at: usize| MatrixView { layout, data: &record[at..at + layout.bytes()] };
        ExpertView {
            gate: part(self.gate, 0),
            up: part(self.up, self.up_at),
            down: part(self.down, self.down_at),
        }
    }
}
