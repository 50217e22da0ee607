//! Self-attention, with and without position.

use llama4rs_kv_cache::{KvCache, KvStep, LayerKv};
use llama4rs_tensor::{Backend, Placement, Residual, Result};

use crate::workspace::AttentionBuffers;

/// What a layer does to queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// Rotated by the position within the chunk. Keys of other chunks are never
    /// seen, so this equals rotation by the absolute position, and stays exact
    /// at any length.
    RotaryInChunk,
    /// Rotated by the absolute position (a rotary layer that sees everything).
    RotaryAbsolute,
    /// No rotation; queries are scaled by the attention temperature.
    None,
}

/// Per-step device data that all layers share.
pub(crate) struct PositionTerms<B: Backend> {
    /// `[rows, head_dim]`: cos, sin per pair, position within the chunk.
    pub in_chunk: Option<B::Tensor>,
    /// `[rows, head_dim]`, absolute position.
    pub absolute: Option<B::Tensor>,
    /// `[rows, 1]`: the temperature of each row's query.
    pub query_scales: Option<B::Tensor>,
}

pub(crate) struct Attention<B: Backend> {
    pub q_proj: B::Matrix,
    pub k_proj: B::Matrix,
    pub v_proj: B::Matrix,
    pub o_proj: B::Matrix,
    pub head_dim: usize,
    pub position: Position,
    /// `Some(eps)`: queries and keys of rotary layers are normalised per head.
    pub qk_norm: Option<f32>,
    pub kv: LayerKv,
}

impl<B: Backend> Attention<B> {
    /// Adds `o_proj(softmax(q kᵀ / sqrt(d)) v)` to the residual; stores this step's keys and values first.
    pub fn forward(
        &self,
        backend: &B,
        terms: &PositionTerms<B>,
        step: &KvStep,
        cache: &mut KvCache<B>,
        buffers: &mut AttentionBuffers<B>,
        residual: Residual<'_, B>,
    ) -> Result<()> {
        let AttentionBuffers { q, k, v, heads } = buffers;
        backend.matmul(
            residual.h,
            &[&self.q_proj, &self.k_proj, &self.v_proj],
            &mut [&mut *q, &mut *k, &mut *v],
        )?;

        let rotations = match self.position {
            Position::RotaryInChunk => terms.in_chunk.as_ref(),
            Position::RotaryAbsolute => terms.absolute.as_ref(),
            Position::None => None,
        };
        let placement = Placement {
            head_dim: self.head_dim,
            rotations,
            norm_eps: self.qk_norm,
            scales: terms.query_scales.as_ref().filter(|_| rotations.is_none()),
        };
        let LayerKv { pool, index } = self.kv;
        let scale = (self.head_dim as f32).sqrt().recip();
        let step = step.pool(pool);
        backend.place([q, k, v], &placement, cache.storage_mut(pool), index, &step.slots)?;
        if !step.seals.is_empty() {
            backend.kv_seal(cache.storage_mut(pool), index, &step.seals)?;
        }
        backend.attend(cache.storage(pool), index, q, &step.spans, scale, heads)?;
        backend.matmul_add(heads, &self.o_proj, residual)
    }
}
