//! The sizes of synthetic models.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde_json::{json, Value};

use crate::{Error, Result};

/// Vocabulary of every shape but `scout`; the last [`SPECIAL_TOKENS`] are special tokens.
const VOCABULARY: usize = 32000;
/// The published models' vocabulary.
const PUBLISHED_VOCABULARY: usize = 202_048;
const SPECIAL_TOKENS: usize = 256;

/// Layers of the published models, and the most that a shape may have.
const LAYERS: RangeInclusive<usize> = 1..=48;

/// Which model to make. Written as the command line has it: `edge`, `scout-layers=4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynthShape {
    /// `tiny`: four layers, 256 wide, 16 experts of 256.
    Tiny,
    /// `edge`: 16 layers, 2048 wide, 16 experts of 2048; 3.7 billion parameters.
    Edge,
    /// `scout`: all of Llama 4 Scout's text model, the published vocabulary included.
    Scout,
    /// `scout-layers=N`: so many layers with the sizes of Llama 4 Scout.
    ScoutLayers(usize),
    /// `maverick-layers=N`: so many layers with the sizes of Llama 4 Maverick.
    MaverickLayers(usize),
}

/// What distinguishes one shape from another.
struct Sizes {
    vocabulary: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    experts: usize,
    expert_width: usize,
    dense_width: usize,
    /// Every so many layers one has experts.
    expert_step: usize,
    /// Scout's scaled positions and query/key norm.
    scout: bool,
}

impl SynthShape {
    /// `config.json` as a published text model has it.
    pub(crate) fn config_json(self) -> Value {
        let sizes = self.sizes();
        let first_special = sizes.vocabulary - SPECIAL_TOKENS;
        let rope_scaling = json!({
            "rope_type": "llama3", "factor": 16.0, "high_freq_factor": 1.0,
            "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        });
        let has_rope = |layer: usize| !(layer + 1).is_multiple_of(4);
        json!({
            "architectures": ["Llama4ForCausalLM"],
            "model_type": "llama4_text",
            "hidden_size": sizes.hidden,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": 128,
            "num_local_experts": sizes.experts,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": sizes.expert_step,
            "intermediate_size": sizes.expert_width,
            "intermediate_size_mlp": sizes.dense_width,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "use_qk_norm": sizes.scout,
            "no_rope_layers": (0..sizes.layers).map(|i| has_rope(i) as u8).collect::<Vec<_>>(),
            "rope_theta": 500000.0,
            "rope_scaling": if sizes.scout { rope_scaling } else { Value::Null },
            "attention_chunk_size": 8192,
            "attention_bias": false,
            "attn_temperature_tuning": true,
            "attn_scale": 0.1,
            "floor_scale": 8192,
            "max_position_embeddings": 1 << 20,
            "vocab_size": sizes.vocabulary,
            "tie_word_embeddings": false,
            "bos_token_id": first_special,
            "eos_token_id": [first_special + 1, first_special + 7, first_special + 8],
            "pad_token_id": first_special + 18,
            "torch_dtype": "bfloat16",
        })
    }

    fn sizes(self) -> Sizes {
        let scout = |layers| Sizes {
            vocabulary: VOCABULARY,
            hidden: 5120,
            layers,
            heads: 40,
            kv_heads: 8,
            experts: 16,
            expert_width: 8192,
            dense_width: 16384,
            expert_step: 1,
            scout: true,
        };
        match self {
            SynthShape::Scout => Sizes { vocabulary: PUBLISHED_VOCABULARY, ..scout(*LAYERS.end()) },
            SynthShape::ScoutLayers(layers) => scout(layers),
            SynthShape::MaverickLayers(layers) => {
                Sizes { experts: 128, expert_step: 2, scout: false, ..scout(layers) }
            }
            SynthShape::Edge => Sizes {
                hidden: 2048,
                heads: 16,
                kv_heads: 4,
                expert_width: 2048,
                dense_width: 4096,
                ..scout(16)
            },
            SynthShape::Tiny => Sizes {
                hidden: 256,
                heads: 2,
                kv_heads: 1,
                expert_width: 256,
                dense_width: 512,
                ..scout(4)
            },
        }
    }
}

impl fmt::Display for SynthShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SynthShape::Tiny => f.write_str("tiny"),
            SynthShape::Edge => f.write_str("edge"),
            SynthShape::Scout => f.write_str("scout"),
            SynthShape::ScoutLayers(layers) => write!(f, "scout-layers={layers}"),
            SynthShape::MaverickLayers(layers) => write!(f, "maverick-layers={layers}"),
        }
    }
}

impl FromStr for SynthShape {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let layers = |count: &str| count.parse().ok().filter(|count| LAYERS.contains(count));
        let shape = match text.split_once('=') {
            None if text == "tiny" => Some(SynthShape::Tiny),
            None if text == "edge" => Some(SynthShape::Edge),
            None if text == "scout" => Some(SynthShape::Scout),
            Some(("scout-layers", count)) => layers(count).map(SynthShape::ScoutLayers),
            Some(("maverick-layers", count)) => layers(count).map(SynthShape::MaverickLayers),
            _ => None,
        };
        shape.ok_or_else(|| Error::UnknownShape { name: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use llama4rs_tensor::format::{GROUP_SIZES, PANEL_ROWS};

    use super::*;
    use crate::{tensor_specs, Config, TensorShape};

    fn config(shape: SynthShape) -> Config {
        Config::from_json(&shape.config_json().to_string(), Path::new("config.json")).unwrap()
    }

    fn parameters(shape: SynthShape) -> u64 {
        tensor_specs(&config(shape)).iter().map(|spec| spec.shape.num_values()).sum()
    }

    #[test]
    fn names_round_trip() {
        for name in
            ["tiny", "edge", "scout", "scout-layers=4", "scout-layers=48", "maverick-layers=2"]
        {
            assert_eq!(name.parse::<SynthShape>().unwrap().to_string(), name);
        }
        for name in ["", "big", "edge=2", "scout-layers", "scout-layers=0", "maverick-layers=49"] {
            let error = name.parse::<SynthShape>().unwrap_err().to_string();
            assert!(error.contains("scout-layers=N"), "{error}");
        }
    }

    #[test]
    fn the_published_models_have_the_published_sizes() {
        // The published vocabulary has 202048 tokens: 170048 more, in and out.
        let vocabulary = 2 * 5120 * 170_048;
        let scout = parameters(SynthShape::Scout);
        assert_eq!(scout, parameters(SynthShape::ScoutLayers(48)) + vocabulary);
        assert!((scout as f64 / 107.77e9 - 1.0).abs() < 0.001, "{scout}");
        let maverick = parameters(SynthShape::MaverickLayers(48)) + vocabulary;
        assert!((maverick as f64 / 400.71e9 - 1.0).abs() < 0.001, "{maverick}");
        assert_eq!(parameters(SynthShape::Edge) / 10_000_000, 372);
    }

    #[test]
    fn no_panel_of_any_shape_has_padding() {
        let shapes = [SynthShape::Tiny, SynthShape::Edge, SynthShape::Scout];
        for shape in shapes.into_iter().chain([SynthShape::MaverickLayers(2)]) {
            for spec in tensor_specs(&config(shape)) {
                if let TensorShape::Matrix { rows, cols, .. } = spec.shape {
                    assert_eq!(rows % PANEL_ROWS, 0, "{shape}: {}", spec.name);
                    assert_eq!(cols % GROUP_SIZES[2], 0, "{shape}: {}", spec.name);
                }
            }
        }
    }
}
