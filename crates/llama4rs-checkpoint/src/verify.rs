//! Every byte of a packed directory against its checksums.

use std::path::{Path, PathBuf};

use crate::manifest::{self, plain_path, Manifest};
use crate::packed_layout::padded;
use crate::packed_model::PackedModel;
use crate::scan::{checksums, Run};
use crate::{Error, Progress, Result};

/// What a verification read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// Tensors whose checksums agree.
    pub tensors: usize,
    /// Files, copies included.
    pub files: usize,
    /// Bytes read.
    pub bytes: u64,
}

/// Reads the whole packed directory `path` and compares every checksum.
///
/// The first difference is an error that names the tensor or the file.
pub fn verify(path: impl AsRef<Path>, progress: &dyn Progress) -> Result<VerifyReport> {
    let path = path.as_ref();
    if !manifest::is_packed(path) {
        return Err(Error::NotACheckpoint {
            path: path.to_owned(),
            problem: format!("no {}: only packed checkpoints can be verified", manifest::MANIFEST),
        });
    }
    PackedModel::open(path)?;
    let packed = Manifest::read(path)?;
    let parts = parts(path, &packed)?;
    let total = parts.iter().map(|part| part.bytes).sum();
    check_parts(&parts, progress)?;
    Ok(VerifyReport {
        tensors: packed.tensors.len(),
        files: packed.files.len() + packed.copies.len(),
        bytes: total,
    })
}

/// A run of bytes with a checksum.
struct Part<'a> {
    path: PathBuf,
    what: String,
    offset: u64,
    bytes: u64,
    expected: &'a str,
}

fn parts<'a>(directory: &Path, packed: &'a Manifest) -> Result<Vec<Part<'a>>> {
    let mut parts = Vec::with_capacity(packed.tensors.len() + packed.copies.len());
    for tensor in &packed.tensors {
        let file = packed.files.get(tensor.file).ok_or_else(|| {
            Error::damaged(directory.join(manifest::MANIFEST), "it changed while it was read")
        })?;
        parts.push(Part {
            path: plain_path(directory, &file.name)?,
            what: format!("tensor {}", tensor.name),
            offset: tensor.offset,
            bytes: padded(tensor.bytes),
            expected: &tensor.blake3,
        });
    }
    for copy in &packed.copies {
        let path = plain_path(directory, &copy.name)?;
        let length = path.metadata().map_err(|error| Error::io(&path, error))?.len();
        if length != copy.bytes {
            return Err(Error::damaged(
                &path,
                format!("{length} bytes long, {} says {}", manifest::MANIFEST, copy.bytes),
            ));
        }
        let (what, expected) = ("the file".into(), copy.blake3.as_str());
        parts.push(Part { path, what, offset: 0, bytes: length, expected });
    }
    Ok(parts)
}

/// The first difference is an error.
fn check_parts(parts: &[Part<'_>], progress: &dyn Progress) -> Result<()> {
    let runs: Vec<_> = parts.iter().map(Part::run).collect();
    for (part, found) in parts.iter().zip(checksums(&runs, progress)?) {
        let found = found.to_string();
        if found != part.expected {
            return Err(Error::Checksum {
                path: part.path.clone(),
                what: part.what.clone(),
                expected: part.expected.to_owned(),
                found,
            });
        }
    }
    Ok(())
}

impl Part<'_> {
    fn run(&self) -> Run<'_> {
        Run { path: &self.path, what: &self.what, offset: self.offset, bytes: self.bytes }
    }
}
