//! Running Rust code for Python: detached, interruptible, never panicking across.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// Runs `work` without the interpreter lock; a panic becomes a `RuntimeError`.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    py.detach(|| contained(work)).map_err(PyRuntimeError::new_err)
}

/// Runs `work`; a panic becomes its message.
pub(crate) fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| text.to_string())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        format!("internal error of llama4rs, please report it: {text}")
    })
}

/// Asks Python for pending signals, at most every 20 ms, from a detached thread.
pub(crate) struct Signals {
    last: Instant,
    /// What a signal handler raised.
    pub raised: Option<PyErr>,
}

impl Signals {
    pub fn new() -> Self {
        Self { last: Instant::now(), raised: None }
    }

    /// Whether a handler raised (Ctrl-C does); then `raised` holds the exception.
    pub fn pending(&mut self) -> bool {
        if self.raised.is_none() && self.last.elapsed() > Duration::from_millis(20) {
            self.raised = Python::attach(|py| py.check_signals()).err();
            self.last = Instant::now();
        }
        self.raised.is_some()
    }
}
