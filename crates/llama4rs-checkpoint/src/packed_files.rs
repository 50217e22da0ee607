//! Writes the weight files of a plan, whoever supplies the bytes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use llama4rs_tensor::WeightFormat;

use crate::manifest::{FileEntry, PackedEntry};
use crate::packed_layout::{FilePlan, PlannedTensor};
use crate::tensor_specs::TensorSpec;
use crate::{Error, Result};

/// Free space to ask for beyond the files: the manifest and directory blocks.
const DISK_SLACK: u64 = 16 << 20;

/// Bytes written at once: the page cache then holds the file in large pages, which
/// are read up to half as fast again, where the file system knows them.
const WRITTEN_BYTES: usize = 16 << 20;

/// A file that is hashed as it is written.
pub(crate) struct HashedFile {
    file: BufWriter<File>,
    path: PathBuf,
    hasher: blake3::Hasher,
}

impl HashedFile {
    /// Makes a new file.
    pub fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(|error| Error::io(&path, error))?;
        let file = BufWriter::with_capacity(WRITTEN_BYTES, file);
        Ok(Self { file, path, hasher: blake3::Hasher::new() })
    }

    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|error| Error::io(&self.path, error))
    }

    /// The checksum of everything since the last call.
    pub fn checksum(&mut self) -> String {
        let checksum = self.hasher.finalize().to_string();
        self.hasher.reset();
        checksum
    }

    /// Writes what is left and waits until the disk has it.
    pub fn finish(mut self) -> Result<()> {
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        written.map_err(|error| Error::io(&self.path, error))
    }
}

/// Writes the planned files into `directory`, the tensors in order.
///
/// `fill(planned, file)` writes exactly `planned.bytes` bytes of a tensor and
/// returns the relative error of its weights.
pub(crate) fn write_files(
    directory: &Path,
    files: &[FilePlan],
    specs: &[TensorSpec],
    formats: &[Option<WeightFormat>],
    mut fill: impl FnMut(&PlannedTensor, &mut HashedFile) -> Result<f64>,
) -> Result<Vec<PackedEntry>> {
    let mut entries = Vec::with_capacity(specs.len());
    for (number, plan) in files.iter().enumerate() {
        let mut file = HashedFile::create(directory.join(&plan.name))?;
        file.write(&plan.header)?;
        file.checksum();
        for planned in &plan.tensors {
            let relative_error = fill(planned, &mut file)?;
            file.write(&vec![0; (planned.padded_bytes() - planned.bytes) as usize])?;
            entries.push(PackedEntry {
                name: specs[planned.number].name.clone(),
                format: formats[planned.number].map(|format| format.to_string()),
                shape: specs[planned.number].shape.dims(),
                file: number,
                offset: planned.offset,
                bytes: planned.bytes,
                relative_error,
                blake3: file.checksum(),
            });
        }
        file.finish()?;
    }
    Ok(entries)
}

/// The manifest's entry for a weight file.
pub(crate) fn file_entry(plan: &FilePlan) -> FileEntry {
    FileEntry {
        name: plan.name.clone(),
        bytes: plan.bytes,
        header_bytes: plan.header.len() as u64,
        header_blake3: blake3::hash(&plan.header).to_string(),
    }
}

/// Refuses before the work what the disk of `parent` cannot hold: the planned
/// files and `more` bytes beside them.
pub(crate) fn check_disk_space(parent: &Path, files: &[FilePlan], more: u64) -> Result<()> {
    let needed = files.iter().map(|file| file.bytes).sum::<u64>() + more + DISK_SLACK;
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
        let error = check_disk_space(Path::new("."), &[file], 0).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Pack);
        let text = error.to_string();
        assert!(text.contains("1152921504623624192 bytes needed"), "{text}");
        assert!(text.contains("available; free some"), "{text}");
    }
}
