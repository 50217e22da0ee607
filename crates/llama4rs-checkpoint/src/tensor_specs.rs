//! Every tensor of a model, by canonical name, in the order of the forward pass.
//!
//! | canonical name | shape |
//! |---|---|
//! | `embed_tokens`, `lm_head` (absent when tied) | `[vocabulary, hidden]` |
//! | `layers.{i}.input_layernorm`, `….post_attention_layernorm`, `norm` | `[hidden]` |
//! | `layers.{i}.self_attn.{q,k,v,o}_proj` | outputs by inputs |
//! | `layers.{i}.feed_forward.{gate,up,down}_proj` (dense layer) | outputs by inputs |
//! | `layers.{i}.feed_forward.router` | `[experts, hidden]` |
//! | `layers.{i}.feed_forward.experts.{gate,up,down}_proj` | experts x `[outputs, inputs]` |
//! | `layers.{i}.feed_forward.shared_expert.{gate,up,down}_proj` | outputs by inputs |
//! | `vision_model.…`, `multi_modal_projector.linear_1` | the published name; matrices without `.weight` |
//!
//! Vision vectors keep their whole published name: `….layernorm_pre.weight`,
//! `….q_proj.bias`, `vision_model.class_embedding`.

use crate::{Config, FeedForwardKind, TextConfig, VisionConfig};

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Canonical name.
    pub name: String,
    /// Its part in the model, which decides its format.
    pub role: Role,
    /// Its dimensions.
    pub shape: TensorShape,
}

/// Dimensions of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorShape {
    /// `stack` matrices of `rows` outputs by `cols` inputs.
    Matrix {
        /// 1, or the number of routed experts.
        stack: usize,
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
    },
    /// Plain single-precision values, row-major.
    Vector {
        /// Dimensions.
        dims: Vec<usize>,
    },
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The embedding table.
    Embedding,
    /// The output matrix.
    Output,
    /// A linear layer of the decoder.
    Linear,
    /// The routed experts of a layer.
    Experts,
    /// The matrix that chooses experts.
    Router,
    /// The weights of an RMS norm.
    Norm,
    /// A linear layer of the vision part.
    VisionLinear,
    /// A bias, norm or embedding of the vision part.
    VisionVector,
}

impl TensorShape {
    /// `[stack, rows, cols]`, or the dimensions of a vector.
    pub fn dims(&self) -> Vec<usize> {
        match self {
            TensorShape::Matrix { stack, rows, cols } => vec![*stack, *rows, *cols],
            TensorShape::Vector { dims } => dims.clone(),
        }
    }

    /// Numbers in the tensor.
    pub fn num_values(&self) -> u64 {
        self.dims().iter().map(|&dim| dim as u64).product()
    }
}

/// All tensors of the model that `config` describes.
pub fn tensor_specs(config: &Config) -> Vec<TensorSpec> {
    let text = &config.text;
    let mut specs = Specs(Vec::new());
    specs.matrix("embed_tokens", Role::Embedding, 1, text.vocab_size, text.hidden_size);
    for i in 0..text.layers.len() {
        decoder_layer(&mut specs, text, i);
    }
    specs.vector("norm", Role::Norm, &[text.hidden_size]);
    if !text.tie_word_embeddings {
        specs.matrix("lm_head", Role::Output, 1, text.vocab_size, text.hidden_size);
    }
    if let Some(vision) = &config.vision {
        vision_model(&mut specs, vision, text.hidden_size);
    }
    specs.0
}

fn decoder_layer(specs: &mut Specs, text: &TextConfig, i: usize) {
    let at = format!("layers.{i}");
    let hidden = text.hidden_size;
    specs.vector(format!("{at}.input_layernorm"), Role::Norm, &[hidden]);
    for (name, rows, cols) in [
        ("q_proj", text.query_size(), hidden),
        ("k_proj", text.kv_size(), hidden),
        ("v_proj", text.kv_size(), hidden),
        ("o_proj", hidden, text.query_size()),
    ] {
        specs.matrix(format!("{at}.self_attn.{name}"), Role::Linear, 1, rows, cols);
    }
    specs.vector(format!("{at}.post_attention_layernorm"), Role::Norm, &[hidden]);
    let at = format!("{at}.feed_forward");
    match text.layers[i].feed_forward {
        FeedForwardKind::Dense => {
            specs.swiglu(&at, Role::Linear, 1, hidden, text.intermediate_size_mlp);
        }
        FeedForwardKind::Experts => {
            let (experts, width) = (text.num_experts, text.intermediate_size);
            specs.matrix(format!("{at}.router"), Role::Router, 1, experts, hidden);
            specs.swiglu(&format!("{at}.experts"), Role::Experts, experts, hidden, width);
            specs.swiglu(&format!("{at}.shared_expert"), Role::Linear, 1, hidden, width);
        }
    }
}

fn vision_model(specs: &mut Specs, vision: &VisionConfig, text_hidden: usize) {
    let hidden = vision.hidden_size;
    specs.vision_matrix("vision_model.patch_embedding.linear", hidden, vision.patch_values());
    specs.vector("vision_model.class_embedding", Role::VisionVector, &[hidden]);
    let positions = [vision.num_patches() + 1, hidden];
    specs.vector("vision_model.positional_embedding_vlm", Role::VisionVector, &positions);
    specs.layer_norm("vision_model.layernorm_pre", hidden);
    for j in 0..vision.num_layers {
        let at = format!("vision_model.model.layers.{j}");
        specs.layer_norm(&format!("{at}.input_layernorm"), hidden);
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            specs.biased(&format!("{at}.self_attn.{name}"), hidden, hidden);
        }
        specs.layer_norm(&format!("{at}.post_attention_layernorm"), hidden);
        specs.biased(&format!("{at}.mlp.fc1"), vision.intermediate_size, hidden);
        specs.biased(&format!("{at}.mlp.fc2"), hidden, vision.intermediate_size);
    }
    specs.layer_norm("vision_model.layernorm_post", hidden);
    let adapter = "vision_model.vision_adapter.mlp";
    let between = vision.projector_input_dim;
    specs.vision_matrix(format!("{adapter}.fc1"), between, vision.shuffled_size());
    specs.vision_matrix(format!("{adapter}.fc2"), vision.output_dim, between);
    specs.vision_matrix("multi_modal_projector.linear_1", text_hidden, vision.output_dim);
}

/// The list under construction.
struct Specs(Vec<TensorSpec>);

impl Specs {
    fn matrix(
        &mut self,
        name: impl Into<String>,
        role: Role,
        stack: usize,
        rows: usize,
        cols: usize,
    ) {
        let shape = TensorShape::Matrix { stack, rows, cols };
        self.0.push(TensorSpec { name: name.into(), role, shape });
    }

    fn vector(&mut self, name: impl Into<String>, role: Role, dims: &[usize]) {
        let shape = TensorShape::Vector { dims: dims.to_vec() };
        self.0.push(TensorSpec { name: name.into(), role, shape });
    }

    fn swiglu(&mut self, at: &str, role: Role, stack: usize, hidden: usize, width: usize) {
        self.matrix(format!("{at}.gate_proj"), role, stack, width, hidden);
        self.matrix(format!("{at}.up_proj"), role, stack, width, hidden);
        self.matrix(format!("{at}.down_proj"), role, stack, hidden, width);
    }

    fn vision_matrix(&mut self, name: impl Into<String>, rows: usize, cols: usize) {
        self.matrix(name, Role::VisionLinear, 1, rows, cols);
    }

    fn layer_norm(&mut self, name: &str, width: usize) {
        self.vector(format!("{name}.weight"), Role::VisionVector, &[width]);
        self.vector(format!("{name}.bias"), Role::VisionVector, &[width]);
    }

    fn biased(&mut self, name: &str, rows: usize, cols: usize) {
        self.vision_matrix(name, rows, cols);
        self.vector(format!("{name}.bias"), Role::VisionVector, &[rows]);
    }
}
