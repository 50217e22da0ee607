//! Info.
use crate::{Config, Result, TensorReport};
use llama4rs_tensor::WeightFormat;
use std::path::Path;

/// What the headers of a checkpoint tell.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The configuration.
    pub config: Config,
    /// Format of the decoder's linears when packed; `None` for a published checkpoint.
    pub weights: Option<WeightFormat>,
    /// Every tensor; for a published checkpoint as int4 would store it.
    pub tensors: Vec<TensorReport>,
    /// Numbers in all tensors, padding not counted.
    pub num_parameters: u64,
    /// Bytes of the weight files.
    pub bytes: u64,
    /// Remarks.
    pub warnings: Vec<String>,
}

/// Info from headers only.
pub fn info(path: impl AsRef<Path>) -> Result<ModelInfo> {
    let _ = path.as_ref();
    todo!()
}
