//! Model directories: look, pack, verify, synthesise.

use llama4rs_checkpoint as checkpoint;
use llama4rs_checkpoint::{FormatRule, TensorReport};
use llama4rs_tensor::WeightFormat;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors;
use crate::guard::detached;
use crate::progress;

/// A weight format by name.
pub(crate) fn parse_format(name: &str) -> PyResult<WeightFormat> {
    name.parse().map_err(|error: llama4rs_tensor::Error| PyValueError::new_err(error.to_string()))
}

/// Pattern and format pairs, first match wins.
pub(crate) fn parse_rules(policy: Option<Vec<(String, String)>>) -> PyResult<Vec<FormatRule>> {
    let rule = |(pattern, format): (String, String)| -> PyResult<FormatRule> {
        Ok(FormatRule { pattern, format: parse_format(&format)? })
    };
    policy.unwrap_or_default().into_iter().map(rule).collect()
}

/// One dictionary per tensor.
pub(crate) fn tensor_list<'py>(
    py: Python<'py>,
    tensors: &[TensorReport],
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for tensor in tensors {
        let dict = PyDict::new(py);
        dict.set_item("name", &tensor.name)?;
        let format = tensor.format.map_or("f32".to_owned(), |format| format.to_string());
        dict.set_item("format", format)?;
        dict.set_item("shape", &tensor.shape)?;
        dict.set_item("bytes", tensor.bytes)?;
        dict.set_item("relative_error", tensor.relative_error)?;
        list.append(dict)?;
    }
    Ok(list)
}

/// Reads a model directory's headers only.
#[pyfunction]
pub(crate) fn open_info<'py>(py: Python<'py>, path: &str) -> PyResult<Bound<'py, PyDict>> {
    let info =
        detached(py, || checkpoint::info(path))?.map_err(|error| errors::checkpoint(py, error))?;
    let dict = PyDict::new(py);
    dict.set_item("kind", if info.weights.is_some() { "packed" } else { "published" })?;
    let json = py.import("json")?;
    dict.set_item("config", json.call_method1("loads", (info.config.raw.to_string(),))?)?;
    dict.set_item("weights", info.weights.map(|format| format.to_string()))?;
    dict.set_item("tensors", tensor_list(py, &info.tensors)?)?;
    dict.set_item("parameters", info.num_parameters)?;
    dict.set_item("bytes", info.bytes)?;
    dict.set_item("warnings", info.warnings)?;
    Ok(dict)
}

/// Packs a published checkpoint into a llama4rs directory.
#[pyfunction]
#[pyo3(signature = (source, destination, *, weights = "int4", policy = None, threads = None, force = false, progress = None))]
pub(crate) fn pack<'py>(
    py: Python<'py>,
    source: &str,
    destination: &str,
    weights: &str,
    policy: Option<Vec<(String, String)>>,
    threads: Option<usize>,
    force: bool,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = checkpoint::PackOptions {
        weights: parse_format(weights)?,
        rules: parse_rules(policy)?,
        force,
        threads,
        ..Default::default()
    };
    let report = progress::run(py, progress, |progress| {
        checkpoint::pack(source, destination, &options, progress)
    })?
    .map_err(|error| errors::checkpoint(py, error))?;
    pack_report(py, &report)
}

/// Checks every tensor's checksum of a packed directory.
#[pyfunction]
#[pyo3(signature = (path, *, progress = None))]
pub(crate) fn verify<'py>(
    py: Python<'py>,
    path: &str,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let report = progress::run(py, progress, |progress| checkpoint::verify(path, progress))?
        .map_err(|error| errors::checkpoint(py, error))?;
    let dict = PyDict::new(py);
    dict.set_item("tensors", report.tensors)?;
    dict.set_item("files", report.files)?;
    dict.set_item("bytes", report.bytes)?;
    Ok(dict)
}

/// Writes a random model in packed form, for measurements.
#[pyfunction]
#[pyo3(signature = (destination, *, shape, weights = "int4", policy = None, seed = 0, threads = None, force = false, progress = None))]
pub(crate) fn synth<'py>(
    py: Python<'py>,
    destination: &str,
    shape: &str,
    weights: &str,
    policy: Option<Vec<(String, String)>>,
    seed: u64,
    threads: Option<usize>,
    force: bool,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let shape: checkpoint::SynthShape = shape
        .parse()
        .map_err(|error: checkpoint::Error| PyValueError::new_err(error.to_string()))?;
    let options = checkpoint::SynthOptions {
        weights: parse_format(weights)?,
        rules: parse_rules(policy)?,
        seed,
        force,
        threads,
        ..Default::default()
    };
    let report = progress::run(py, progress, |progress| {
        checkpoint::synth(destination, shape, &options, progress)
    })?
    .map_err(|error| errors::checkpoint(py, error))?;
    pack_report(py, &report)
}

/// What writing a packed directory reports.
fn pack_report<'py>(
    py: Python<'py>,
    report: &checkpoint::PackReport,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("tensors", tensor_list(py, &report.tensors)?)?;
    dict.set_item("bytes", report.bytes)?;
    dict.set_item("warnings", &report.warnings)?;
    Ok(dict)
}
