//! What can go wrong with a request.

use llama4rs_kv_cache::store::Interrupted;

/// Result of an engine operation.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the engine floor.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request can never run as it is.
    #[error("{0}")]
    Request(String),
    /// Memory is not to be had.
    #[error("{0}")]
    OutOfMemory(String),
    /// A device is not there, cannot be used, or failed.
    #[error("{0}")]
    Device(String),
    /// The caller asked to stop between two layers or steps; nothing is lost.
    #[error("interrupted")]
    Interrupted,
    /// The model gave a logit that is not a number.
    #[error("the model's logits are not finite: the weights are damaged or overflow; run `llama4rs verify` on the packed model or pack it again")]
    NotFinite,
    /// A computation failed.
    #[error("{0}")]
    Compute(String),
}

impl From<llama4rs_model::Error> for Error {
    fn from(error: llama4rs_model::Error) -> Self {
        match error {
            llama4rs_model::Error::Interrupted => Error::Interrupted,
            llama4rs_model::Error::Tensor(error) => error.into(),
            other => Error::Compute(other.to_string()),
        }
    }
}

impl From<Interrupted> for Error {
    fn from(_: Interrupted) -> Self {
        Error::Interrupted
    }
}

impl From<llama4rs_tensor::Error> for Error {
    fn from(error: llama4rs_tensor::Error) -> Self {
        match error {
            llama4rs_tensor::Error::OutOfMemory { .. } => Error::OutOfMemory(error.to_string()),
            llama4rs_tensor::Error::Device(message) => Error::Device(message),
            other => Error::Compute(other.to_string()),
        }
    }
}
