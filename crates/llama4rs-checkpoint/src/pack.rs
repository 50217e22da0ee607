//! A published checkpoint -> a packed directory.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use llama4rs_tensor::WeightFormat;
use rayon::ThreadPool;

use crate::manifest::{self, CopyEntry, FileEntry, Manifest, PackedEntry, FORMAT_VERSION};
use crate::open::DEFAULT_WEIGHTS;
use crate::packed_layout::{plan, FilePlan, PlannedTensor};
use crate::packing::{pack_matrices, read_values, source_bytes, source_matrices};
use crate::progress::report;
use crate::published::{thread_pool, Published};
use crate::published_names::Located;
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

/// Free space to ask for beyond the files: the manifest and directory blocks.
const DISK_SLACK: u64 = 16 << 20;

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
    check_disk_space(source, parent(destination), &files)?;
    let mut run = Run {
        published: &published,
        formats: &formats,
        pool: thread_pool(options.threads)?,
        progress,
        total_bytes: published.total_source_bytes(),
        done_bytes: 0,
    };
    let mut entries = Vec::with_capacity(specs.len());
    for (number, file) in files.iter().enumerate() {
        run.write_file(file, number, staging.directory(), &mut entries)?;
    }
    Manifest {
        format_version: FORMAT_VERSION,
        created_by: concat!("llama4rs ", env!("CARGO_PKG_VERSION")).into(),
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
    fn write_file(
        &mut self,
        plan: &FilePlan,
        number: usize,
        directory: &Path,
        entries: &mut Vec<PackedEntry>,
    ) -> Result<()> {
        let path = directory.join(&plan.name);
        let mut file = File::create(&path).map_err(|error| Error::io(&path, error))?;
        file.write_all(&plan.header).map_err(|error| Error::io(&path, error))?;
        for planned in &plan.tensors {
            let located = &self.published.tensors[planned.number];
            let mut output = Output { file: &mut file, path: &path, hasher: Default::default() };
            let relative_error = self.write_tensor(located, planned, &mut output)?;
            entries.push(PackedEntry {
                name: located.spec.name.clone(),
                format: self.formats[planned.number].map(|format| format.to_string()),
                shape: located.spec.shape.dims(),
                file: number,
                offset: planned.offset,
                bytes: planned.bytes,
                relative_error,
                blake3: output.hasher.finalize().to_string(),
            });
        }
        file.sync_all().map_err(|error| Error::io(&path, error))
    }

    fn write_tensor(
        &mut self,
        located: &Located,
        planned: &PlannedTensor,
        output: &mut Output<'_>,
    ) -> Result<f64> {
        let name = &located.spec.name;
        let mut relative_error = 0.0;
        if let Some(format) = self.formats[planned.number] {
            let (done_bytes, total_bytes) = (&mut self.done_bytes, self.total_bytes);
            let sink = |piece: &[u8], source_bytes| {
                output.write(piece)?;
                *done_bytes += source_bytes;
                report(self.progress, name, *done_bytes, total_bytes)
            };
            let matrices = source_matrices(&self.published.shards, located)?;
            relative_error = pack_matrices(&self.pool, &matrices, format, sink)?.relative();
        } else if let Some(tensor) = located.layout.tensors().first() {
            let values = read_values(&self.published.shards, tensor)?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            output.write(&bytes)?;
            self.done_bytes += source_bytes(&self.published.shards, located);
            report(self.progress, name, self.done_bytes, self.total_bytes)?;
        }
        output.write(&vec![0; (planned.padded_bytes() - planned.bytes) as usize])?;
        Ok(relative_error)
    }
}

/// A file that is hashed as it is written.
struct Output<'a> {
    file: &'a mut File,
    path: &'a Path,
    hasher: blake3::Hasher,
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|error| Error::io(self.path, error))
    }
}

fn file_entry(plan: &FilePlan) -> FileEntry {
    FileEntry {
        name: plan.name.clone(),
        bytes: plan.bytes,
        header_bytes: plan.header.len() as u64,
        header_blake3: blake3::hash(&plan.header).to_string(),
    }
}

fn copy_files(source: &Path, directory: &Path) -> Result<Vec<CopyEntry>> {
    let mut copies = Vec::new();
    for name in COPIED_FILES.into_iter().filter(|name| source.join(name).is_file()) {
        let (from, to) = (source.join(name), directory.join(name));
        let mut reader = File::open(&from).map_err(|error| Error::io(&from, error))?;
        let mut file = File::create(&to).map_err(|error| Error::io(&to, error))?;
        let mut output = Output { file: &mut file, path: &to, hasher: Default::default() };
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
        let blake3 = output.hasher.finalize().to_string();
        copies.push(CopyEntry { name: name.into(), bytes, blake3 });
    }
    Ok(copies)
}

fn check_disk_space(source: &Path, parent: &Path, files: &[FilePlan]) -> Result<()> {
    let size = |name: &&str| source.join(name).metadata().map_or(0, |metadata| metadata.len());
    let copies: u64 = COPIED_FILES.iter().map(size).sum();
    let needed = files.iter().map(|file| file.bytes).sum::<u64>() + copies + DISK_SLACK;
    let stat = rustix::fs::statvfs(parent).map_err(|error| Error::io(parent, error.into()))?;
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    if available < needed {
        return Err(Error::DiskSpace { path: parent.to_owned(), needed, available });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_is_an_error_before_the_work() {
        let file = FilePlan { name: "w".into(), header: vec![], tensors: vec![], bytes: 1 << 60 };
        let error = check_disk_space(Path::new("."), Path::new("."), &[file]).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Pack);
        let text = error.to_string();
        assert!(text.contains("1152921504623624192 bytes needed"), "{text}");
        assert!(text.contains("available; free some"), "{text}");
    }
}
