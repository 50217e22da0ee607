//! `Request` and `Event`: what Python holds while an answer is computed.

use std::ffi::CString;

use llama4rs_engine as engine;
use numpy::PyArray2;
use pyo3::exceptions::PyRuntimeWarning;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays;
use crate::device::SharedEngine;
use crate::errors;
use crate::guard::{detached, Signals};

/// A submitted prompt.
#[pyclass(frozen, module = "llama4rs._llama4rs")]
pub(crate) struct Request {
    pub engine: SharedEngine,
    pub request: engine::Request,
}

/// Warns that keys and values are not stored. That never fails the request, whatever
/// the filters of warnings say.
fn warn(py: Python<'_>, problem: &str) {
    let text = format!(
        "keys and values are kept in memory only: {problem}\n\
         requests go on, and the next ones try again"
    );
    let outcome = CString::new(text)
        .map_err(PyErr::from)
        .and_then(|text| PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &text, 1));
    if let Err(error) = outcome {
        error.write_unraisable(py, None);
    }
}

#[pymethods]
impl Request {
    /// The next event, computing steps (for all requests of the engine) until there is one.
    pub(crate) fn next(&self, py: Python<'_>) -> PyResult<Option<Event>> {
        let mut signals = Signals::new();
        let outcome = detached(py, || self.engine.next(&self.request, &mut || signals.pending()))?;
        if let Some(warning) = self.engine.take_warning() {
            warn(py, &warning);
        }
        match outcome {
            Ok(event) => Ok(event.map(Event)),
            Err(error) => Err(signals.raised.unwrap_or_else(|| errors::engine(py, error))),
        }
    }

    /// Ends the request now and frees its memory.
    #[pyo3(signature = (reason = "cancelled"))]
    fn cancel(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        detached(py, || self.engine.cancel(&self.request, reason))
    }

    #[getter]
    fn finish_reason(&self) -> Option<String> {
        self.request.finish_reason().map(|reason| reason.as_str().to_owned())
    }

    #[getter]
    fn timings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let timings = self.request.timings();
        let dict = PyDict::new(py);
        dict.set_item("queue", timings.queue.as_secs_f64())?;
        dict.set_item("prefill", timings.prefill.as_secs_f64())?;
        dict.set_item("decode", timings.decode.as_secs_f64())?;
        Ok(dict)
    }

    #[getter]
    fn usage<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let usage = self.request.usage();
        let dict = PyDict::new(py);
        dict.set_item("prompt_tokens", usage.prompt_tokens)?;
        dict.set_item("completion_tokens", usage.completion_tokens)?;
        dict.set_item("cached_tokens", usage.cached_tokens)?;
        Ok(dict)
    }

    /// Tokens of this request per layer and expert, `[layers, experts]`.
    fn expert_usage<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<u64>>> {
        let layers = self.engine.config().layers.len();
        let usage = self.request.expert_usage();
        arrays::matrix(py, usage.counts, layers, usage.num_experts)
    }
}

impl Drop for Request {
    /// A request that nobody can ask any more ends.
    fn drop(&mut self) {
        self.engine.cancel(&self.request, "cancelled");
    }
}

/// One thing that happened to a request.
#[pyclass(frozen, module = "llama4rs._llama4rs")]
pub(crate) struct Event(engine::Event);

#[pymethods]
impl Event {
    #[getter]
    fn token_id(&self) -> Option<u32> {
        self.0.choice.as_ref().map(|choice| choice.token)
    }

    #[getter]
    fn prefilled(&self) -> usize {
        self.0.prefilled
    }

    #[getter]
    fn logprob(&self) -> Option<f32> {
        self.0.choice.as_ref().and_then(|choice| choice.logprob)
    }

    #[getter]
    fn top_logprobs(&self) -> Option<Vec<(u32, f32)>> {
        self.0.choice.as_ref().and_then(|choice| choice.top_logprobs.clone())
    }

    #[getter]
    fn finish_reason(&self) -> Option<&str> {
        self.0.finish.as_ref().map(engine::FinishReason::as_str)
    }
}
