//! From a checkpoint's names to the model's fields.

use llama4rs_checkpoint::{AttentionKind, FeedForwardKind, TextConfig, WeightSource};
use llama4rs_kv_cache::LayerKv;
use llama4rs_tensor::{Backend, KvDtype, MatrixUse};

use crate::attention::{Attention, Position};
use crate::block::Block;
use crate::feed_forward::{FeedForward, MixtureOfExperts, SwiGlu};
use crate::llama4::kv_layout;
use crate::norm::RmsNorm;
use crate::position::RotaryFrequencies;
use crate::{Llama4, Result};

impl<B: Backend> Llama4<B> {
    /// Brings a checkpoint's text model to a device.
    pub fn load(backend: &B, source: &dyn WeightSource) -> Result<Self> {
        let config = source.config().text.clone();
        let loader = Loader { backend, source, config: &config };
        let places = kv_layout(&config, KvDtype::F32).places();
        let embed_tokens = loader.matrix("embed_tokens", MatrixUse::Lookup)?;
        if config.tie_word_embeddings {
            backend.expect(&embed_tokens, MatrixUse::Product);
        }
        let blocks = places.into_iter().enumerate().map(|(i, kv)| loader.block(i, kv));
        Ok(Self {
            frequencies: RotaryFrequencies::new(&config),
            embed_tokens,
            blocks: blocks.collect::<Result<_>>()?,
            norm: loader.norm("norm")?,
            lm_head: match config.tie_word_embeddings {
                true => None,
                false => Some(loader.matrix("lm_head", MatrixUse::Product)?),
            },
            config,
        })
    }
}

struct Loader<'a, B> {
    backend: &'a B,
    source: &'a dyn WeightSource,
    config: &'a TextConfig,
}

impl<B: Backend> Loader<'_, B> {
    fn block(&self, index: usize, kv: LayerKv) -> Result<Block<B>> {
        let prefix = format!("layers.{index}");
        Ok(Block {
            input_layernorm: self.norm(&format!("{prefix}.input_layernorm"))?,
            self_attn: self.attention(index, kv, &format!("{prefix}.self_attn"))?,
            post_attention_layernorm: self.norm(&format!("{prefix}.post_attention_layernorm"))?,
            feed_forward: self.feed_forward(index, &format!("{prefix}.feed_forward"))?,
        })
    }

    fn attention(&self, index: usize, kv: LayerKv, prefix: &str) -> Result<Attention<B>> {
        let layer = &self.config.layers[index];
        let position = match (layer.rope, layer.attention) {
            (true, AttentionKind::Chunked) => Position::RotaryInChunk,
            (true, AttentionKind::Full) => Position::RotaryAbsolute,
            (false, _) => Position::None,
        };
        Ok(Attention {
            q_proj: self.matrix(&format!("{prefix}.q_proj"), MatrixUse::Product)?,
            k_proj: self.matrix(&format!("{prefix}.k_proj"), MatrixUse::Product)?,
            v_proj: self.matrix(&format!("{prefix}.v_proj"), MatrixUse::Product)?,
            o_proj: self.matrix(&format!("{prefix}.o_proj"), MatrixUse::EndOfHalf)?,
            head_dim: self.config.head_dim,
            position,
            qk_norm: self.config.use_qk_norm.then_some(self.config.rms_norm_eps),
            kv,
        })
    }

    fn feed_forward(&self, index: usize, prefix: &str) -> Result<FeedForward<B>> {
        Ok(match self.config.layers[index].feed_forward {
            FeedForwardKind::Dense => FeedForward::Dense(self.swiglu(prefix)?),
            FeedForwardKind::Experts => FeedForward::Experts(MixtureOfExperts {
                router: self.matrix(&format!("{prefix}.router"), MatrixUse::Product)?,
                experts: self.swiglu(&format!("{prefix}.experts"))?,
                shared_expert: self.swiglu(&format!("{prefix}.shared_expert"))?,
                top_k: self.config.experts_per_token,
            }),
        })
    }

    fn swiglu(&self, prefix: &str) -> Result<SwiGlu<B>> {
        Ok(SwiGlu {
            gate_proj: self.matrix(&format!("{prefix}.gate_proj"), MatrixUse::Gated)?,
            up_proj: self.matrix(&format!("{prefix}.up_proj"), MatrixUse::Gated)?,
            down_proj: self.matrix(&format!("{prefix}.down_proj"), MatrixUse::EndOfHalf)?,
        })
    }

    fn norm(&self, name: &str) -> Result<RmsNorm<B>> {
        let weight = self.backend.vector(&self.source.vector(name)?)?;
        Ok(RmsNorm { weight, eps: self.config.rms_norm_eps })
    }

    fn matrix(&self, name: &str, usage: MatrixUse) -> Result<B::Matrix> {
        let matrix = self.backend.matrix(self.source.matrix(name)?)?;
        self.backend.expect(&matrix, usage);
        Ok(matrix)
    }
}
