//! One transformer block.

use llama4rs_kv_cache::{KvCache, KvStep};
use llama4rs_tensor::{Backend, Result};

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
    /// Attention, add, norm; feed forward, add, and the norm that `next` has.
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
        self.self_attn.forward(backend, h, terms, step, cache, attention, delta)?;
        self.post_attention_layernorm.forward_sum(backend, x, delta, h)?;
        let routing = self.feed_forward.forward(backend, h, feed_forward, delta)?;
        match next {
            Some(norm) => norm.forward_sum(backend, x, delta, h)?,
            None => backend.add(x, delta)?,
        }
        Ok(routing)
    }
}
