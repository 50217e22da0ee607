//! A published checkpoint as a weight source: each tensor is packed in memory when asked.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use llama4rs_tensor::{AlignedBytes, PackedMatrix, WeightFormat};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::packing::{pack_matrices, read_values, source_bytes, source_matrices};
use crate::policy::choose_formats;
use crate::progress::report;
use crate::published_names::{has_vision, locate, Located};
use crate::shards::Shards;
use crate::tensor_specs::{tensor_specs, TensorShape};
use crate::{Config, Error, FormatRule, Progress, Result, RopeScaling, TensorReport, WeightSource};

/// The tensors of a published checkpoint: found, checked, not read.
pub(crate) struct Published {
    pub config: Config,
    pub shards: Shards,
    pub tensors: Vec<Located>,
    pub warnings: Vec<String>,
}

impl Published {
    /// Reads the configuration and all headers of `directory`.
    pub fn open(directory: &Path) -> Result<Self> {
        let mut config = Config::from_directory(directory)?;
        let shards = Shards::open(directory)?;
        let mut warnings = suspicious_settings(&config);
        if config.vision.is_some() && !has_vision(&shards) {
            config.vision = None;
            warnings.push(
                "config.json has a vision_config, but there are no vision tensors: text only"
                    .into(),
            );
        }
        let with_vision = config.vision.is_some();
        let (tensors, left_over) = locate(tensor_specs(&config), &shards, with_vision)?;
        warnings.extend(left_over);
        Ok(Self { config, shards, tensors, warnings })
    }

    /// The format of each tensor under `weights` and `rules`.
    pub fn formats(
        &self,
        weights: WeightFormat,
        rules: &[FormatRule],
    ) -> Result<Vec<Option<WeightFormat>>> {
        let specs: Vec<_> = self.tensors.iter().map(|tensor| tensor.spec.clone()).collect();
        choose_formats(&specs, weights, rules)
    }

    /// Bytes that packing reads.
    pub fn total_source_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| source_bytes(&self.shards, tensor)).sum()
    }

    /// What the headers say, stored as `formats`; errors are not known yet.
    pub fn report(&self, formats: &[Option<WeightFormat>]) -> Vec<TensorReport> {
        let one = |(tensor, format): (&Located, &Option<WeightFormat>)| TensorReport {
            name: tensor.spec.name.clone(),
            format: *format,
            shape: tensor.spec.shape.dims(),
            bytes: stored_bytes(&tensor.spec.shape, *format),
            relative_error: None,
        };
        self.tensors.iter().zip(formats).map(one).collect()
    }
}

/// Bytes of a tensor as it is stored: packed, or plain single precision.
pub(crate) fn stored_bytes(shape: &TensorShape, format: Option<WeightFormat>) -> u64 {
    match (shape, format) {
        (TensorShape::Matrix { stack, rows, cols }, Some(format)) => {
            format.matrix_bytes(*rows, *cols).map_or(0, |bytes| (bytes * stack) as u64)
        }
        _ => shape.num_values() * 4,
    }
}

/// Mistakes that are known to circulate.
fn suspicious_settings(config: &Config) -> Vec<String> {
    match &config.text.rope_scaling {
        Some(RopeScaling::Llama3 { factor, .. })
            if *factor == 8.0 && config.text.num_experts == 16 =>
        {
            vec!["rope_scaling.factor is 8: the first Scout upload had this by mistake, \
                  16 with high_freq_factor 1 is right"
                .into()]
        }
        _ => Vec::new(),
    }
}

/// See [`WeightSource`].
pub(crate) struct PublishedSource<'p> {
    published: Published,
    weights: WeightFormat,
    by_name: HashMap<String, usize>,
    report: Mutex<Vec<TensorReport>>,
    pool: ThreadPool,
    progress: &'p dyn Progress,
    total_bytes: u64,
    done_bytes: AtomicU64,
}

impl<'p> PublishedSource<'p> {
    pub fn open(
        directory: &Path,
        weights: WeightFormat,
        rules: &[FormatRule],
        threads: Option<usize>,
        progress: &'p dyn Progress,
    ) -> Result<Self> {
        let published = Published::open(directory)?;
        let report = published.report(&published.formats(weights, rules)?);
        check_memory(report.iter().map(|tensor| tensor.bytes).sum())?;
        let names = report.iter().map(|tensor| tensor.name.clone());
        Ok(Self {
            by_name: names.zip(0..).collect(),
            total_bytes: report.iter().map(|tensor| tensor.bytes).sum(),
            done_bytes: AtomicU64::new(0),
            report: Mutex::new(report),
            pool: thread_pool(threads)?,
            published,
            weights,
            progress,
        })
    }

    fn pack(&self, number: usize, format: WeightFormat) -> Result<PackedMatrix> {
        let located = &self.published.tensors[number];
        let TensorShape::Matrix { stack, rows, cols } = located.spec.shape else {
            return Err(unknown("matrix", &located.spec.name));
        };
        let name = &located.spec.name;
        let bytes = stored_bytes(&located.spec.shape, Some(format)) as usize;
        let mut packed = AlignedBytes::zeroed(bytes)?;
        let mut filled = 0;
        let sink = |piece: &[u8], _| {
            packed[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
            self.report_bytes(name, piece.len() as u64)
        };
        let matrices = source_matrices(&self.published.shards, located)?;
        let loss = pack_matrices(&self.pool, &matrices, format, sink)?;
        self.note(number, loss.relative());
        Ok(PackedMatrix::new(format, stack, rows, cols, packed.into())?)
    }

    /// Reading a tensor twice does not pass the total.
    fn report_bytes(&self, name: &str, bytes: u64) -> Result<()> {
        let done = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        report(self.progress, name, done.min(self.total_bytes), self.total_bytes)
    }

    fn note(&self, number: usize, relative_error: f64) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report[number].relative_error = Some(relative_error);
    }

    fn format(&self, number: usize) -> Option<WeightFormat> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)[number].format
    }
}

impl WeightSource for PublishedSource<'_> {
    fn config(&self) -> &Config {
        &self.published.config
    }

    fn matrix(&self, name: &str) -> Result<PackedMatrix> {
        let name = canonical(name, &self.published.config);
        let found = self.by_name.get(name);
        match found.and_then(|&number| Some((number, self.format(number)?))) {
            Some((number, format)) => self.pack(number, format),
            None => Err(unknown("matrix", name)),
        }
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let number = *self.by_name.get(name).ok_or_else(|| unknown("vector", name))?;
        let located = &self.published.tensors[number];
        match (&located.spec.shape, located.layout.tensors().first()) {
            (TensorShape::Vector { .. }, Some(tensor)) => {
                let values = read_values(&self.published.shards, tensor)?;
                self.note(number, 0.0);
                self.report_bytes(name, 4 * values.len() as u64)?;
                Ok(values)
            }
            _ => Err(unknown("vector", name)),
        }
    }

    fn report(&self) -> Vec<TensorReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn weights(&self) -> WeightFormat {
        self.weights
    }

    fn warnings(&self) -> &[String] {
        &self.published.warnings
    }
}

/// The stored name for `name`: a tied output matrix is the embedding table.
pub(crate) fn canonical<'a>(name: &'a str, config: &Config) -> &'a str {
    match name {
        "lm_head" if config.text.tie_word_embeddings => "embed_tokens",
        other => other,
    }
}

pub(crate) fn unknown(what: &'static str, name: &str) -> Error {
    Error::UnknownName { what, name: name.to_owned() }
}

pub(crate) fn thread_pool(threads: Option<usize>) -> Result<ThreadPool> {
    ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .thread_name(|n| format!("llama4rs-pack-{n}"))
        .build()
        .map_err(|error| Error::Threads { problem: error.to_string() })
}

/// Refuses before the work what the system cannot hold; where it does not say, tries.
fn check_memory(needed: u64) -> Result<()> {
    match available_memory() {
        Some(available) if available < needed => Err(Error::OutOfMemory {
            what: "the packed weights of a published checkpoint".into(),
            needed,
            available,
            hint: "pack it to disk first, which takes less than 2 GiB, and open the result: \
                   its weights stay in the file"
                .into(),
        }),
        _ => Ok(()),
    }
}

fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_beyond_the_memory_are_an_error_before_the_work() {
        if available_memory().is_some() {
            let error = check_memory(1 << 60).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::OutOfMemory);
            assert!(error.to_string().contains("pack it to disk first"), "{error}");
        }
        assert!(check_memory(1).is_ok());
    }
}
