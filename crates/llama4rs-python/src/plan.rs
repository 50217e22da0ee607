//! What a model needs, from its configuration alone.

use std::path::Path;

use llama4rs_checkpoint as checkpoint;
use llama4rs_checkpoint::{AttentionKind, Config, FeedForwardKind, LayerConfig, VisionConfig};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::checkpoint::{parse_format, parse_rules, tensor_list};
use crate::errors;

/// Every tensor as `pack` would store it.
#[pyfunction]
#[pyo3(signature = (config_json, weights = "int4", policy = None))]
pub(crate) fn plan_tensors<'py>(
    py: Python<'py>,
    config_json: &str,
    weights: &str,
    policy: Option<Vec<(String, String)>>,
) -> PyResult<Bound<'py, PyList>> {
    let (weights, rules) = (parse_format(weights)?, parse_rules(policy)?);
    let config = parse_config(py, config_json)?;
    let tensors = checkpoint::planned_tensors(&config, weights, &rules)
        .map_err(|error| errors::checkpoint(py, error))?;
    tensor_list(py, &tensors)
}

/// The sizes that decide about memory and arithmetic, defaults filled in.
#[pyfunction]
pub(crate) fn plan_sizes<'py>(py: Python<'py>, config_json: &str) -> PyResult<Bound<'py, PyDict>> {
    let config = parse_config(py, config_json)?;
    let text = &config.text;
    let layers = |is: fn(&LayerConfig) -> bool| text.layers.iter().filter(|l| is(l)).count();
    let dict = sizes_dict(
        py,
        &[
            ("vocab_size", text.vocab_size),
            ("hidden_size", text.hidden_size),
            ("num_heads", text.num_heads),
            ("num_kv_heads", text.num_kv_heads),
            ("head_dim", text.head_dim),
            ("intermediate_size", text.intermediate_size),
            ("intermediate_size_mlp", text.intermediate_size_mlp),
            ("num_experts", text.num_experts),
            ("experts_per_token", text.experts_per_token),
            ("chunked_layers", layers(|layer| layer.attention == AttentionKind::Chunked)),
            ("global_layers", layers(|layer| layer.attention == AttentionKind::Full)),
            ("expert_layers", layers(|layer| layer.feed_forward == FeedForwardKind::Experts)),
            ("max_context", text.max_position_embeddings),
        ],
    )?;
    dict.set_item("chunk_size", text.chunk_size)?;
    dict.set_item("tied", text.tie_word_embeddings)?;
    dict.set_item("vision", config.vision.map(|v| vision_sizes(py, &v)).transpose()?)?;
    Ok(dict)
}

fn vision_sizes<'py>(py: Python<'py>, vision: &VisionConfig) -> PyResult<Bound<'py, PyDict>> {
    sizes_dict(
        py,
        &[
            ("hidden_size", vision.hidden_size),
            ("num_layers", vision.num_layers),
            ("num_heads", vision.num_heads),
            ("intermediate_size", vision.intermediate_size),
            ("num_patches", vision.num_patches()),
            ("patch_values", vision.patch_values()),
            ("tokens_per_tile", vision.tokens_per_tile()),
            ("shuffled_size", vision.shuffled_size()),
            ("projector_input_dim", vision.projector_input_dim),
            ("output_dim", vision.output_dim),
            ("tile_values", vision.num_channels * vision.image_size * vision.image_size),
        ],
    )
}

fn sizes_dict<'py>(py: Python<'py>, sizes: &[(&str, usize)]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, size) in sizes {
        dict.set_item(name, size)?;
    }
    Ok(dict)
}

fn parse_config(py: Python<'_>, json: &str) -> PyResult<Config> {
    Config::from_json(json, Path::new("config.json")).map_err(|error| errors::checkpoint(py, error))
}
