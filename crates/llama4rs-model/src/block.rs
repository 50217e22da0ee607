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
    /// Norm, attention, add; norm, feed forward, add.
    pub fn forward(
        &self,
        backend: &B,
        terms: &PositionTerms<B>,
        step: &KvStep,
        cache: &mut KvCache<B>,
        workspace: &mut Workspace<B>,
    ) -> Result<Option<B::Routing>> {
        let Workspace { x, h, delta, attention, feed_forward, .. } = workspace;
        self.input_layernorm.forward(backend, x, h)?;
        self.self_attn.forward(backend, h, terms, step, cache, attention, delta)?;
        backend.add(x, delta)?;

        self.post_attention_layernorm.forward(backend, x, h)?;
        let routing = self.feed_forward.forward(backend, h, feed_forward, delta)?;
        backend.add(x, delta)?;
        Ok(routing)
    }
}
