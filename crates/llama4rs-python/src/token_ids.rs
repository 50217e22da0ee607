//! Token ids as callers have them: lists of any integers, and the arrays of sessions.

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyList, PyTuple};

/// Token ids from a sequence of integers, or an error that says what such a number is.
pub(crate) fn token_ids(sequence: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if let Some(bytes) = array_bytes(sequence)? {
        let words = bytes.as_bytes().as_chunks().0;
        return Ok(words.iter().map(|&word| u32::from_ne_bytes(word)).collect());
    }
    sequence.extract().map_err(|error: PyErr| {
        match error.is_instance_of::<PyOverflowError>(sequence.py()) {
            true => PyValueError::new_err("a token id is a number from 0 to 2^32 - 1"),
            false => error,
        }
    })
}

/// As [`token_ids`], or none.
pub(crate) fn some_token_ids(sequence: &Bound<'_, PyAny>) -> PyResult<Option<Vec<u32>>> {
    (!sequence.is_none()).then(|| token_ids(sequence)).transpose()
}

/// The content of an `array.array("I")`, which is much faster to read than as Python's numbers.
fn array_bytes<'py>(sequence: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let array = sequence.py().import("array")?.getattr("array")?;
    if !sequence.get_type().is(&array) || sequence.getattr("typecode")?.extract::<char>()? != 'I' {
        return Ok(None);
    }
    Ok(Some(sequence.call_method0("tobytes")?.cast_into()?))
}

/// Whether a list or tuple holds plain integers and nothing else: no booleans, no numbers of
/// other libraries.
#[pyfunction]
pub(crate) fn are_plain_integers(items: &Bound<'_, PyAny>) -> bool {
    let is_plain = |item: Bound<'_, PyAny>| item.is_exact_instance_of::<PyInt>();
    match (items.cast::<PyList>(), items.cast::<PyTuple>()) {
        (Ok(list), _) => list.iter().all(is_plain),
        (_, Ok(tuple)) => tuple.iter().all(is_plain),
        _ => false,
    }
}
