//! Opening a checkpoint, packed or published.
use std::path::Path;
use llama4rs_tensor::WeightFormat;
use crate::{FormatRule, Progress, Result, WeightSource};

/// How to open a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Format of the decoder's linears. `None`: int4 for a published checkpoint, and
    /// whatever is there for a packed one.
    pub weights: Option<WeightFormat>,
    /// Exceptions for published checkpoints, first match wins.
    pub rules: Vec<FormatRule>,
    /// Threads that pack a published checkpoint; `None`: all cores.
    pub threads: Option<usize>,
}

/// Opens a directory, packed or published.
pub fn open<'p>(
    path: impl AsRef<Path>,
    options: &OpenOptions,
    progress: &'p dyn Progress,
) -> Result<Box<dyn WeightSource + Send + Sync + 'p>> {
    let _ = (path.as_ref(), options, progress);
    todo!()
}
