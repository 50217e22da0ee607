//! Packing.
use crate::{FormatRule, Progress, Result, TensorReport};
use llama4rs_tensor::WeightFormat;
use std::path::Path;

/// How to pack.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Format of the decoder's linears.
    pub weights: WeightFormat,
    /// Exceptions, first match wins.
    pub rules: Vec<FormatRule>,
    /// Replace an earlier packed directory.
    pub force: bool,
    /// Worker threads; `None`: all cores.
    pub threads: Option<usize>,
    /// Size at which a weight file is closed and the next one begun.
    pub file_bytes: u64,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            weights: WeightFormat::Int4 { group: llama4rs_tensor::format::DEFAULT_GROUP },
            rules: Vec::new(),
            force: false,
            threads: None,
            file_bytes: 4 << 30,
        }
    }
}

/// What packing did.
#[derive(Clone, Debug)]
pub struct PackReport {
    /// Every tensor with its format and error.
    pub tensors: Vec<TensorReport>,
    /// Bytes of all files written.
    pub bytes: u64,
    /// Remarks.
    pub warnings: Vec<String>,
}

/// Packs.
pub fn pack(
    source: impl AsRef<Path>,
    destination: impl AsRef<Path>,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<PackReport> {
    let _ = (source.as_ref(), destination.as_ref(), options, progress);
    todo!()
}
