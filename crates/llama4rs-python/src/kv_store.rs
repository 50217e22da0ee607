//! A directory of keys and values: list, verify, prune. No model is needed.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use llama4rs_checkpoint::Progress;
use llama4rs_kv_cache::store::{self, Fingerprint, Prune, Pruned, SegmentInfo};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors;
use crate::guard::detached;
use crate::progress;

/// Hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_fingerprint(text: &str) -> PyResult<Fingerprint> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8);
    let bytes: Option<Vec<u8>> =
        text.as_bytes().chunks(2).map(|c| (c.len() == 2).then(|| pair(c))?).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        PyValueError::new_err(format!("a fingerprint has 64 hexadecimal digits, got {text:?}"))
    })
}

fn segment<'py>(py: Python<'py>, info: &SegmentInfo) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("file", &info.file)?;
    dict.set_item("layers", info.pool.as_str())?;
    dict.set_item("start", info.start)?;
    dict.set_item("tokens", info.tokens)?;
    dict.set_item("bytes", info.bytes)?;
    let used = info.used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    dict.set_item("used", used.as_secs_f64())?;
    dict.set_item("fingerprint", info.fingerprint.as_ref().map(|bytes| hex(bytes)))?;
    dict.set_item("problem", &info.problem)?;
    Ok(dict)
}

/// The segment files of a directory, what was used last first.
#[pyfunction]
pub(crate) fn kv_list(py: Python<'_>, directory: PathBuf) -> PyResult<Bound<'_, PyList>> {
    let files =
        detached(py, || store::list(&directory))?.map_err(|error| errors::store(py, error))?;
    let list = PyList::empty(py);
    for info in &files {
        list.append(segment(py, info)?)?;
    }
    Ok(list)
}

/// Compares every checksum in a directory.
#[pyfunction]
#[pyo3(signature = (directory, *, progress = None))]
pub(crate) fn kv_verify<'py>(
    py: Python<'py>,
    directory: PathBuf,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let report = progress::run(py, progress, |progress: &dyn Progress| {
        store::verify(&directory, &|what, done, total| -> ControlFlow<()> {
            progress.advance(what, done, total)
        })
    })?
    .map_err(|error| errors::store(py, error))?;
    let dict = PyDict::new(py);
    dict.set_item("files", report.files)?;
    dict.set_item("pages", report.pages)?;
    dict.set_item("bytes", report.bytes)?;
    dict.set_item("problems", report.problems)?;
    Ok(dict)
}

/// Removes files of a directory.
#[pyfunction]
#[pyo3(signature = (directory, *, budget_bytes = None, older_than = None, fingerprints = None, damaged = false, files = None))]
pub(crate) fn kv_prune(
    py: Python<'_>,
    directory: PathBuf,
    budget_bytes: Option<u64>,
    older_than: Option<f64>,
    fingerprints: Option<Vec<String>>,
    damaged: bool,
    files: Option<Vec<String>>,
) -> PyResult<Bound<'_, PyDict>> {
    let seconds = |value: f64| {
        Duration::try_from_secs_f64(value).map_err(|_| {
            PyValueError::new_err(format!("older_than is a number of seconds, got {value}"))
        })
    };
    let parsed = |texts: Vec<String>| texts.iter().map(|text| parse_fingerprint(text)).collect();
    let wanted = Prune {
        budget: budget_bytes,
        older_than: older_than.map(seconds).transpose()?,
        fingerprints: fingerprints.map(parsed).transpose()?.unwrap_or_default(),
        damaged,
        files: files.unwrap_or_default(),
    };
    let pruned = detached(py, || store::prune(&directory, &wanted))?;
    let Pruned { files, bytes } = pruned.map_err(|error| errors::store(py, error))?;
    let dict = PyDict::new(py);
    dict.set_item("files", files)?;
    dict.set_item("bytes", bytes)?;
    Ok(dict)
}
