//! Floor 1 of llama4rs: checkpoints.

mod config;
mod error;
mod files;
mod policy;
mod progress;
mod weight_source;
mod open;
mod pack;
mod verify;
mod info;

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
pub use verify::{verify, VerifyReport};
pub use weight_source::{TensorReport, WeightSource};
