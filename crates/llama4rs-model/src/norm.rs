//! Root mean square normalisation with a learned weight.

use llama4rs_tensor::{Backend, Norm, Result};

/// `x / sqrt(mean(x²) + eps) * weight` (arXiv 1910.07467).
pub(crate) struct RmsNorm<B: Backend> {
    pub weight: B::Vector,
    pub eps: f32,
}

impl<B: Backend> RmsNorm<B> {
    pub fn forward(&self, backend: &B, x: &B::Tensor, out: &mut B::Tensor) -> Result<()> {
        backend.rms_norm(x, &self.weight, self.eps, out)
    }

    /// As the end of a half of a block takes it.
    pub fn terms(&self) -> Norm<'_, B::Vector> {
        Norm { weight: &self.weight, eps: self.eps }
    }
}
