//! A published checkpoint -> a packed directory.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use llama4rs_tensor::WeightFormat;
use rayon::ThreadPool;

use crate::manifest::{self, CopyEntry, Manifest, CREATED_BY, FORMAT_VERSION};
use crate::open::DEFAULT_WEIGHTS;
use crate::packed_files::{check_disk_space, file_entry, write_files, HashedFile};
use crate::packed_layout::{plan, PlannedTensor};
use crate::packing::{pack_matrices, read_values, source_bytes, source_matrices};
use crate::progress::report;
use crate::published::{thread_pool, Published};
use crate::staging::{parent, Staging};
use crate::{Error, FormatRule, Progress, Result, TensorReport};

/// Files that are taken along unchanged when they are there.
const COPIED_FILES: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
];

/// How to pack.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Format of the decoder's linears; int4 in groups of 64 unless said.
    pub weights: WeightFormat,
    /// Exceptions, first match wins.
    pub rules: Vec<FormatRule>,
    /// Replace an earlier packed directory.
    pub force: bool,
    /// Worker threads; `None`: all cores.
    pub threads: Option<usize>,
    /// Size at which a weight file is closed and the next one begun; 4 GiB unless said.
    pub file_bytes: u64,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            weights: DEFAULT_WEIGHTS,
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
    /// Every tensor with its format, size and error.
    pub tensors: Vec<TensorReport>,
    /// Bytes of the weight files.
    pub bytes: u64,
    /// Remarks for the user: tensors left aside, settings known to be wrong.
    pub warnings: Vec<String>,
}

/// Packs the published checkpoint `source` into the new directory `destination`.
///
/// Memory stays below 2 GiB whatever the checkpoint's size. The destination
/// appears under its name only when it is complete; an interrupted or failed
/// run leaves nothing, and an earlier destination stays until the new one is done.
pub fn pack(
    source: impl AsRef<Path>,
    destination: impl AsRef<Path>,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<PackReport> {
    let (source, destination) = (source.as_ref(), destination.as_ref());
    if manifest::is_packed(source) {
        let weights = Manifest::read(source)?.weights(source)?;
        return Err(Error::AlreadyPacked { path: source.to_owned(), weights });
    }
    let published = Published::open(source)?;
    let formats = published.formats(options.weights, &options.rules)?;
    let specs: Vec<_> = published.tensors.iter().map(|tensor| tensor.spec.clone()).collect();
    let files = plan(&specs, &formats, options.file_bytes);

    let staging = Staging::create(destination, options.force)?;
    check_disk_space(parent(destination), &files, copied_bytes(source))?;
    let mut run = Run {
        published: &published,
        formats: &formats,
        pool: thread_pool(options.threads)?,
        progress,
        total_bytes: published.total_source_bytes(),
        done_bytes: 0,
    };
    let fill = |planned: &PlannedTensor, file: &mut HashedFile| run.write_tensor(planned, file);
    let entries = write_files(staging.directory(), &files, &specs, &formats, fill)?;
    Manifest {
        format_version: FORMAT_VERSION,
        created_by: CREATED_BY.into(),
        weights: options.weights.to_string(),
        source_fingerprint: published.shards.fingerprint().to_string(),
        warnings: published.warnings.clone(),
        files: files.iter().map(file_entry).collect(),
        copies: copy_files(source, staging.directory())?,
        tensors: entries.clone(),
    }
    .write(staging.directory())?;
    staging.commit(options.force)?;

    let mut tensors = published.report(&formats);
    for (tensor, entry) in tensors.iter_mut().zip(&entries) {
        tensor.relative_error = Some(entry.relative_error);
    }
    let bytes = files.iter().map(|file| file.bytes).sum();
    Ok(PackReport { tensors, bytes, warnings: published.warnings })
}

/// The state of one packing run.
struct Run<'a> {
    published: &'a Published,
    formats: &'a [Option<WeightFormat>],
    pool: ThreadPool,
    progress: &'a dyn Progress,
    total_bytes: u64,
    done_bytes: u64,
}

impl Run<'_> {
    /// Writes one tensor; its relative error.
    fn write_tensor(&mut self, planned: &PlannedTensor, output: &mut HashedFile) -> Result<f64> {
        let located = &self.published.tensors[planned.number];
        let name = &located.spec.name;
        if let Some(format) = self.formats[planned.number] {
            let (done_bytes, total_bytes) = (&mut self.done_bytes, self.total_bytes);
            let sink = |piece: &[u8], source_bytes| {
                output.write(piece)?;
                *done_bytes += source_bytes;
                report(self.progress, name, *done_bytes, total_bytes)
            };
            let matrices = source_matrices(&self.published.shards, located)?;
            return Ok(pack_matrices(&self.pool, &matrices, format, sink)?.relative());
        }
        if let Some(tensor) = located.layout.tensors().first() {
            let values = read_values(&self.published.shards, tensor)?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            output.write(&bytes)?;
            self.done_bytes += source_bytes(&self.published.shards, located);
            report(self.progress, name, self.done_bytes, self.total_bytes)?;
        }
        Ok(0.0)
    }
}

fn copied_files(source: &Path) -> impl Iterator<Item = &'static str> + '_ {
    COPIED_FILES.into_iter().filter(|name| source.join(name).is_file())
}

fn copied_bytes(source: &Path) -> u64 {
    let size = |name| source.join(name).metadata().map_or(0, |metadata| metadata.len());
    copied_files(source).map(size).sum()
}

fn copy_files(source: &Path, directory: &Path) -> Result<Vec<CopyEntry>> {
    let mut copies = Vec::new();
    for name in copied_files(source) {
        let from = source.join(name);
        let mut reader = File::open(&from).map_err(|error| Error::io(&from, error))?;
        let mut output = HashedFile::create(directory.join(name))?;
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = 0;
        loop {
            let count = reader.read(&mut buffer).map_err(|error| Error::io(&from, error))?;
            if count == 0 {
                break;
            }
            output.write(&buffer[..count])?;
            bytes += count as u64;
        }
        copies.push(CopyEntry { name: name.into(), bytes, blake3: output.checksum() });
        output.finish()?;
    }
    Ok(copies)
}
