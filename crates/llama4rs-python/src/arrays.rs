//! Numpy arrays out of vectors.

use numpy::{Element, PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

/// `values` as an array `[rows, cols]`, without a copy.
///
/// Numpy is imported first: an import that Ctrl-C interrupts is an exception
/// here, but a panic in the crate that makes the array.
pub(crate) fn matrix<T: Element>(
    py: Python<'_>,
    values: Vec<T>,
    rows: usize,
    cols: usize,
) -> PyResult<Bound<'_, PyArray2<T>>> {
    py.import("numpy")?;
    PyArray1::from_vec(py, values).reshape([rows, cols])
}
