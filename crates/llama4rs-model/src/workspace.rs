//! The buffers of a step: they grow to the largest step and stay.

use llama4rs_tensor::Backend;

/// Buffers that every layer of a step shares. `[rows, …]` each.
pub struct Workspace<B: Backend> {
    /// The residual stream, `[rows, hidden]`.
    pub(crate) x: B::Tensor,
    /// A normalised input, `[rows, hidden]`.
    pub(crate) h: B::Tensor,
    /// What attention or feed forward adds to the residual, `[rows, hidden]`.
    pub(crate) delta: B::Tensor,
    pub(crate) attention: AttentionBuffers<B>,
    pub(crate) feed_forward: FeedForwardBuffers<B>,
    /// The rows whose logits are wanted, `[logit rows, hidden]`.
    pub(crate) selected: B::Tensor,
    /// `[logit rows, vocab]`.
    pub(crate) logits: B::Tensor,
    pub(crate) tokens: Option<B::Tokens>,
}

pub(crate) struct AttentionBuffers<B: Backend> {
    /// `[rows, heads * head_dim]`
    pub q: B::Tensor,
    /// `[rows, kv_heads * head_dim]`
    pub k: B::Tensor,
    /// `[rows, kv_heads * head_dim]`
    pub v: B::Tensor,
    /// `[rows, heads * head_dim]`
    pub heads: B::Tensor,
}

pub(crate) struct FeedForwardBuffers<B: Backend> {
    /// `[rows, intermediate]`
    pub gate: B::Tensor,
    /// `[rows, intermediate]`
    pub up: B::Tensor,
    /// `[rows, experts]`
    pub router_logits: B::Tensor,
}

impl<B: Backend> Workspace<B> {
    /// Empty buffers.
    pub fn new(backend: &B) -> Self {
        let empty = || backend.empty();
        Self {
            x: empty(),
            h: empty(),
            delta: empty(),
            attention: AttentionBuffers { q: empty(), k: empty(), v: empty(), heads: empty() },
            feed_forward: FeedForwardBuffers { gate: empty(), up: empty(), router_logits: empty() },
            selected: empty(),
            logits: empty(),
            tokens: None,
        }
    }

    /// Logits of the last step, `[logit rows, vocab]`.
    pub fn logits(&self) -> &B::Tensor {
        &self.logits
    }

    /// The tokens that the device chose in the last step, one for each row of logits.
    pub fn tokens(&self) -> Option<&B::Tokens> {
        self.tokens.as_ref()
    }
}
