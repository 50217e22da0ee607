//! The feed-forward half of a block: dense SwiGLU, or a mixture of experts.

use llama4rs_tensor::{
    Backend, ExpertWeights, FeedForwardScratch, MixtureWeights, Residual, Result,
};

use crate::workspace::FeedForwardBuffers;

/// `down(silu(gate(x)) * up(x))` (arXiv 2002.05202). With stacked matrices: all
/// routed experts of a layer.
pub(crate) struct SwiGlu<B: Backend> {
    pub gate_proj: B::Matrix,
    pub up_proj: B::Matrix,
    pub down_proj: B::Matrix,
}

impl<B: Backend> SwiGlu<B> {
    fn weights(&self) -> ExpertWeights<'_, B::Matrix> {
        ExpertWeights { gate: &self.gate_proj, up: &self.up_proj, down: &self.down_proj }
    }

    fn forward(
        &self,
        backend: &B,
        buffers: &mut FeedForwardBuffers<B>,
        residual: Residual<'_, B>,
    ) -> Result<()> {
        let FeedForwardBuffers { gate, up, .. } = buffers;
        backend.feed_forward_add(&self.weights(), [gate, up], residual)
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
        buffers: &mut FeedForwardBuffers<B>,
        residual: Residual<'_, B>,
    ) -> Result<B::Routing> {
        let FeedForwardBuffers { gate, up, router_logits } = buffers;
        let weights = MixtureWeights {
            router: &self.router,
            top_k: self.top_k,
            shared: self.shared_expert.weights(),
            routed: self.experts.weights(),
        };
        backend.mixture_add(weights, FeedForwardScratch { gate, up, router_logits }, residual)
    }
}

/// The feed-forward layer of a block.
pub(crate) enum FeedForward<B: Backend> {
    Dense(SwiGlu<B>),
    Experts(MixtureOfExperts<B>),
}

impl<B: Backend> FeedForward<B> {
    /// Adds `FFN(h)` to the residual; says where the tokens went when there are experts.
    pub fn forward(
        &self,
        backend: &B,
        buffers: &mut FeedForwardBuffers<B>,
        residual: Residual<'_, B>,
    ) -> Result<Option<B::Routing>> {
        match self {
            FeedForward::Dense(mlp) => mlp.forward(backend, buffers, residual).map(|()| None),
            FeedForward::Experts(moe) => moe.forward(backend, buffers, residual).map(Some),
        }
    }
}
