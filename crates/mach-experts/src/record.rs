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
        let (gate, up, down) = (gate?, up?, down?);
        let up_at = gate.bytes().next_multiple_of(MATRIX_ALIGN);
        let down_at = (up_at + up.bytes()).next_multiple_of(MATRIX_ALIGN);
        Ok(RecordLayout { gate, up, down, up_at, down_at, len: down_at + down.bytes() })
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
