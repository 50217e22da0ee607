//! Opening a checkpoint, packed or published.

use std::path::Path;

use llama4rs_tensor::format::DEFAULT_GROUP;
use llama4rs_tensor::WeightFormat;

use crate::manifest;
use crate::packed_model::PackedModel;
use crate::published::PublishedSource;
use crate::{Error, FormatRule, Progress, Result, WeightSource};

/// The format when nobody says one.
pub(crate) const DEFAULT_WEIGHTS: WeightFormat = WeightFormat::Int4 { group: DEFAULT_GROUP };

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

/// Opens a directory.
///
/// A packed directory is mapped: its headers are read, its weights only when
/// they are used. It has the formats that it was packed with, so options that
/// ask for others are an error. A published checkpoint is checked now and packed
/// in memory, tensor by tensor, as weights are asked for; `progress` hears of that.
pub fn open<'p>(
    path: impl AsRef<Path>,
    options: &OpenOptions,
    progress: &'p dyn Progress,
) -> Result<Box<dyn WeightSource + Send + Sync + 'p>> {
    let path = path.as_ref();
    if manifest::is_packed(path) {
        return Ok(Box::new(open_packed(path, options)?));
    }
    let weights = options.weights.unwrap_or(DEFAULT_WEIGHTS);
    let source = PublishedSource::open(path, weights, &options.rules, options.threads, progress)?;
    Ok(Box::new(source))
}

fn open_packed(path: &Path, options: &OpenOptions) -> Result<PackedModel> {
    let model = PackedModel::open(path)?;
    if let Some(rule) = options.rules.first() {
        return Err(Error::Rule {
            pattern: rule.pattern.clone(),
            problem: format!(
                "{} is packed, its formats are fixed; pack the published checkpoint with this rule",
                path.display()
            ),
        });
    }
    match options.weights {
        Some(wanted) if wanted != model.weights() => {
            Err(Error::OtherWeights { path: path.to_owned(), found: model.weights(), wanted })
        }
        _ => Ok(model),
    }
}
