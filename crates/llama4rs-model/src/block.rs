//! One transformer block.

use llama4rs_kv_cache::{KvCache, KvStep};
use llama4rs_tensor::{Backend, Residual, Result};

use crate::attention::{Attention, PositionTerms};
use crate::feed_forward::FeedForward;
use crate::norm::RmsNorm;
use crate::workspace::Workspace;

pub(crate) struct Block<B: Backend> {
    pub input_layernorm: RmsNorm<B>,
    pub self_attn: Attention<B>,
    pub post_attention_layernorm: RmsNorm<B>,
    pub feed_forward: FeedForward<B>,
}

impl<B: Backend> Block<B> {
    /// `x += attention(h)`, `h = norm(x)`; `x += feed_forward(h)`, and `h` the norm that `next` has.
    ///
    /// `h` of the workspace is the norm of `x` already: each addition is followed by a norm, which
    /// devices compute with it.
    pub fn forward(
        &self,
        backend: &B,
        terms: &PositionTerms<B>,
        step: &KvStep,
        cache: &mut KvCache<B>,
        workspace: &mut Workspace<B>,
        next: Option<&RmsNorm<B>>,
    ) -> Result<Option<B::Routing>> {
        let Workspace { x, h, delta, attention, feed_forward, .. } = workspace;
        let norm = Some(self.post_attention_layernorm.terms());
        let residual = Residual { x, h, delta, norm };
        self.self_attn.forward(backend, terms, step, cache, attention, residual)?;
        let residual = Residual { x, h, delta, norm: next.map(RmsNorm::terms) };
        self.feed_forward.forward(backend, feed_forward, residual)
    }
}
