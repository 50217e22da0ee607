//! What the vision tower needs of a device beyond the text model's operations.

use crate::{Backend, Result};

/// Operations of the vision tower and of early fusion. The rules of [`Backend`] hold.
pub trait VisionBackend: Backend {
    /// `out = (x - mean) / sqrt(var + eps) * weight + bias`, per row, with the
    /// biased variance (arXiv 1607.06450).
    fn layer_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        bias: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    ) -> Result<()>;
    /// Adds `bias` `[cols]` to every row.
    fn add_bias(&self, x: &mut Self::Tensor, bias: &Self::Vector) -> Result<()>;
    /// Adds `bias` `[cols]`, if there is one, to every row; then `x = x/2 · (1 + erf(x / sqrt(2)))`,
    /// the exact GELU (arXiv 1606.08415).
    fn gelu(&self, x: &mut Self::Tensor, bias: Option<&Self::Vector>) -> Result<()>;
    /// Attention in which all rows of a tile see each other:
    /// `out = softmax(scale · q kᵀ) v` per head, within each `tile_rows` rows.
    /// `q`, `k`, `v` and `out` are `[tiles * tile_rows, heads * head_dim]`.
    ///
    /// `next` is the matrix that `out` is multiplied with. Where that product rounds `out`, a
    /// device may round `q`, `k`, `v` and the probabilities, too, though not as coarsely.
    fn attend_all(
        &self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
        tile_rows: usize,
        head_dim: usize,
        scale: f32,
        next: &Self::Matrix,
        out: &mut Self::Tensor,
    ) -> Result<()>;
    /// The same values as rows of `cols`; the number of values must be a multiple of it.
    fn reshape(&self, x: &mut Self::Tensor, cols: usize) -> Result<()>;
    /// `x[rows[i]] = with[i]`.
    fn replace_rows(&self, x: &mut Self::Tensor, rows: &[u32], with: &Self::Tensor) -> Result<()>;
}
