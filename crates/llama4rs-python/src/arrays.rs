//! Numpy arrays out of vectors, and what is in those of callers.

use numpy::ndarray::Dimension;
use numpy::{Element, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
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

/// The numbers of `array`, row-major. An array in any other order is an error: numpy's own
/// notion of "contiguous" includes the transposed one.
pub(crate) fn row_major<'a, T: Element, D: Dimension>(
    name: &str,
    array: &'a PyReadonlyArray<'_, T, D>,
) -> PyResult<&'a [T]> {
    let numbers = array.as_slice().ok().filter(|_| array.is_c_contiguous());
    numbers.ok_or_else(|| {
        PyValueError::new_err(format!(
            "{name} must be contiguous in row-major order: give np.ascontiguousarray({name})"
        ))
    })
}
