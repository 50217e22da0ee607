//! One pre-norm block of the encoder.

use llama4rs_tensor::{Backend, Result, VisionBackend};

use super::VisionWorkspace;

/// A linear layer with a bias.
pub(super) struct Linear<B: Backend> {
    pub weight: B::Matrix,
    pub bias: B::Vector,
}

impl<B: VisionBackend> Linear<B> {
    fn forward(&self, backend: &B, x: &B::Tensor, out: &mut B::Tensor) -> Result<()> {
        backend.matmul(x, &[&self.weight], &mut [out])?;
        backend.add_bias(out, &self.bias)
    }
}

/// Layer normalisation (arXiv 1607.06450).
pub(super) struct LayerNorm<B: Backend> {
    pub weight: B::Vector,
    pub bias: B::Vector,
    pub eps: f32,
}

impl<B: VisionBackend> LayerNorm<B> {
    pub fn forward(&self, backend: &B, x: &B::Tensor, out: &mut B::Tensor) -> Result<()> {
        backend.layer_norm(x, &self.weight, &self.bias, self.eps, out)
    }
}

pub(super) struct VisionBlock<B: Backend> {
    pub input_layernorm: LayerNorm<B>,
    pub q_proj: Linear<B>,
    pub k_proj: Linear<B>,
    pub v_proj: Linear<B>,
    pub o_proj: Linear<B>,
    pub post_attention_layernorm: LayerNorm<B>,
    pub fc1: Linear<B>,
    pub fc2: Linear<B>,
    pub head_dim: usize,
}

impl<B: VisionBackend> VisionBlock<B> {
    /// Norm, attention, add; norm, MLP, add. `rotations` is `[rows, head_dim]`.
    pub fn forward(
        &self,
        backend: &B,
        rotations: &B::Tensor,
        tile_rows: usize,
        workspace: &mut VisionWorkspace<B>,
    ) -> Result<()> {
        let VisionWorkspace { x, h, q, k, v, heads, wide, .. } = workspace;
        self.input_layernorm.forward(backend, x, h)?;
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        backend.matmul(h, &projections.map(|linear| &linear.weight), &mut [q, k, v])?;
        for (out, linear) in [&mut *q, k, v].into_iter().zip(projections) {
            backend.add_bias(out, &linear.bias)?;
        }
        backend.rope(q, rotations, self.head_dim)?;
        backend.rope(k, rotations, self.head_dim)?;
        let scale = (self.head_dim as f32).sqrt().recip();
        let next = &self.o_proj.weight;
        backend.attend_all(q, k, v, tile_rows, self.head_dim, scale, next, heads)?;
        self.o_proj.forward(backend, heads, h)?;
        backend.add(x, h)?;

        self.post_attention_layernorm.forward(backend, x, h)?;
        backend.matmul(h, &[&self.fc1.weight], &mut [wide])?;
        backend.gelu(wide, Some(&self.fc1.bias))?;
        self.fc2.forward(backend, wide, h)?;
        backend.add(x, h)
    }
}
