//! Random models in packed form, for measurements: real shapes, no published weights.
//!
//! Weights are random codes with the scales that keep activations at unit size,
//! as a trained model's norms do: standard deviation `1 / sqrt(inputs)`, 1 for
//! the embedding table. Router logits are therefore about standard normal and
//! differ from token to token, so tokens spread over the experts. A tensor's
//! bytes depend on the seed, its name and the shape alone, not on threads.

mod random;
mod shape;
mod source;

use std::ops::Range;
use std::path::Path;

use llama4rs_tensor::WeightFormat;
use rayon::prelude::*;
use rayon::ThreadPool;

use crate::manifest::{CopyEntry, Manifest, CREATED_BY, FORMAT_VERSION};
use crate::open::DEFAULT_WEIGHTS;
use crate::packed_files::{check_disk_space, file_entry, write_files, HashedFile};
use crate::packed_layout::{plan, PlannedTensor};
use crate::policy::choose_formats;
use crate::progress::report;
use crate::published::{stored_bytes, thread_pool};
use crate::staging::{parent, Staging};
use crate::tensor_specs::{tensor_specs, Role, TensorShape, TensorSpec};
use crate::{Config, FormatRule, PackReport, Progress, Result, TensorReport};
use random::RandomTensor;

pub use shape::SynthShape;
pub use source::SyntheticSource;

/// Bytes that are made at a time, while as many are written.
const BLOCK_BYTES: usize = 32 << 20;

/// How to make a synthetic model.
#[derive(Clone, Debug)]
pub struct SynthOptions {
    /// Format of the decoder's linears; int4 in groups of 64 unless said.
    pub weights: WeightFormat,
    /// Exceptions, first match wins.
    pub rules: Vec<FormatRule>,
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// Replace an earlier packed directory.
    pub force: bool,
    /// Worker threads; `None`: all cores.
    pub threads: Option<usize>,
    /// Size at which a weight file is closed and the next one begun; 4 GiB unless said.
    pub file_bytes: u64,
}

impl Default for SynthOptions {
    fn default() -> Self {
        Self {
            weights: DEFAULT_WEIGHTS,
            rules: Vec::new(),
            seed: 0,
            force: false,
            threads: None,
            file_bytes: 4 << 30,
        }
    }
}

/// Writes a random model of the given shape into the new directory `destination`.
///
/// It has a configuration in the published form and no tokenizer. Memory stays
/// below 100 MB whatever the shape. As with [`pack`](crate::pack), the directory
/// appears only when it is complete, and an interrupted run leaves nothing.
pub fn synth(
    destination: impl AsRef<Path>,
    shape: SynthShape,
    options: &SynthOptions,
    progress: &dyn Progress,
) -> Result<PackReport> {
    let destination = destination.as_ref();
    let json = format!("{:#}\n", shape.config_json());
    let config = Config::from_json(&json, &destination.join("config.json"))?;
    let specs = tensor_specs(&config);
    let formats = choose_formats(&specs, options.weights, &options.rules)?;
    let files = plan(&specs, &formats, options.file_bytes);

    let staging = Staging::create(destination, options.force)?;
    check_disk_space(parent(destination), &files, json.len() as u64)?;
    let mut run = Run {
        specs: &specs,
        formats: &formats,
        seed: options.seed,
        pool: thread_pool(options.threads)?,
        progress,
        total_bytes: files.iter().flat_map(|file| &file.tensors).map(|tensor| tensor.bytes).sum(),
        done_bytes: 0,
    };
    let fill = |planned: &PlannedTensor, file: &mut HashedFile| run.write_tensor(planned, file);
    let entries = write_files(staging.directory(), &files, &specs, &formats, fill)?;

    let mut file = HashedFile::create(staging.directory().join("config.json"))?;
    file.write(json.as_bytes())?;
    let checksum = file.checksum();
    file.finish()?;
    let origin = format!("synthetic {shape}, seed {}", options.seed);
    let warnings = vec![format!("random weights for measurements ({origin}): its texts are noise")];
    Manifest {
        format_version: FORMAT_VERSION,
        created_by: CREATED_BY.into(),
        weights: options.weights.to_string(),
        source_fingerprint: blake3::hash(origin.as_bytes()).to_string(),
        warnings: warnings.clone(),
        files: files.iter().map(file_entry).collect(),
        copies: vec![CopyEntry {
            name: "config.json".into(),
            bytes: json.len() as u64,
            blake3: checksum,
        }],
        tensors: entries,
    }
    .write(staging.directory())?;
    staging.commit(options.force)?;

    let tensor = |(spec, format): (&TensorSpec, &Option<WeightFormat>)| TensorReport {
        name: spec.name.clone(),
        format: *format,
        shape: spec.shape.dims(),
        bytes: stored_bytes(&spec.shape, *format),
        relative_error: Some(0.0),
    };
    Ok(PackReport {
        tensors: specs.iter().zip(&formats).map(tensor).collect(),
        bytes: files.iter().map(|file| file.bytes).sum(),
        warnings,
    })
}

/// The state of one run.
struct Run<'a> {
    specs: &'a [TensorSpec],
    formats: &'a [Option<WeightFormat>],
    seed: u64,
    pool: ThreadPool,
    progress: &'a dyn Progress,
    total_bytes: u64,
    done_bytes: u64,
}

impl Run<'_> {
    /// Writes one tensor; its relative error, which is 0.
    fn write_tensor(&mut self, planned: &PlannedTensor, file: &mut HashedFile) -> Result<f64> {
        let spec = &self.specs[planned.number];
        let random = RandomTensor::new(self.seed, &spec.name, deviation(spec));
        match (&spec.shape, self.formats[planned.number]) {
            (&TensorShape::Matrix { cols, .. }, Some(format)) => {
                let panels = planned.bytes as usize / format.panel_bytes(cols);
                self.write_panels(
                    &spec.name,
                    panels,
                    format.panel_bytes(cols),
                    file,
                    |p, panel| random.panel(format, cols, p, panel),
                )?;
            }
            _ => {
                let norm = random.around_one(spec.shape.num_values() as usize);
                let bytes: Vec<u8> = norm.iter().flat_map(|value| value.to_le_bytes()).collect();
                file.write(&bytes)?;
                self.advance(&spec.name, bytes.len())?;
            }
        }
        Ok(0.0)
    }

    /// The pool makes block `n` while this thread writes block `n - 1`.
    fn write_panels(
        &mut self,
        name: &str,
        panels: usize,
        panel_bytes: usize,
        file: &mut HashedFile,
        make: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Result<()> {
        let step = (BLOCK_BYTES / panel_bytes).max(1);
        let blocks: Vec<Range<usize>> =
            (0..panels).step_by(step).map(|first| first..panels.min(first + step)).collect();
        let (mut made, mut written) = (Vec::new(), Vec::new());
        for n in 0..=blocks.len() {
            let mut outcome = Ok(());
            let block = blocks.get(n).cloned().unwrap_or_default();
            self.pool.in_place_scope(|scope| {
                scope.spawn(|_| {
                    let first = block.start;
                    made.resize(block.len() * panel_bytes, 0);
                    let chunks = made.par_chunks_exact_mut(panel_bytes).enumerate();
                    chunks.for_each(|(p, panel)| make(first + p, panel));
                });
                outcome = file.write(&written);
            });
            outcome?;
            self.advance(name, written.len())?;
            std::mem::swap(&mut made, &mut written);
        }
        Ok(())
    }

    fn advance(&mut self, name: &str, bytes: usize) -> Result<()> {
        self.done_bytes += bytes as u64;
        report(self.progress, name, self.done_bytes, self.total_bytes)
    }
}

/// The standard deviation of a tensor's weights.
fn deviation(spec: &TensorSpec) -> f32 {
    match (spec.role, &spec.shape) {
        (Role::Embedding, _) => 1.0,
        (_, &TensorShape::Matrix { cols, .. }) => 1.0 / (cols as f32).sqrt(),
        (_, TensorShape::Vector { .. }) => 0.1,
    }
}
