//! The one choice of backend.

use llama4rs_cpu::{Cpu, InstructionSet};
use llama4rs_engine::Engine;
use pyo3::prelude::*;
use pyo3::types::PyDict;

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
