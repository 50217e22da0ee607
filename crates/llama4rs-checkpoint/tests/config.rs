//! `config.json` in all its spellings, and what is refused.

mod support;

use std::path::Path;

use llama4rs_checkpoint::{
    AttentionKind, Config, Error, ErrorKind, FeedForwardKind, RopeScaling, TemperatureTuning,
};
use proptest::prelude::*;
use serde_json::{json, Value};
use support::*;

fn read(config: &Value) -> Result<Config, Error> {
    Config::from_json(&config.to_string(), Path::new("/models/x/config.json"))
}

/// The tiny text configuration with some fields changed; `null` is written as null.
fn with(changes: Value) -> Result<Config, Error> {
    let mut config = tiny_text_config();
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    read(&config)
}

fn without(name: &str) -> Result<Config, Error> {
    let mut config = tiny_text_config();
    config.as_object_mut().unwrap().remove(name).unwrap();
    read(&config)
}

/// What transformers writes for Scout and Maverick.
fn published(scout: bool) -> Value {
    let mut text = json!({
        "attention_bias": false, "attention_chunk_size": 8192, "attention_dropout": 0.0,
        "bos_token_id": 200000, "eos_token_id": [200001, 200007, 200008],
        "for_llm_compressor": false, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "initializer_range": 0.02, "interleave_moe_layer_step": if scout { 1 } else { 2 },
        "intermediate_size": 8192, "intermediate_size_mlp": 16384,
        "max_position_embeddings": 1048576, "model_type": "llama4_text", "no_rope_layers": [],
        "num_attention_heads": 40, "num_experts_per_tok": 1, "num_hidden_layers": 48,
        "num_key_value_heads": 8, "num_local_experts": if scout { 16 } else { 128 },
        "output_router_logits": false, "pad_token_id": 200018, "rms_norm_eps": 1e-05,
        "rope_scaling": null, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
        "use_cache": true, "use_qk_norm": scout, "vocab_size": 202048
    });
    if scout {
        text["rope_scaling"] = json!({"factor": 16.0, "high_freq_factor": 1.0,
            "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"});
    }
    json!({
        "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4",
        "boi_token_index": 200080, "eoi_token_index": 200081, "image_token_index": 200092,
        "tie_word_embeddings": false, "text_config": text,
        "vision_config": {"attention_dropout": 0.0, "hidden_act": "gelu", "hidden_size": 1408,
            "image_size": 336, "intermediate_size": 5632, "model_type": "llama4_vision_model",
            "multi_modal_projector_bias": false, "norm_eps": 1e-05, "num_attention_heads": 16,
            "num_channels": 3, "num_hidden_layers": 34, "patch_size": 14,
            "pixel_shuffle_ratio": 0.5, "projector_input_dim": 4096,
            "projector_output_dim": 4096, "rope_theta": 10000,
            "vision_feature_layer": -1, "vision_output_dim": 4096}
    })
}

fn count(config: &Config, kind: FeedForwardKind) -> usize {
    config.text.layers.iter().filter(|layer| layer.feed_forward == kind).count()
}

#[test]
fn scout_and_maverick_are_read() {
    let scout = read(&published(true)).unwrap();
    assert_eq!(count(&scout, FeedForwardKind::Experts), 48);
    assert!(scout.text.use_qk_norm);
    assert_eq!(
        scout.text.rope_scaling,
        Some(RopeScaling::Llama3 {
            factor: 16.0,
            low_freq_factor: 1.0,
            high_freq_factor: 1.0,
            original_max_position_embeddings: 8192
        })
    );
    for (i, layer) in scout.text.layers.iter().enumerate() {
        assert_eq!(layer.rope, i % 4 != 3, "layer {i}");
        let chunked = layer.attention == AttentionKind::Chunked;
        assert_eq!(chunked, layer.rope, "layer {i}");
    }
    assert_eq!(
        scout.text.temperature_tuning,
        Some(TemperatureTuning { floor_scale: 8192.0, attn_scale: 0.1 })
    );
    assert_eq!(scout.eos_token_ids, [200001, 200007, 200008]);
    assert_eq!((scout.bos_token_id, scout.pad_token_id), (Some(200000), Some(200018)));
    assert_eq!(scout.image_token_id, Some(200092));
    let vision = scout.vision.as_ref().unwrap();
    assert_eq!((vision.head_dim, vision.grid(), vision.tokens_per_tile()), (88, 24, 144));
    assert_eq!((vision.patch_values(), vision.shuffled_size()), (588, 5632));

    let maverick = read(&published(false)).unwrap();
    assert_eq!(count(&maverick, FeedForwardKind::Experts), 24);
    assert_eq!(maverick.text.layers[0].feed_forward, FeedForwardKind::Dense);
    assert_eq!(maverick.text.rope_scaling, None);
    assert!(!maverick.text.use_qk_norm);
    assert_eq!(maverick.text.num_experts, 128);
}

#[test]
fn parameter_counts_are_the_published_ones() {
    for (scout, expected) in [(true, 108_641_793_536u64), (false, 401_583_781_376)] {
        let config = read(&published(scout)).unwrap();
        let specs = llama4rs_checkpoint::tensor_specs(&config);
        let total: u64 = specs.iter().map(|spec| spec.shape.num_values()).sum();
        assert_eq!(total, expected);
    }
}

#[test]
fn dense_models_are_read() {
    let guard = with(json!({"moe_layers": []})).unwrap();
    assert_eq!(count(&guard, FeedForwardKind::Dense), 4);
    assert_eq!((guard.text.num_experts, guard.text.experts_per_token), (0, 0));
    let small = with(json!({
        "moe_layers": [], "num_local_experts": 0, "num_experts_per_tok": 0,
        "interleave_moe_layer_step": 0, "no_rope_layers": [1, 1, 1, 1],
        "layer_types": vec!["full_attention"; 4], "tie_word_embeddings": true,
        "attn_temperature_tuning": false
    }))
    .unwrap();
    assert!(small.text.layers.iter().all(|l| l.rope && l.attention == AttentionKind::Full));
    assert!(small.text.tie_word_embeddings && small.text.temperature_tuning.is_none());
    let derived = with(json!({"num_local_experts": 0})).unwrap();
    assert_eq!(count(&derived, FeedForwardKind::Dense), 4);
}

#[test]
fn tolerances_are_kept() {
    for on in [json!(true), json!(4), json!(4.0), json!(null)] {
        let config = with(json!({"attn_temperature_tuning": on})).unwrap();
        assert!(config.text.temperature_tuning.is_some());
    }
    for off in [json!(false), json!(0)] {
        let config = with(json!({"attn_temperature_tuning": off})).unwrap();
        assert!(config.text.temperature_tuning.is_none());
    }
    assert!(without("attention_chunk_size").unwrap().text.chunk_size == Some(8192));
    let unchunked = with(json!({"attention_chunk_size": null})).unwrap();
    assert_eq!(unchunked.text.chunk_size, None);
    assert!(unchunked.text.layers.iter().all(|layer| layer.attention == AttentionKind::Full));
    for layers in [json!([]), json!(null), json!([1, 1, 1, 0]), json!([true, true, true, false])] {
        let config = with(json!({"no_rope_layers": layers})).unwrap();
        let rope: Vec<bool> = config.text.layers.iter().map(|layer| layer.rope).collect();
        assert_eq!(rope, [true, true, true, false]);
    }
    let listed = with(json!({"moe_layers": [0, 3]})).unwrap();
    assert_eq!(listed.text.layers[0].feed_forward, FeedForwardKind::Experts);
    assert_eq!(listed.text.layers[1].feed_forward, FeedForwardKind::Dense);
    assert_eq!(with(json!({"floor_scale": 8192.0, "eos_token_id": 7})).unwrap().eos_token_ids, [7]);
    assert_eq!(with(json!({"pad_token_id": -1})).unwrap().pad_token_id, None);
    with(json!({"dtype": "bfloat16", "torch_dtype": null, "for_llm_compressor": true,
        "cache_implementation": "hybrid", "_attn_implementation_autoset": true, "stray": {"a": []}}))
    .unwrap();
}

#[test]
fn mask_and_rotary_positions_are_independent() {
    let config = with(json!({
        "layer_types": ["full_attention", "chunked_attention", "full_attention", "chunked_attention"]
    }))
    .unwrap();
    let layers = &config.text.layers;
    assert_eq!(layers[0].attention, AttentionKind::Full);
    assert!(layers[0].rope);
    assert_eq!(layers[3].attention, AttentionKind::Chunked);
    assert!(!layers[3].rope);
}

#[test]
fn old_and_new_rotary_keys_agree() {
    let old = read(&tiny_text_config()).unwrap();
    let mut config = tiny_text_config();
    let mut rope = config["rope_scaling"].clone();
    rope["rope_theta"] = json!(500000.0);
    config.as_object_mut().unwrap().retain(|name, _| !name.starts_with("rope"));
    config["rope_parameters"] = rope;
    let new = read(&config).unwrap();
    assert_eq!(old.text, new.text);
    let plain =
        with(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})).unwrap();
    assert_eq!((plain.text.rope_theta, plain.text.rope_scaling), (1e4, None));
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = read(&json!({"model_type": "llama4_text", "hidden_size": 5120})).unwrap();
    let text = &config.text;
    assert_eq!((text.vocab_size, text.layers.len(), text.num_heads), (202048, 48, 40));
    assert_eq!((text.num_kv_heads, text.head_dim), (8, 128));
    assert_eq!((text.intermediate_size, text.intermediate_size_mlp), (8192, 16384));
    assert_eq!((text.num_experts, text.experts_per_token), (16, 1));
    assert_eq!((text.rope_theta, text.rms_norm_eps), (500000.0, 1e-5));
    assert_eq!(text.max_position_embeddings, 131072);
    let nulls = with(json!({"head_dim": null, "num_key_value_heads": null})).unwrap();
    assert_eq!((nulls.text.head_dim, nulls.text.num_kv_heads), (12, 4));
}

#[test]
fn a_multimodal_model_may_tie_at_the_top_level() {
    let mut config = tiny_config();
    config["tie_word_embeddings"] = json!(true);
    assert!(read(&config).unwrap().text.tie_word_embeddings);
    config["text_config"]["tie_word_embeddings"] = json!(false);
    assert!(!read(&config).unwrap().text.tie_word_embeddings);
}

#[test]
fn other_architectures_are_named() {
    for (changes, name) in [
        (json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}), "LlamaForCausalLM"),
        (json!({"architectures": [], "model_type": "qwen3_moe"}), "qwen3_moe"),
        (json!({"architectures": null, "model_type": "mixtral"}), "mixtral"),
    ] {
        let error = with(changes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(text.contains(name) && text.contains("Llama 4 only"), "{text}");
    }
    let mut config = tiny_config();
    config["text_config"]["model_type"] = json!("gemma3_text");
    assert!(read(&config).unwrap_err().to_string().contains("gemma3_text"));
}

#[test]
fn impossible_sizes_are_refused_and_named() {
    for (changes, expected) in [
        (json!({"hidden_size": 0}), "hidden_size: expected 1 to"),
        (json!({"vocab_size": 1u64 << 60}), "vocab_size: expected a whole number from 0 to"),
        (json!({"num_hidden_layers": 1_000_000_000}), "num_hidden_layers"),
        (json!({"num_key_value_heads": 3}), "3 does not divide num_attention_heads 4"),
        (json!({"head_dim": 13}), "head_dim: expected an even number, found 13"),
        (json!({"head_dim": 60000, "num_attention_heads": 60000}), "wider than"),
        (json!({"num_experts_per_tok": 4}), "expected 1 to num_local_experts 3, found 4"),
        (json!({"num_experts_per_tok": 0}), "num_experts_per_tok"),
        (json!({"num_local_experts": 0, "moe_layers": [1]}), "num_local_experts"),
        (json!({"attention_chunk_size": 0}), "attention_chunk_size: expected 1 to"),
        (json!({"rms_norm_eps": -1e-5}), "rms_norm_eps: expected a number above 0"),
        (json!({"rms_norm_eps": 1e-50}), "rms_norm_eps: beyond the range of single precision"),
        (json!({"rms_norm_eps": "1e-5"}), "expected a finite number, found \"1e-5\""),
        (json!({"rope_theta": 0}), "rope_theta"),
        (json!({"floor_scale": 0}), "floor_scale"),
        (json!({"no_rope_layers": [1, 0]}), "expected 4 entries, one per layer"),
        (json!({"no_rope_layer_interval": 0}), "no_rope_layer_interval"),
        (json!({"layer_types": vec!["sliding_attention"; 4]}), "sliding_attention"),
        (json!({"moe_layers": [4]}), "expected layer numbers below 4, found 4"),
        (json!({"moe_layers": [-1]}), "moe_layers"),
        (json!({"interleave_moe_layer_step": 0}), "interleave_moe_layer_step"),
        (json!({"intermediate_size": 0}), "intermediate_size"),
        (json!({"intermediate_size_mlp": 0}), "intermediate_size_mlp"),
        (json!({"eos_token_id": ["</s>"]}), "expected token ids"),
        (json!({"rope_scaling": {"rope_type": "llama3", "factor": 0}}), "rope_scaling."),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
            "high_freq_factor": 1, "original_max_position_embeddings": 16}}),
            "high_freq_factor",
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
            "high_freq_factor": 4}}),
            "original_max_position_embeddings",
        ),
    ] {
        let error = with(changes.clone()).expect_err(&changes.to_string());
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        let text = error.to_string();
        assert!(text.starts_with("/models/x/config.json: "), "{text}");
        assert!(text.contains(expected), "{text}\ndoes not contain {expected}");
    }
}

#[test]
fn what_is_not_implemented_is_refused() {
    for (changes, expected) in [
        (json!({"hidden_act": "gelu"}), "hidden_act \"gelu\""),
        (json!({"attention_bias": true}), "attention_bias true"),
        (json!({"rope_scaling": {"type": "yarn", "factor": 4}}), "rope_type \"yarn\""),
    ] {
        let error = with(changes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn impossible_vision_is_refused() {
    for (name, value, expected) in [
        ("num_attention_heads", json!(3), "do not cut hidden_size"),
        ("image_size", json!(9), "not a multiple of 4"),
        ("intermediate_size", json!(63), "expected 64, the width after pixel shuffle"),
        ("pixel_shuffle_ratio", json!(0.3), "pixel_shuffle_ratio"),
        ("projector_input_dim", json!(23), "projector_output_dim 24"),
        ("vision_output_dim", json!(7680), "projector_output_dim 24, found 7680"),
    ] {
        let mut config = tiny_config();
        config["vision_config"][name] = value;
        let text = read(&config).unwrap_err().to_string();
        assert!(text.contains("vision_config.") && text.contains(expected), "{text}");
    }
}

#[test]
fn text_that_is_no_configuration_is_refused() {
    for text in ["", "{", "[]", "null", "\"llama4\"", "{\"rms_norm_eps\": NaN}", "{}"] {
        let error = Config::from_json(text, Path::new("config.json")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{text}: {error}");
    }
    let deep = "[".repeat(100_000);
    assert!(Config::from_json(&deep, Path::new("config.json")).is_err());
}

/// Any small JSON value.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..70).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9_]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec(("[a-z_]{1,8}", inner), 0..3)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn changed_fields_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4),
        place in 0..3,
    ) {
        let mut config = if place == 0 { tiny_text_config() } else { published(place == 1) };
        for (index, value) in changes {
            let object = match (place, index.index(3)) {
                (0, _) | (_, 0) => &mut config,
                (_, 1) => &mut config["text_config"],
                _ => &mut config["vision_config"],
            };
            if let Some(object) = object.as_object_mut() {
                let names: Vec<String> = object.keys().cloned().collect();
                object.insert(names[index.index(names.len())].clone(), value);
            }
        }
        if let Ok(config) = read(&config) {
            prop_assert!(llama4rs_checkpoint::tensor_specs(&config).len() < 100_000);
        }
    }

    #[test]
    fn any_text_never_panics(text in ".{0,200}") {
        let _ = Config::from_json(&text, Path::new("config.json"));
    }
}
