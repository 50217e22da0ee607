//! What can go wrong below the model.

use std::path::PathBuf;

/// Result of an operation of this floor.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the tensor floor or of a backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },
    /// Two operands do not fit each other.
    #[error("{operation}: expected {expected}, got {got}")]
    Shape {
        /// The operation that refused.
        operation: &'static str,
        /// What it needs.
        expected: String,
        /// What it was given.
        got: String,
    },
    /// A weight format's name is not known.
    #[error("unknown weight format {name:?}: expected f32, bf16, int8, int4, or int8/int4 with a group size such as int4/g64")]
    UnknownFormat {
        /// The name that was given.
        name: String,
    },
    /// A byte buffer has the wrong length for the matrix it claims to hold.
    #[error("{what}: expected {expected} bytes, found {found}")]
    Length {
        /// What the bytes should hold.
        what: String,
        /// Bytes needed.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// Memory for a buffer is not to be had.
    #[error("out of memory: {bytes} bytes for {what}")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How much was asked.
        bytes: usize,
    },
    /// A device is not there, cannot be used, or failed.
    #[error("{0}")]
    Device(String),
}

impl Error {
    /// An I/O error that names its file.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }

    /// A shape error of `operation`.
    pub fn shape(
        operation: &'static str,
        expected: impl std::fmt::Display,
        got: impl std::fmt::Display,
    ) -> Self {
        Error::Shape { operation, expected: expected.to_string(), got: got.to_string() }
    }
}
