//! Tiny checkpoints, written by hand: the weights are a function of their place.
#![allow(dead_code)]

use std::path::Path;

use half::{bf16, f16};
use llama4rs_checkpoint::{tensor_specs, Config, Role, TensorShape, TensorSpec};
use serde_json::{json, Value};

/// Element type of a written checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

/// How a checkpoint is laid out on disk.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub dtype: Dtype,
    pub split_experts: bool,
    pub shards: usize,
    /// `language_model.model.` or `model.`
    pub prefix: &'static str,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            dtype: Dtype::Bf16,
            split_experts: false,
            shards: 1,
            prefix: "language_model.model.",
        }
    }
}

/// One tensor of a safetensors file.
pub struct RawTensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

/// A multimodal model of four layers: dense and expert layers in turn.
pub fn tiny_config() -> Value {
    json!({
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "torch_dtype": "bfloat16",
        "boi_token_index": 60, "eoi_token_index": 61, "image_token_index": 62,
        "text_config": {
            "model_type": "llama4_text",
            "vocab_size": 67, "hidden_size": 48, "intermediate_size": 40, "intermediate_size_mlp": 72,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
            "num_local_experts": 3, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
            "attention_chunk_size": 8, "max_position_embeddings": 64,
            "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0,
            "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0,
                "high_freq_factor": 1.0, "original_max_position_embeddings": 16}
        },
        "vision_config": {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_channels": 3,
            "intermediate_size": 64, "image_size": 8, "patch_size": 2, "vision_output_dim": 24,
            "projector_input_dim": 24, "projector_output_dim": 24, "pixel_shuffle_ratio": 0.5
        }
    })
}

/// The same decoder without vision, flat.
pub fn tiny_text_config() -> Value {
    let mut config = tiny_config()["text_config"].clone();
    config["architectures"] = json!(["Llama4ForCausalLM"]);
    config
}

pub fn parse(config: &Value) -> Config {
    Config::from_json(&config.to_string(), Path::new("config.json")).unwrap()
}

/// The weight of a canonical tensor: uniform in -0.125..0.125, exact in bf16 and f16.
pub fn weight(name: &str, stack: usize, row: usize, col: usize) -> f32 {
    let seed = name.bytes().fold(17u64, |hash, byte| hash.wrapping_mul(31) ^ byte as u64);
    let mixed = (seed ^ ((stack * 1009 + row) * 8191 + col) as u64)
        .wrapping_mul(0x9e3779b97f4a7c15)
        .rotate_left(29)
        .wrapping_mul(0xbf58476d1ce4e5b9);
    ((mixed >> 57) as f32 - 64.0) / 512.0
}

/// All values of a vector, or of matrix `stack` row-major.
pub fn values(spec: &TensorSpec, stack: usize) -> Vec<f32> {
    let (rows, cols) = match &spec.shape {
        TensorShape::Matrix { rows, cols, .. } => (*rows, *cols),
        TensorShape::Vector { dims } => (1, dims.iter().product()),
    };
    (0..rows * cols).map(|i| weight(&spec.name, stack, i / cols, i % cols)).collect()
}

/// Writes `config.json` and the weights of the model that it describes.
pub fn write_checkpoint(directory: &Path, config: &Value, style: Style) {
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let tensors = published_tensors(&parse(config), style);
    write_weights(directory, tensors, style.shards);
}

/// Writes one file, or several with an index.
pub fn write_weights(directory: &Path, tensors: Vec<RawTensor>, shards: usize) {
    if shards == 1 {
        return write_safetensors(&directory.join("model.safetensors"), &tensors);
    }
    let mut files: Vec<Vec<RawTensor>> = (0..shards).map(|_| Vec::new()).collect();
    let mut weight_map = serde_json::Map::new();
    for (i, tensor) in tensors.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", i % shards + 1);
        weight_map.insert(tensor.name.clone(), json!(file));
        files[i % shards].push(tensor);
    }
    for (i, tensors) in files.iter().enumerate() {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        write_safetensors(&directory.join(file), tensors);
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    std::fs::write(directory.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

pub fn write_safetensors(path: &Path, tensors: &[RawTensor]) {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.data.len();
        let entry =
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let data: Vec<&[u8]> = tensors.iter().map(|tensor| tensor.data.as_slice()).collect();
    write_raw(path, Value::Object(header).to_string().as_bytes(), &data.concat());
}

/// A file from any header and any data.
pub fn write_raw(path: &Path, header: &[u8], data: &[u8]) {
    let bytes = [&(header.len() as u64).to_le_bytes(), header, data].concat();
    std::fs::write(path, bytes).unwrap();
}

/// The published tensors of a model.
pub fn published_tensors(config: &Config, style: Style) -> Vec<RawTensor> {
    let mut tensors = Vec::new();
    for spec in tensor_specs(config) {
        match (&spec.role, &spec.shape) {
            (Role::Experts, TensorShape::Matrix { stack, rows, cols }) => {
                experts(&spec, (*stack, *rows, *cols), style, &mut tensors)
            }
            (_, shape) => {
                let dims = match shape {
                    TensorShape::Matrix { rows, cols, .. } => vec![*rows, *cols],
                    TensorShape::Vector { dims } => dims.clone(),
                };
                let name = published_name(&spec, style);
                tensors.push(raw(name, dims, &values(&spec, 0), style.dtype));
            }
        }
    }
    tensors
}

fn published_name(spec: &TensorSpec, style: Style) -> String {
    match spec.role {
        Role::VisionVector => spec.name.clone(),
        Role::VisionLinear => format!("{}.weight", spec.name),
        Role::Output => format!("{}lm_head.weight", style.prefix.strip_suffix("model.").unwrap()),
        _ => format!("{}{}.weight", style.prefix, spec.name),
    }
}

fn experts(
    spec: &TensorSpec,
    (stack, rows, cols): (usize, usize, usize),
    style: Style,
    tensors: &mut Vec<RawTensor>,
) {
    let (stem, part) = spec.name.rsplit_once('.').unwrap();
    let stem = format!("{}{stem}", style.prefix);
    if style.split_experts {
        for e in 0..stack {
            let name = format!("{stem}.{e}.{part}.weight");
            tensors.push(raw(name, vec![rows, cols], &values(spec, e), style.dtype));
        }
        return;
    }
    let up = spec.name.replace("gate_proj", "up_proj");
    let outputs: Vec<(&str, usize)> = match part {
        "gate_proj" => (0..rows)
            .map(|r| (spec.name.as_str(), r))
            .chain((0..rows).map(|r| (up.as_str(), r)))
            .collect(),
        "down_proj" => (0..rows).map(|r| (spec.name.as_str(), r)).collect(),
        _ => return,
    };
    let mut fused = Vec::new();
    for e in 0..stack {
        for i in 0..cols {
            fused.extend(outputs.iter().map(|(name, row)| weight(name, e, *row, i)));
        }
    }
    let name = if part == "gate_proj" { "gate_up_proj" } else { "down_proj" };
    let shape = vec![stack, cols, outputs.len()];
    tensors.push(raw(format!("{stem}.{name}"), shape, &fused, style.dtype));
}

pub fn raw(name: impl Into<String>, shape: Vec<usize>, values: &[f32], dtype: Dtype) -> RawTensor {
    let (dtype, data) = match dtype {
        Dtype::F32 => ("F32", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Dtype::F16 => {
            ("F16", values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect())
        }
        Dtype::Bf16 => {
            ("BF16", values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect())
        }
    };
    RawTensor { name: name.into(), dtype, shape, data }
}
