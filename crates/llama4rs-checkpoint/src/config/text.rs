//! The decoder's sizes and what each of its layers does.

use super::fields::{as_flag, excerpt, Fields};
use super::rope::{self, RopeScaling};
use crate::{Error, Result};

const MAX_LAYERS: u64 = 4096;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_VOCABULARY: u64 = 1 << 24;
const MAX_COUNT: u64 = 1 << 16;
const MAX_CONTEXT: u64 = 1 << 40;

/// Sizes of the decoder. A value that exists is a valid one.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Width of each routed expert and of the shared expert.
    pub intermediate_size: usize,
    /// Width of the dense feed-forward layers.
    pub intermediate_size_mlp: usize,
    /// Routed experts of a layer that has them; 0 when no layer does.
    pub num_experts: usize,
    /// Experts that each token goes to; 0 when no layer has experts.
    pub experts_per_token: usize,
    /// One entry per layer.
    pub layers: Vec<LayerConfig>,
    /// Tokens of an attention chunk; `None`: no layer is chunked.
    pub chunk_size: Option<usize>,
    /// Whether layers with rotary positions normalise queries and keys per head.
    pub use_qk_norm: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Long-context change of the frequencies.
    pub rope_scaling: Option<RopeScaling>,
    /// Query scaling of the layers without rotary positions.
    pub temperature_tuning: Option<TemperatureTuning>,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Whether the output matrix is the embedding table.
    pub tie_word_embeddings: bool,
    /// Longest context that the checkpoint claims.
    pub max_position_embeddings: usize,
}

/// What one decoder layer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// Rotary positions (and QK norm); without: no positions, temperature tuning.
    pub rope: bool,
    /// Which keys a query sees.
    pub attention: AttentionKind,
    /// What follows the attention.
    pub feed_forward: FeedForwardKind,
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttentionKind {
    /// The earlier tokens of its own chunk.
    Chunked,
    /// All earlier tokens.
    Full,
}

/// The feed-forward part of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FeedForwardKind {
    /// One SwiGLU of width `intermediate_size_mlp`.
    Dense,
    /// Router, routed experts and a shared expert of width `intermediate_size`.
    Experts,
}

/// `q *= 1 + attn_scale * ln(1 + floor((position + 1) / floor_scale))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TemperatureTuning {
    /// Tokens of one step.
    pub floor_scale: f64,
    /// Strength.
    pub attn_scale: f64,
}

impl TextConfig {
    pub(super) fn read(fields: &Fields<'_>, tied_by_default: bool) -> Result<Self> {
        check_plain_llama4(fields)?;
        let num_layers = fields.size("num_hidden_layers", 48, MAX_LAYERS)?;
        let chunk_size = match fields.is_written("attention_chunk_size") {
            true if fields.value("attention_chunk_size").is_none() => None,
            _ => Some(fields.size("attention_chunk_size", 8192, MAX_CONTEXT)?),
        };
        let (rope_theta, rope_scaling) = rope::read(fields, 500000.0)?;
        let mut config = Self {
            vocab_size: fields.size("vocab_size", 202048, MAX_VOCABULARY)?,
            hidden_size: fields.size("hidden_size", 5120, MAX_WIDTH)?,
            num_heads: fields.size("num_attention_heads", 40, MAX_COUNT)?,
            num_kv_heads: 0,
            head_dim: 0,
            intermediate_size: fields.whole("intermediate_size", MAX_WIDTH)?.unwrap_or(8192)
                as usize,
            intermediate_size_mlp: fields
                .whole("intermediate_size_mlp", MAX_WIDTH)?
                .unwrap_or(16384) as usize,
            num_experts: fields.whole("num_local_experts", MAX_COUNT)?.unwrap_or(16) as usize,
            experts_per_token: fields.whole("num_experts_per_tok", MAX_COUNT)?.unwrap_or(1)
                as usize,
            layers: Vec::new(),
            chunk_size,
            use_qk_norm: fields.flag("use_qk_norm", true)?,
            rope_theta,
            rope_scaling,
            temperature_tuning: temperature_tuning(fields)?,
            rms_norm_eps: fields.single("rms_norm_eps", 1e-5)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", tied_by_default)?,
            max_position_embeddings: fields.size("max_position_embeddings", 131072, MAX_CONTEXT)?,
        };
        config.read_heads(fields)?;
        config.layers = layers(fields, num_layers, &config)?;
        config.check_feed_forward(fields)?;
        Ok(config)
    }

    fn read_heads(&mut self, fields: &Fields<'_>) -> Result<()> {
        // A written null means "as many as query heads" and "hidden_size / heads".
        let kv_default = if fields.is_written("num_key_value_heads") { self.num_heads } else { 8 };
        let dim_default =
            if fields.is_written("head_dim") { self.hidden_size / self.num_heads } else { 128 };
        self.num_kv_heads = fields.size("num_key_value_heads", kv_default, MAX_COUNT)?;
        self.head_dim = fields.size("head_dim", dim_default, MAX_COUNT)?;
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(fields.error(
                "num_key_value_heads",
                format!(
                    "{} does not divide num_attention_heads {}",
                    self.num_kv_heads, self.num_heads
                ),
            ));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(fields
                .error("head_dim", format!("expected an even number, found {}", self.head_dim)));
        }
        if self.num_heads * self.head_dim > MAX_WIDTH as usize {
            return Err(fields.error(
                "head_dim",
                format!("{} heads of {} are wider than {MAX_WIDTH}", self.num_heads, self.head_dim),
            ));
        }
        Ok(())
    }

    fn check_feed_forward(&mut self, fields: &Fields<'_>) -> Result<()> {
        let has = |kind| self.layers.iter().any(|layer| layer.feed_forward == kind);
        let zero = |name: &str| fields.error(name, "expected a size above 0, found 0");
        if has(FeedForwardKind::Dense) && self.intermediate_size_mlp == 0 {
            return Err(zero("intermediate_size_mlp"));
        }
        if !has(FeedForwardKind::Experts) {
            self.num_experts = 0;
            self.experts_per_token = 0;
            return Ok(());
        }
        if self.intermediate_size == 0 {
            return Err(zero("intermediate_size"));
        }
        if self.num_experts == 0 {
            return Err(zero("num_local_experts"));
        }
        if !(1..=self.num_experts).contains(&self.experts_per_token) {
            return Err(fields.error(
                "num_experts_per_tok",
                format!(
                    "expected 1 to num_local_experts {}, found {}",
                    self.num_experts, self.experts_per_token
                ),
            ));
        }
        Ok(())
    }

    /// Width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

/// Refuses switches that no Llama 4 turns on and that we do not implement.
fn check_plain_llama4(fields: &Fields<'_>) -> Result<()> {
    let unsupported = |what: String, hint: &str| {
        Err(Error::Unsupported { path: fields.path().to_owned(), what, hint: hint.into() })
    };
    match fields.string("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(act) => {
            return unsupported(format!("hidden_act {act:?}"), "Llama 4 text layers use \"silu\"")
        }
    }
    if fields.flag("attention_bias", false)? {
        return unsupported("attention_bias true".into(), "Llama 4 attention has no biases");
    }
    Ok(())
}

fn temperature_tuning(fields: &Fields<'_>) -> Result<Option<TemperatureTuning>> {
    let floor_scale = fields.positive("floor_scale", Some(8192.0))?;
    let attn_scale = fields.number("attn_scale")?.unwrap_or(0.1);
    let on = fields.flag("attn_temperature_tuning", true)?;
    Ok(on.then_some(TemperatureTuning { floor_scale, attn_scale }))
}

fn layers(fields: &Fields<'_>, num_layers: usize, config: &TextConfig) -> Result<Vec<LayerConfig>> {
    let rope = rope_layers(fields, num_layers)?;
    let chunked = chunked_layers(fields, &rope)?;
    let experts = expert_layers(fields, num_layers, config.num_experts)?;
    let layer = |i: usize| LayerConfig {
        rope: rope[i],
        attention: match chunked[i] && config.chunk_size.is_some() {
            true => AttentionKind::Chunked,
            false => AttentionKind::Full,
        },
        feed_forward: if experts[i] { FeedForwardKind::Experts } else { FeedForwardKind::Dense },
    };
    Ok((0..num_layers).map(layer).collect())
}

/// `no_rope_layers` holds 1 for layers *with* rotary positions; `[]` and null are derived.
fn rope_layers(fields: &Fields<'_>, num_layers: usize) -> Result<Vec<bool>> {
    let name = "no_rope_layers";
    match fields.array(name)? {
        None | Some([]) => {
            let interval = fields.size("no_rope_layer_interval", 4, MAX_CONTEXT)?;
            Ok((0..num_layers).map(|i| (i + 1) % interval != 0).collect())
        }
        Some(flags) => {
            check_length(fields, name, flags.len(), num_layers)?;
            let flag = |value| {
                as_flag(value).ok_or_else(|| {
                    fields.error(name, format!("expected 0 or 1, found {}", excerpt(value)))
                })
            };
            flags.iter().map(flag).collect()
        }
    }
}

fn chunked_layers(fields: &Fields<'_>, rope: &[bool]) -> Result<Vec<bool>> {
    let name = "layer_types";
    let Some(types) = fields.array(name)? else { return Ok(rope.to_vec()) };
    check_length(fields, name, types.len(), rope.len())?;
    let kind = |value: &serde_json::Value| match value.as_str() {
        Some("chunked_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(fields.error(
            name,
            format!(
                "expected \"chunked_attention\" or \"full_attention\", found {}",
                excerpt(value)
            ),
        )),
    };
    types.iter().map(kind).collect()
}

/// `moe_layers` when it is a list (`[]` means fully dense), else every
/// `interleave_moe_layer_step`-th layer; a model without experts is dense.
fn expert_layers(fields: &Fields<'_>, num_layers: usize, num_experts: usize) -> Result<Vec<bool>> {
    let name = "moe_layers";
    let Some(listed) = fields.array(name)? else {
        if num_experts == 0 {
            return Ok(vec![false; num_layers]);
        }
        let step = fields.size("interleave_moe_layer_step", 1, MAX_CONTEXT)?;
        return Ok((0..num_layers).map(|i| (i + 1) % step == 0).collect());
    };
    let mut experts = vec![false; num_layers];
    for value in listed {
        let slot = value.as_u64().and_then(|i| experts.get_mut(usize::try_from(i).ok()?));
        *slot.ok_or_else(|| {
            fields.error(
                name,
                format!("expected layer numbers below {num_layers}, found {}", excerpt(value)),
            )
        })? = true;
    }
    Ok(experts)
}

fn check_length(fields: &Fields<'_>, name: &str, found: usize, num_layers: usize) -> Result<()> {
    if found == num_layers {
        return Ok(());
    }
    Err(fields.error(
        name,
        format!("expected {num_layers} entries, one per layer (num_hidden_layers), found {found}"),
    ))
}
