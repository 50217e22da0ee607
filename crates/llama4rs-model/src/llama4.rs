//! The whole text model.

use llama4rs_checkpoint::TextConfig;
use llama4rs_kv_cache::{KvCache, KvLayout};
use llama4rs_tensor::{Backend, KvDtype, VisionBackend};

use crate::attention::{Position, PositionTerms};
use crate::block::Block;
use crate::norm::RmsNorm;
use crate::position::{query_scale, RotaryFrequencies};
use crate::{Error, Observer, Result, Step, Workspace};

/// Llama 4's text model on one device.
pub struct Llama4<B: Backend> {
    pub(crate) config: TextConfig,
    pub(crate) frequencies: RotaryFrequencies,
    pub(crate) embed_tokens: B::Matrix,
    pub(crate) blocks: Vec<Block<B>>,
    pub(crate) norm: RmsNorm<B>,
    /// `None`: tied to the embedding.
    pub(crate) lm_head: Option<B::Matrix>,
}

impl<B: VisionBackend> Llama4<B> {
    /// The model's sizes.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The layout of a cache for this model.
    pub fn kv_layout(&self, dtype: KvDtype) -> KvLayout {
        kv_layout(&self.config, dtype)
    }

    /// Runs one step and leaves the logits of `step.logit_rows` in the workspace, and the tokens
    /// that the device chose from them.
    ///
    /// The keys and values of the step are written to `cache`; they count once
    /// the caller commits them, so an error or interruption loses nothing.
    pub fn forward(
        &self,
        backend: &B,
        step: &Step,
        cache: &mut KvCache<B>,
        workspace: &mut Workspace<B>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let routings = backend
            .step(step.ids.len(), || self.layers(backend, step, cache, workspace, observer))?;
        for (layer, routing) in &routings {
            observer.routed(*layer, &backend.routed_experts(routing)?);
        }
        Ok(())
    }

    /// From token ids to logits; says where the tokens of each layer with experts went.
    fn layers(
        &self,
        backend: &B,
        step: &Step,
        cache: &mut KvCache<B>,
        workspace: &mut Workspace<B>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<(usize, B::Routing)>> {
        workspace.tokens = None;
        let terms = self.position_terms(backend, &step.positions)?;
        backend.embed(&self.embed_tokens, &step.ids, &mut workspace.x)?;
        if !step.image_rows.is_empty() {
            let features = backend.upload(&step.image_features, self.config.hidden_size)?;
            backend.replace_rows(&mut workspace.x, &step.image_rows, &features)?;
        }
        let mut routings = Vec::new();
        if let Some(first) = self.blocks.first() {
            first.input_layernorm.forward(backend, &workspace.x, &mut workspace.h)?;
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            if observer.before_layer(layer).is_break() {
                return Err(Error::Interrupted);
            }
            let next = self.blocks.get(layer + 1).map(|next| &next.input_layernorm);
            let routing = block.forward(backend, &terms, &step.kv, cache, workspace, next)?;
            routings.extend(routing.map(|routing| (layer, routing)));
        }
        if !step.logit_rows.is_empty() {
            let Workspace { x, h, selected, logits, tokens, .. } = workspace;
            backend.select_rows(x, &step.logit_rows, selected)?;
            self.norm.forward(backend, selected, h)?;
            let lm_head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
            backend.matmul(h, &[lm_head], &mut [&mut *logits])?;
            if !step.draws.is_empty() {
                *tokens = backend.choose(logits, &step.draws)?;
            }
        }
        Ok(routings)
    }

    /// Rotations and temperatures of the step's rows, once for all layers.
    fn position_terms(&self, backend: &B, positions: &[usize]) -> Result<PositionTerms<B>> {
        let uses = |kind| self.blocks.iter().any(|block| block.self_attn.position == kind);
        let rotations = |place: &dyn Fn(usize) -> usize| -> Result<B::Tensor> {
            let mut values = Vec::with_capacity(positions.len() * self.config.head_dim);
            for &position in positions {
                self.frequencies.rotation(place(position), &mut values);
            }
            Ok(backend.upload(&values, self.config.head_dim)?)
        };
        let in_chunk = match self.config.chunk_size {
            Some(chunk) if uses(Position::RotaryInChunk) => Some(rotations(&|p| p % chunk)?),
            _ => None,
        };
        let absolute = if uses(Position::RotaryAbsolute) { Some(rotations(&|p| p)?) } else { None };
        let query_scales = match &self.config.temperature_tuning {
            Some(tuning) if uses(Position::None) => {
                let scales: Vec<f32> = positions.iter().map(|&p| query_scale(tuning, p)).collect();
                Some(backend.upload(&scales, 1)?)
            }
            _ => None,
        };
        Ok(PositionTerms { in_chunk, absolute, query_scales })
    }
}

/// The layout of a cache for a model of these sizes.
pub fn kv_layout(config: &TextConfig, dtype: KvDtype) -> KvLayout {
    use llama4rs_checkpoint::AttentionKind;
    use llama4rs_kv_cache::PoolKind;
    let pool = |kind| match kind {
        AttentionKind::Chunked => PoolKind::Chunked,
        AttentionKind::Full => PoolKind::Global,
    };
    KvLayout {
        layers: config.layers.iter().map(|layer| pool(layer.attention)).collect(),
        chunk_size: config.chunk_size,
        num_kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        dtype,
        mapped: false,
    }
}
