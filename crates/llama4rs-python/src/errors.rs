//! From Rust errors to the exceptions of `llama4rs.errors`: one match per crate.

use llama4rs_checkpoint::ErrorKind;
use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError, PyRuntimeError};
use pyo3::prelude::*;

/// An exception of `llama4rs.errors`.
pub(crate) fn exception(py: Python<'_>, class: &str, message: String) -> PyErr {
    let class = py.import("llama4rs.errors").and_then(|module| module.getattr(class));
    match class.and_then(|class| class.call1((message,))) {
        Ok(value) => PyErr::from_value(value),
        Err(error) => error,
    }
}

/// An error of a checkpoint's files.
pub(crate) fn checkpoint(py: Python<'_>, error: llama4rs_checkpoint::Error) -> PyErr {
    let message = error.to_string();
    match error.kind() {
        ErrorKind::NotFound => exception(py, "CheckpointNotFoundError", message),
        ErrorKind::Pack => exception(py, "PackError", message),
        ErrorKind::Interrupted => PyKeyboardInterrupt::new_err(message),
        ErrorKind::OutOfMemory => exception(py, "OutOfMemoryError", message),
        ErrorKind::Io => PyOSError::new_err(message),
        _ => exception(py, "CheckpointError", message),
    }
}

/// An error of the model or the backend while opening.
pub(crate) fn model(py: Python<'_>, error: llama4rs_model::Error) -> PyErr {
    match error {
        llama4rs_model::Error::Checkpoint(error) => checkpoint(py, error),
        other => engine(py, other.into()),
    }
}

/// An error of a request.
pub(crate) fn engine(py: Python<'_>, error: llama4rs_engine::Error) -> PyErr {
    use llama4rs_engine::Error;
    let message = error.to_string();
    match error {
        Error::Request(_) => exception(py, "RequestError", message),
        Error::OutOfMemory(_) => exception(py, "OutOfMemoryError", message),
        Error::Device(_) => exception(py, "DeviceError", message),
        Error::Interrupted => PyKeyboardInterrupt::new_err(message),
        Error::NotFinite => exception(py, "CheckpointError", message),
        _ => PyRuntimeError::new_err(message),
    }
}

/// An error of a directory of keys and values.
pub(crate) fn store(py: Python<'_>, error: llama4rs_kv_cache::store::Error) -> PyErr {
    use llama4rs_kv_cache::store::Error;
    let message = error.to_string();
    match error {
        // The kind decides about the subclass of OSError.
        Error::Io { source, .. } => std::io::Error::new(source.kind(), message).into(),
        Error::Tensor(error) => engine(py, error.into()),
        Error::Interrupted => PyKeyboardInterrupt::new_err(message),
        _ => exception(py, "CheckpointError", message),
    }
}
