//! Floor 1 of llama4rs: checkpoints.

mod config;
mod error;
mod files;
mod info;
mod manifest;
mod open;
mod pack;
mod packed_layout;
mod packed_model;
mod packing;
mod policy;
mod progress;
mod published;
mod published_names;
mod quantize;
mod safetensors_file;
mod shards;
mod source_matrix;
mod staging;
mod tensor_specs;
mod verify;
mod weight_source;

pub use config::{
    AttentionKind, Config, FeedForwardKind, LayerConfig, RopeScaling, TemperatureTuning,
    TextConfig, VisionConfig,
};
pub use error::{Error, ErrorKind, Result};
pub use info::{info, ModelInfo};
pub use open::{open, OpenOptions};
pub use pack::{pack, PackOptions, PackReport};
pub use policy::FormatRule;
pub use progress::{Progress, Silent};
pub use tensor_specs::{tensor_specs, Role, TensorShape, TensorSpec};
pub use verify::{verify, VerifyReport};
pub use weight_source::{TensorReport, WeightSource};
