//! What can go wrong in the model.

/// Result of a model operation.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the model floor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A backend refused an operation.
    #[error(transparent)]
    Tensor(#[from] llama4rs_tensor::Error),
    /// The weights could not be read.
    #[error(transparent)]
    Checkpoint(#[from] llama4rs_checkpoint::Error),
    /// The observer asked to stop in the middle of a step.
    #[error("interrupted")]
    Interrupted,
}
