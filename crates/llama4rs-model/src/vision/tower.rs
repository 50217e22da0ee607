//! The whole tower, a few tiles at a time.

use llama4rs_checkpoint::{VisionConfig, WeightSource};
use llama4rs_tensor::{Backend, VisionBackend};

use super::block::{LayerNorm, Linear, VisionBlock};
use super::patches::{rotations, shuffled_rows, unfold};
use crate::{Error, Observer, Result};

/// Tiles that go through the tower together.
const TILES_PER_STEP: usize = 2;

/// Encoder, adapter and projector on one device.
pub struct VisionModel<B: Backend> {
    config: VisionConfig,
    patch_embedding: B::Matrix,
    /// Positions of one tile with the class token in the last row, `[patches + 1, width]`.
    positions: Vec<f32>,
    layernorm_pre: LayerNorm<B>,
    blocks: Vec<VisionBlock<B>>,
    layernorm_post: LayerNorm<B>,
    adapter_fc1: B::Matrix,
    adapter_fc2: B::Matrix,
    projector: B::Matrix,
}

/// The buffers of the tower. `[tiles * (patches + 1), …]` each.
pub struct VisionWorkspace<B: Backend> {
    pub(super) x: B::Tensor,
    pub(super) h: B::Tensor,
    pub(super) q: B::Tensor,
    pub(super) k: B::Tensor,
    pub(super) v: B::Tensor,
    pub(super) heads: B::Tensor,
    /// `[…, intermediate]`
    pub(super) wide: B::Tensor,
    /// `[tokens, …]` after pixel shuffle.
    shuffled: B::Tensor,
    adapted: B::Tensor,
}

impl<B: Backend> VisionWorkspace<B> {
    /// Empty buffers.
    pub fn new(backend: &B) -> Self {
        let empty = || backend.empty();
        Self {
            x: empty(),
            h: empty(),
            q: empty(),
            k: empty(),
            v: empty(),
            heads: empty(),
            wide: empty(),
            shuffled: empty(),
            adapted: empty(),
        }
    }
}

impl<B: VisionBackend> VisionModel<B> {
    /// Brings a checkpoint's vision part to a device; `None` for a text-only one.
    pub fn load(backend: &B, source: &dyn WeightSource) -> Result<Option<Self>> {
        match &source.config().vision {
            None => Ok(None),
            Some(config) => Loader { backend, source, config }.tower().map(Some),
        }
    }

    /// The tower's sizes.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Encodes normalised tiles `[tiles, channels, size, size]` into
    /// `[tiles * tokens_per_tile, hidden]`, the rows that replace patch embeddings.
    pub fn encode(
        &self,
        backend: &B,
        pixels: &[f32],
        workspace: &mut VisionWorkspace<B>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>> {
        let tile = self.config.num_channels * self.config.image_size * self.config.image_size;
        if !pixels.len().is_multiple_of(tile) {
            return Err(Error::Tensor(llama4rs_tensor::Error::shape(
                "encode images",
                format!("a multiple of {tile} values"),
                pixels.len(),
            )));
        }
        let mut features = Vec::new();
        for tiles in pixels.chunks(TILES_PER_STEP * tile) {
            features.extend(self.encode_step(backend, tiles, tile, workspace, observer)?);
        }
        Ok(features)
    }

    fn encode_step(
        &self,
        backend: &B,
        pixels: &[f32],
        tile: usize,
        workspace: &mut VisionWorkspace<B>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>> {
        let config = &self.config;
        let tiles = pixels.len() / tile;
        let tile_rows = config.num_patches() + 1;
        let mut rows = Vec::with_capacity(tiles * tile_rows * config.patch_values());
        for tile in pixels.chunks_exact(tile) {
            unfold(config, tile, &mut rows);
        }
        let rows = backend.upload(&rows, config.patch_values())?;
        let positions = backend.upload(&self.positions.repeat(tiles), config.hidden_size)?;
        let rotations = backend.upload(&rotations(config).repeat(tiles), config.head_dim)?;

        backend.matmul(&rows, &[&self.patch_embedding], &mut [&mut workspace.h])?;
        backend.add(&mut workspace.h, &positions)?;
        self.layernorm_pre.forward(backend, &workspace.h, &mut workspace.x)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            if observer.before_layer(layer).is_break() {
                return Err(Error::Interrupted);
            }
            block.forward(backend, &rotations, tile_rows, workspace)?;
        }
        let VisionWorkspace { x, h, wide, shuffled, adapted, .. } = workspace;
        self.layernorm_post.forward(backend, x, h)?;
        backend.select_rows(h, &shuffled_rows(config, tiles), shuffled)?;
        backend.reshape(shuffled, config.shuffled_size())?;
        backend.matmul(shuffled, &[&self.adapter_fc1], &mut [wide])?;
        backend.gelu(wide, None)?;
        backend.matmul(wide, &[&self.adapter_fc2], &mut [adapted])?;
        backend.gelu(adapted, None)?;
        backend.matmul(adapted, &[&self.projector], &mut [h])?;
        Ok(backend.to_host(h)?)
    }
}

struct Loader<'a, B> {
    backend: &'a B,
    source: &'a dyn WeightSource,
    config: &'a VisionConfig,
}

impl<B: VisionBackend> Loader<'_, B> {
    fn tower(&self) -> Result<VisionModel<B>> {
        let mut positions = self.source.vector("vision_model.positional_embedding_vlm")?;
        let class = self.source.vector("vision_model.class_embedding")?;
        let last = positions.len() - class.len();
        for (position, class) in positions[last..].iter_mut().zip(&class) {
            *position += class;
        }
        let block = |j| self.block(&format!("vision_model.model.layers.{j}"));
        Ok(VisionModel {
            config: self.config.clone(),
            patch_embedding: self.matrix("vision_model.patch_embedding.linear")?,
            positions,
            layernorm_pre: self.layer_norm("vision_model.layernorm_pre")?,
            blocks: (0..self.config.num_layers).map(block).collect::<Result<_>>()?,
            layernorm_post: self.layer_norm("vision_model.layernorm_post")?,
            adapter_fc1: self.matrix("vision_model.vision_adapter.mlp.fc1")?,
            adapter_fc2: self.matrix("vision_model.vision_adapter.mlp.fc2")?,
            projector: self.matrix("multi_modal_projector.linear_1")?,
        })
    }

    fn block(&self, prefix: &str) -> Result<VisionBlock<B>> {
        let linear = |name: &str| self.linear(&format!("{prefix}.{name}"));
        let norm = |name: &str| self.layer_norm(&format!("{prefix}.{name}"));
        Ok(VisionBlock {
            input_layernorm: norm("input_layernorm")?,
            q_proj: linear("self_attn.q_proj")?,
            k_proj: linear("self_attn.k_proj")?,
            v_proj: linear("self_attn.v_proj")?,
            o_proj: linear("self_attn.o_proj")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            fc1: linear("mlp.fc1")?,
            fc2: linear("mlp.fc2")?,
            head_dim: self.config.head_dim,
        })
    }

    fn linear(&self, name: &str) -> Result<Linear<B>> {
        Ok(Linear { weight: self.matrix(name)?, bias: self.vector(&format!("{name}.bias"))? })
    }

    fn layer_norm(&self, name: &str) -> Result<LayerNorm<B>> {
        Ok(LayerNorm {
            weight: self.vector(&format!("{name}.weight"))?,
            bias: self.vector(&format!("{name}.bias"))?,
            eps: self.config.norm_eps,
        })
    }

    fn vector(&self, name: &str) -> Result<B::Vector> {
        Ok(self.backend.vector(&self.source.vector(name)?)?)
    }

    fn matrix(&self, name: &str) -> Result<B::Matrix> {
        Ok(self.backend.matrix(self.source.matrix(name)?)?)
    }
}
