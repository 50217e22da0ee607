//! What can go wrong between a directory and its weights.

use std::path::{Path, PathBuf};

use llama4rs_tensor::WeightFormat;

/// Result of an operation on a checkpoint.
pub type Result<T> = std::result::Result<T, Error>;

/// The family of an [`Error`]: what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A directory, file or tensor that should be there is not.
    NotFound,
    /// The bytes on disk contradict themselves.
    Damaged,
    /// A valid checkpoint of a kind that is not supported.
    Unsupported,
    /// Packing was asked for something it refuses to do.
    Pack,
    /// The caller's [`Progress`](crate::Progress) asked to stop.
    Interrupted,
    /// The weights do not fit in memory.
    OutOfMemory,
    /// The operating system refused a file operation.
    Io,
}

/// An error of this crate. Messages name the file, the tensor and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory is not a checkpoint.
    #[error("{path}: {problem}")]
    NotACheckpoint {
        /// The directory.
        path: PathBuf,
        /// What is missing, and what a checkpoint looks like.
        problem: String,
    },
    /// A file that another file promises is not there.
    #[error("{path}: missing, but {promised_by} calls for it; download the checkpoint again")]
    MissingFile {
        /// The file that is not there.
        path: PathBuf,
        /// Who says that it should be.
        promised_by: String,
    },
    /// The configuration asks for a tensor that no file holds.
    #[error("{path}: no tensor {tensor:?}, which config.json calls for; {hint}")]
    MissingTensor {
        /// The checkpoint's directory.
        path: PathBuf,
        /// Published name of the tensor.
        tensor: String,
        /// What to look at.
        hint: String,
    },
    /// A name that this model does not have was asked for.
    #[error("this model has no {what} named {name:?}")]
    UnknownName {
        /// `matrix` or `vector`.
        what: &'static str,
        /// The canonical name that was asked for.
        name: String,
    },
    /// `config.json` is not JSON, or describes an impossible model.
    #[error("{path}: {field}: {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Dotted name of the field.
        field: String,
        /// Expected and found.
        problem: String,
    },
    /// Another model family.
    #[error("{path}: this is a {found} checkpoint; llama4rs runs Llama 4 only (model_type llama4 or llama4_text)")]
    Architecture {
        /// The configuration file.
        path: PathBuf,
        /// The architecture that was found.
        found: String,
    },
    /// A Llama 4 checkpoint with a feature that is not implemented.
    #[error("{path}: {what} is not supported; {hint}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature, as the file spells it.
        what: String,
        /// What to use instead.
        hint: String,
    },
    /// A safetensors header or an index that contradicts itself or its file.
    #[error("{path}: damaged: {problem}; download or pack it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// A tensor's element type is not one that weights come in.
    #[error(
        "{path}: tensor {tensor:?} has element type {found}; expected one of F32, F16, BF16{hint}"
    )]
    Dtype {
        /// The file.
        path: PathBuf,
        /// Published name of the tensor.
        tensor: String,
        /// Its element type.
        found: String,
        /// What to use instead, or nothing.
        hint: String,
    },
    /// A tensor's shape is not the one that the configuration implies.
    #[error("{path}: tensor {tensor:?}: expected shape {expected:?} from config.json, found {found:?}; config.json and weights belong to different models")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Published name of the tensor.
        tensor: String,
        /// Shape from the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// Tensors that nothing in the model uses.
    #[error("{path}: {count} tensors that a Llama 4 does not have, the first is {first:?}; if it can be ignored, remove it from the checkpoint")]
    UnknownTensors {
        /// The checkpoint's directory.
        path: PathBuf,
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// A weight that is not a number.
    #[error(
        "{path}: tensor {tensor:?} holds NaN or infinity at row {row}; the checkpoint is damaged"
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Published name of the tensor.
        tensor: String,
        /// A row (output) with such a weight.
        row: usize,
    },
    /// Bytes that do not have the checksum that was written with them.
    #[error("{path}: {what}: checksum differs: expected {expected}, found {found}; pack the checkpoint again")]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The tensor or part of the file.
        what: String,
        /// Checksum in the manifest.
        expected: String,
        /// Checksum of the bytes.
        found: String,
    },
    /// A packed directory holds other formats than the caller wants.
    #[error("{path}: packed as {found}, but {wanted} was asked for; leave the format open or pack the original checkpoint again with {wanted}")]
    OtherWeights {
        /// The packed directory.
        path: PathBuf,
        /// Its format.
        found: WeightFormat,
        /// The caller's.
        wanted: WeightFormat,
    },
    /// The source of a packing run is packed already.
    #[error("{path}: already packed as {weights}; give the published checkpoint (safetensors of bf16, f16 or f32)")]
    AlreadyPacked {
        /// The directory.
        path: PathBuf,
        /// Its format.
        weights: WeightFormat,
    },
    /// The destination of a packing run is taken.
    #[error("{path}: {problem}")]
    Destination {
        /// The destination.
        path: PathBuf,
        /// Why it is refused and what to do.
        problem: String,
    },
    /// The disk is too small for the packed weights.
    #[error("{path}: not enough disk space: {needed} bytes needed, {available} available; free some or choose another destination")]
    DiskSpace {
        /// The directory that would hold the destination.
        path: PathBuf,
        /// Bytes that will be written.
        needed: u64,
        /// Bytes that the file system offers.
        available: u64,
    },
    /// A rule of the caller's format policy that cannot be used.
    #[error("format rule {pattern:?}: {problem}")]
    Rule {
        /// The rule's pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No synthetic model of this name.
    #[error("unknown shape {name:?}; expected tiny, edge, scout, scout-layers=N or maverick-layers=N with N from 1 to 48")]
    UnknownShape {
        /// What was asked for.
        name: String,
    },
    /// The caller asked to stop.
    #[error("interrupted while {doing}")]
    Interrupted {
        /// What was going on.
        doing: String,
    },
    /// Memory for the weights is not to be had.
    #[error("not enough memory: {needed} bytes for {what}, {available} available; {hint}")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
        /// What to do.
        hint: String,
    },
    /// The operating system refused a file operation.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },
    /// The worker threads could not be started.
    #[error("worker threads: {problem}")]
    Threads {
        /// The system's own words.
        problem: String,
    },
    /// An error of the floor below.
    #[error(transparent)]
    Tensor(#[from] llama4rs_tensor::Error),
}

impl Error {
    /// Which family this error belongs to.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::NotACheckpoint { .. }
            | Error::MissingFile { .. }
            | Error::MissingTensor { .. }
            | Error::UnknownName { .. } => ErrorKind::NotFound,
            Error::Config { .. }
            | Error::Damaged { .. }
            | Error::Shape { .. }
            | Error::NotFinite { .. }
            | Error::Checksum { .. } => ErrorKind::Damaged,
            Error::Architecture { .. }
            | Error::Unsupported { .. }
            | Error::Dtype { .. }
            | Error::UnknownTensors { .. }
            | Error::UnknownShape { .. }
            | Error::OtherWeights { .. } => ErrorKind::Unsupported,
            Error::AlreadyPacked { .. }
            | Error::Destination { .. }
            | Error::DiskSpace { .. }
            | Error::Rule { .. } => ErrorKind::Pack,
            Error::Interrupted { .. } => ErrorKind::Interrupted,
            Error::OutOfMemory { .. } => ErrorKind::OutOfMemory,
            Error::Threads { .. } => ErrorKind::Io,
            Error::Io { source, .. } => kind_of_io(source),
            Error::Tensor(error) => match error {
                llama4rs_tensor::Error::Io { source, .. } => kind_of_io(source),
                llama4rs_tensor::Error::OutOfMemory { .. } => ErrorKind::OutOfMemory,
                llama4rs_tensor::Error::UnknownFormat { .. } => ErrorKind::Unsupported,
                _ => ErrorKind::Damaged,
            },
        }
    }

    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), source }
    }

    pub(crate) fn damaged(path: impl AsRef<Path>, problem: impl std::fmt::Display) -> Self {
        Error::Damaged { path: path.as_ref().to_owned(), problem: problem.to_string() }
    }
}

fn kind_of_io(error: &std::io::Error) -> ErrorKind {
    match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        std::io::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
        _ => ErrorKind::Io,
    }
}
