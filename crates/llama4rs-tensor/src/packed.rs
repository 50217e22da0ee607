//! A weight matrix in the kernels' own order.

use crate::{Bytes, Error, Result, WeightFormat};

/// `stack` matrices of `rows` outputs by `cols` inputs each, in one [`WeightFormat`].
///
/// A plain linear layer has `stack == 1`; the routed experts of a layer are one
/// `PackedMatrix` whose matrix `e` is expert `e`.
#[derive(Debug)]
pub struct PackedMatrix {
    format: WeightFormat,
    stack: usize,
    rows: usize,
    cols: usize,
    bytes: Bytes,
}

impl PackedMatrix {
    /// Wraps packed bytes; the length must be exactly what format and shape need.
    pub fn new(
        format: WeightFormat,
        stack: usize,
        rows: usize,
        cols: usize,
        bytes: Bytes,
    ) -> Result<Self> {
        let expected = format
            .matrix_bytes(rows, cols)
            .and_then(|bytes| bytes.checked_mul(stack))
            .ok_or_else(|| {
            Error::shape("pack", "sizes that fit in memory", format!("{stack} x [{rows}, {cols}]"))
        })?;
        if bytes.len() != expected {
            return Err(Error::Length {
                what: format!("{format} matrix {stack} x [{rows}, {cols}]"),
                expected,
                found: bytes.len(),
            });
        }
        Ok(Self { format, stack, rows, cols, bytes })
    }

    /// How the weights are stored.
    pub fn format(&self) -> WeightFormat {
        self.format
    }
    /// Number of matrices: 1, or the number of experts.
    pub fn stack(&self) -> usize {
        self.stack
    }
    /// Outputs of each matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Inputs of each matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// All bytes of all matrices.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// Whether the bytes are mapped from a file.
    pub fn is_mapped(&self) -> bool {
        self.bytes.is_mapped()
    }

    /// The bytes of matrix `index` (expert `index`).
    pub fn matrix(&self, index: usize) -> &[u8] {
        let bytes = self.bytes.len() / self.stack;
        &self.bytes[index * bytes..(index + 1) * bytes]
    }

    /// The plain weights of matrix `index`, `[rows, cols]` row-major: the slow
    /// reference that every kernel is compared with.
    pub fn decode(&self, index: usize) -> Vec<f32> {
        self.format.decode(self.matrix(index), self.rows, self.cols)
    }
}
