//! What [`crate::Cpu`] asks of shapes before it calls a kernel.

use llama4rs_tensor::{Error, Result};

use crate::Tensor;

/// An error of `operation` unless `fits`.
pub fn require(
    fits: bool,
    operation: &'static str,
    expected: impl FnOnce() -> String,
    got: impl FnOnce() -> String,
) -> Result<()> {
    if fits {
        Ok(())
    } else {
        Err(Error::shape(operation, expected(), got()))
    }
}

/// An error unless `cols` are whole heads of `head_dim`.
pub fn require_heads(operation: &'static str, cols: usize, head_dim: usize) -> Result<()> {
    let fits = head_dim > 0 && cols.is_multiple_of(head_dim);
    require(fits, operation, || format!("heads of {head_dim}"), || format!("{cols} columns"))
}

/// `[rows, cols]` of a tensor, for messages.
pub fn shape_of(x: &Tensor) -> String {
    format!("[{}, {}]", x.rows(), x.cols())
}

/// An error unless `x` is `[rows, cols]`.
pub fn require_shape(operation: &'static str, x: &Tensor, rows: usize, cols: usize) -> Result<()> {
    let fits = x.rows() == rows && x.cols() == cols;
    require(fits, operation, || format!("[{rows}, {cols}]"), || shape_of(x))
}

/// An error unless `vector` has one value for each column of `x`.
pub fn require_columns(operation: &'static str, x: &Tensor, vector: &[f32]) -> Result<()> {
    let cols = vector.len();
    require(x.cols() == cols, operation, || format!("{cols} columns"), || shape_of(x))
}

/// An error unless `len` is a multiple of `unit`.
pub fn require_whole(operation: &'static str, what: &str, len: usize, unit: usize) -> Result<()> {
    let whole = len.checked_rem(unit).map_or(len == 0, |rest| rest == 0);
    require(whole, operation, || format!("a multiple of {unit} {what}"), || len.to_string())
}
