//! What a checkpoint holds, from its headers alone.

use std::path::Path;

use llama4rs_tensor::WeightFormat;

use crate::manifest;
use crate::open::DEFAULT_WEIGHTS;
use crate::packed_model::PackedModel;
use crate::published::Published;
use crate::tensor_specs::tensor_specs;
use crate::{Config, Result, TensorReport, WeightSource};

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
    /// Remarks for the user: tensors left aside, settings known to be wrong.
    pub warnings: Vec<String>,
}

/// Reads the headers of a packed or published directory, no weights.
pub fn info(path: impl AsRef<Path>) -> Result<ModelInfo> {
    let path = path.as_ref();
    let mut info = if manifest::is_packed(path) {
        let model = PackedModel::open(path)?;
        ModelInfo {
            config: model.config().clone(),
            weights: Some(model.weights()),
            tensors: model.report(),
            num_parameters: 0,
            bytes: model.file_bytes(),
            warnings: model.warnings().to_vec(),
        }
    } else {
        let published = Published::open(path)?;
        let formats = published.formats(DEFAULT_WEIGHTS, &[])?;
        ModelInfo {
            weights: None,
            tensors: published.report(&formats),
            num_parameters: 0,
            bytes: published.shards.data_bytes(),
            warnings: published.warnings,
            config: published.config,
        }
    };
    let specs = tensor_specs(&info.config);
    info.num_parameters = specs.iter().map(|spec| spec.shape.num_values()).sum();
    Ok(info)
}
