//! Activations on the CPU.

use llama4rs_tensor::{Error, Result};

/// Activations `[rows, cols]`, row-major single precision.
///
/// As an output a tensor takes the shape that the operation needs; its memory
/// only grows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensor {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Tensor {
    /// A tensor of given values.
    pub(crate) fn from_values(values: &[f32], cols: usize) -> Result<Self> {
        let mut tensor = Self::default();
        let rows = values.len().checked_div(cols).unwrap_or(0);
        if rows * cols != values.len() {
            return Err(Error::shape(
                "upload",
                format!("a multiple of {cols} values"),
                values.len(),
            ));
        }
        tensor.resize(rows, cols)?;
        tensor.data.copy_from_slice(values);
        Ok(tensor)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }
    /// All values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.data
    }
    /// All values, row-major, to be written.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
    /// One row.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// Takes a new shape; the values are then anything.
    pub(crate) fn resize(&mut self, rows: usize, cols: usize) -> Result<()> {
        let len = rows
            .checked_mul(cols)
            .ok_or(Error::OutOfMemory { what: "activations", bytes: usize::MAX })?;
        resize(&mut self.data, len, "activations")?;
        (self.rows, self.cols) = (rows, cols);
        Ok(())
    }
}

/// Makes `data` exactly `len` long, keeping its capacity; new values are zero.
pub(crate) fn resize<T: Copy + Default>(
    data: &mut Vec<T>,
    len: usize,
    what: &'static str,
) -> Result<()> {
    let missing = len.saturating_sub(data.len());
    data.try_reserve(missing).map_err(|_| Error::OutOfMemory {
        what,
        bytes: len.saturating_mul(std::mem::size_of::<T>()),
    })?;
    data.resize(len, T::default());
    Ok(())
}
