//! What the model asks for: weights by canonical name, wherever they come from.

use llama4rs_tensor::{PackedMatrix, WeightFormat};

use crate::{Config, Result};

/// A checkpoint that is open: packed (mapped) or published (packed in memory when asked).
///
/// Names are canonical, reading one weight
/// twice gives the same bits.
pub trait WeightSource {
    /// The configuration.
    fn config(&self) -> &Config;

    /// A weight matrix, or the stack of a layer's routed experts, in kernel order.
    ///
    /// `matrix("lm_head")` of a model with tied embeddings is the embedding table.
    fn matrix(&self, name: &str) -> Result<PackedMatrix>;

    /// A norm's weights, a bias, or a vision embedding (row-major), in single precision.
    fn vector(&self, name: &str) -> Result<Vec<f32>>;

    /// Every tensor of the model, in the order of the forward pass.
    fn report(&self) -> Vec<TensorReport>;

    /// The format that was chosen for the decoder's linears.
    fn weights(&self) -> WeightFormat;

    /// Remarks for the user: tensors left aside, settings known to be wrong.
    fn warnings(&self) -> &[String];
}

/// How one tensor is stored, and what that costs.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorReport {
    /// Canonical name.
    pub name: String,
    /// Storage; `None` for vectors, which are plain single precision.
    pub format: Option<WeightFormat>,
    /// `[stack, rows, cols]` of a matrix (outputs by inputs), or the dimensions of a vector.
    pub shape: Vec<usize>,
    /// Bytes in memory.
    pub bytes: u64,
    /// `||w - ŵ|| / ||w||` over the whole tensor; `None` while it has not been packed.
    pub relative_error: Option<f64>,
}
