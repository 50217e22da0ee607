//! Floor 1 of llama4rs: checkpoints.
//!
//! A checkpoint is *published* (a Hugging Face directory: `config.json` and
//! safetensors of bf16, f16, f32 or fp8 with scales per output) or *packed* (a
//! directory that [`pack`] wrote, in the kernels' own order). [`open`] takes either
//! and answers the model's two questions, [`WeightSource::matrix`] and
//! [`WeightSource::vector`], by the canonical names of [`tensor_specs`].
//!
//! ```text
//! config.json ── Config ── tensor_specs: names, shapes, roles
//!                               │
//! *.safetensors ─ shards ─ published_names: where each one lies, all accounted for
//!                               │
//!                 policy: a format for each matrix
//!                               │
//!        source_matrix: blocks of rows ─ quantize: panels ─┬─ in memory (open)
//!                                                          └─ staging, packed_layout,
//!                                                             manifest (pack)
//! llama4rs.json, weights-*.safetensors ─ packed_model: mapped (open), verify
//! ```
//!
//! Nothing read from disk is trusted: headers, manifests and configurations are
//! checked before a size in them is used, and every refusal is an [`Error`] that
//! names the file, the tensor and what to do. The directory's layout is drawn
//! byte by byte in `docs/format.md`.
//!
//! ```no_run
//! use llama4rs_checkpoint::{open, pack, OpenOptions, PackOptions, Silent};
//!
//! # fn main() -> llama4rs_checkpoint::Result<()> {
//! pack("Llama-4-Scout-17B-16E-Instruct", "scout-int4", &PackOptions::default(), &Silent)?;
//! let model = open("scout-int4", &OpenOptions::default(), &Silent)?;
//! let experts = model.matrix("layers.0.feed_forward.experts.gate_proj")?;
//! assert_eq!((experts.stack(), experts.rows(), experts.cols()), (16, 8192, 5120));
//! # Ok(())
//! # }
//! ```

mod config;
mod digest;
mod error;
mod files;
mod info;
mod manifest;
mod open;
mod pack;
mod packed_files;
mod packed_layout;
mod packed_model;
mod packing;
mod policy;
mod progress;
mod published;
mod published_names;
mod quantize;
mod safetensors_file;
mod scan;
mod shards;
mod source_matrix;
mod staging;
mod synth;
mod tensor_specs;
mod verify;
mod weight_source;

pub use config::{
    AttentionKind, Config, FeedForwardKind, LayerConfig, RopeScaling, TemperatureTuning,
    TextConfig, VisionConfig,
};
pub use digest::weights_digest;
pub use error::{Error, ErrorKind, Result};
pub use info::{info, ModelInfo};
pub use open::{open, OpenOptions};
pub use pack::{pack, PackOptions, PackReport};
pub use policy::{planned_tensors, FormatRule};
pub use progress::{Progress, Silent};
pub use synth::{synth, SynthOptions, SynthShape, SyntheticSource};
pub use tensor_specs::{tensor_specs, Role, TensorShape, TensorSpec};
pub use verify::{verify, VerifyReport};
pub use weight_source::{TensorReport, WeightSource};
