//! The feed-forward half of a block: dense SwiGLU, or a mixture of experts.

use llama4rs_tensor::{Backend, ExpertWeights, Result};

use crate::workspace::FeedForwardBuffers;

/// `down(silu(gate(x)) * up(x))` (arXiv 2002.05202). With stacked matrices: all
/// routed experts of a layer.
pub(crate) struct SwiGlu<B: Backend> {
    pub gate_proj: B::Matrix,
    pub up_proj: B::Matrix,
    pub down_proj: B::Matrix,
}

impl<B: Backend> SwiGlu<B> {
    fn forward(
        &self,
        backend: &B,
        h: &B::Tensor,
        buffers: &mut FeedForwardBuffers<B>,
        out: &mut B::Tensor,
    ) -> Result<()> {
        let FeedForwardBuffers { gate, up, .. } = buffers;
        backend.matmul(h, &[&self.gate_proj, &self.up_proj], &mut [gate, up])?;
        backend.swiglu(gate, up)?;
        backend.matmul(gate, &[&self.down_proj], &mut [out])
    }
}

/// One shared expert for every token and `top_k` routed ones, chosen by the
/// largest router logits. The sigmoid of the logit scales the expert's *input*
/// (Meta's and transformers' Llama 4); there is no softmax over experts.
pub(crate) struct MixtureOfExperts<B: Backend> {
    pub router: B::Matrix,
    pub experts: SwiGlu<B>,
    pub shared_expert: SwiGlu<B>,
    pub top_k: usize,
}

impl<B: Backend> MixtureOfExperts<B> {
    fn forward(
        &self,
        backend: &B,
        h: &B::Tensor,
        buffers: &mut FeedForwardBuffers<B>,
        out: &mut B::Tensor,
    ) -> Result<B::Routing> {
        backend.matmul(h, &[&self.router], &mut [&mut buffers.router_logits])?;
        let routing = backend.route(&buffers.router_logits, self.top_k)?;
        self.shared_expert.forward(backend, h, buffers, out)?;
        let SwiGlu { gate_proj, up_proj, down_proj } = &self.experts;
        let weights = ExpertWeights { gate: gate_proj, up: up_proj, down: down_proj };
        backend.experts(h, &routing, weights, out)?;
        Ok(routing)
    }
}

/// The feed-forward layer of a block.
pub(crate) enum FeedForward<B: Backend> {
    Dense(SwiGlu<B>),
    Experts(MixtureOfExperts<B>),
}

impl<B: Backend> FeedForward<B> {
    /// `out = FFN(h)`; says where the tokens went when there are experts.
    pub fn forward(
        &self,
        backend: &B,
        h: &B::Tensor,
        buffers: &mut FeedForwardBuffers<B>,
        out: &mut B::Tensor,
    ) -> Result<Option<B::Routing>> {
        match self {
            FeedForward::Dense(mlp) => mlp.forward(backend, h, buffers, out).map(|()| None),
            FeedForward::Experts(moe) => moe.forward(backend, h, buffers, out).map(Some),
        }
    }
}
