//! The one choice of backend, and the limits of its machine.

use std::path::PathBuf;

use llama4rs_cpu::{Cpu, InstructionSet};
use llama4rs_engine::Engine;
use llama4rs_tensor::{AlignedBytes, MappedFile};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::guard::detached;

/// The engine behind `device="cpu"`.
pub(crate) type CpuEngine = Engine<Cpu>;

/// What the CPU backend found on this machine.
#[pyfunction]
pub(crate) fn cpu_features(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    let name = |set: InstructionSet| set.to_string();
    dict.set_item("instruction_set", name(InstructionSet::detect()))?;
    let available: Vec<String> = InstructionSet::available().into_iter().map(name).collect();
    dict.set_item("available", available)?;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    dict.set_item("threads", threads)?;
    Ok(dict)
}

/// Bytes per second that `threads` threads read from memory, or from what the page cache
/// holds of a file, once per round.
#[pyfunction]
#[pyo3(signature = (bytes, threads, rounds = 5, *, path = None))]
pub(crate) fn read_bandwidth(
    py: Python<'_>,
    bytes: usize,
    threads: usize,
    rounds: usize,
    path: Option<PathBuf>,
) -> PyResult<Vec<f64>> {
    detached(py, || match path {
        Some(path) => {
            let file = MappedFile::open(path)?;
            llama4rs_cpu::read_bandwidth(&file[..bytes.min(file.len())], threads, rounds)
        }
        None => {
            let mut memory = AlignedBytes::zeroed(bytes)?;
            memory.fill(1);
            llama4rs_cpu::read_bandwidth(&memory, threads, rounds)
        }
    })?
    .map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Single-precision operations per second that `threads` threads reach, once per round.
#[pyfunction]
#[pyo3(signature = (threads, rounds = 5))]
pub(crate) fn multiply_add_peak(
    py: Python<'_>,
    threads: usize,
    rounds: usize,
) -> PyResult<Vec<f64>> {
    detached(py, || llama4rs_cpu::multiply_add_peak(InstructionSet::detect(), threads, rounds))?
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Operations per second of integer dot products that `threads` threads reach, once per round.
#[pyfunction]
#[pyo3(signature = (threads, rounds = 5))]
pub(crate) fn integer_dot_peak(
    py: Python<'_>,
    threads: usize,
    rounds: usize,
) -> PyResult<Vec<f64>> {
    detached(py, || llama4rs_cpu::integer_dot_peak(InstructionSet::detect(), threads, rounds))?
        .map_err(|error| PyValueError::new_err(error.to_string()))
}
