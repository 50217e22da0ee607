//! What can go wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

/// Result of an operation of the store.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the store. Messages name the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{path}: cannot {doing}: {source}{}", advice(source))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's own words.
        source: io::Error,
    },
    /// A file's bytes contradict themselves. It can be removed: keys and values are
    /// computed again when they are needed.
    #[error("{path}: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A file of a later version of the format.
    #[error("{path}: {problem}, which a later version of llama4rs wrote")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not known.
        problem: String,
    },
    /// Memory is not to be had, or a device cannot give its pages.
    #[error(transparent)]
    Tensor(#[from] llama4rs_tensor::Error),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// An I/O error that names its file.
    pub(super) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Error::Io { path, doing, source }
    }

    pub(super) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Error::Damaged { path: path.to_owned(), problem: problem.into() }
    }

    /// Whether the file itself is at fault.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Damaged { .. })
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space or set a smaller kv_budget"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose another kv_dir or change its permissions"
        }
        io::ErrorKind::FileTooLarge => "; raise the limit of file sizes (ulimit -f)",
        _ => "",
    }
}
