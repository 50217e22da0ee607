//! Every byte of a packed directory against its checksums.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Sender};

use rayon::prelude::*;

use crate::manifest::{self, plain_path, Manifest};
use crate::packed_layout::padded;
use crate::packed_model::PackedModel;
use crate::progress::report;
use crate::published::thread_pool;
use crate::{Error, Progress, Result};

/// Bytes that are read and hashed at a time.
const PIECE: u64 = 4 << 20;

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
    check_parts(&parts, total, progress)?;
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

/// Workers hash; this thread listens to them and tells the caller.
fn check_parts(parts: &[Part<'_>], total: u64, progress: &dyn Progress) -> Result<()> {
    let stop = AtomicBool::new(false);
    let (sender, receiver) = channel();
    let mut outcome = Ok(());
    let mut interrupted = Ok(());
    let (stop_flag, outcome_slot) = (&stop, &mut outcome);
    thread_pool(None)?.in_place_scope(|scope| {
        scope.spawn(move |_| {
            *outcome_slot = parts
                .par_iter()
                .try_for_each_with(sender, |sender, part| part.check(sender, stop_flag));
        });
        let mut done = 0;
        for (what, bytes) in receiver {
            done += bytes;
            if interrupted.is_ok() {
                interrupted = report(progress, what, done, total);
                stop.store(interrupted.is_err(), Ordering::Relaxed);
            }
        }
    });
    interrupted.and(outcome)
}

impl Part<'_> {
    fn check<'a>(&'a self, sender: &mut Sender<(&'a str, u64)>, stop: &AtomicBool) -> Result<()> {
        let io = |error| Error::io(&self.path, error);
        let file = File::open(&self.path).map_err(io)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; PIECE.min(self.bytes) as usize];
        let mut at = 0;
        while at < self.bytes && !stop.load(Ordering::Relaxed) {
            let piece = &mut buffer[..PIECE.min(self.bytes - at) as usize];
            file.read_exact_at(piece, self.offset + at).map_err(io)?;
            hasher.update(piece);
            at += piece.len() as u64;
            // Nobody listens any more when the caller's thread has gone; so be it.
            let _ = sender.send((self.what.as_str(), piece.len() as u64));
        }
        let found = hasher.finalize().to_string();
        if at == self.bytes && found != self.expected {
            return Err(Error::Checksum {
                path: self.path.clone(),
                what: self.what.clone(),
                expected: self.expected.to_owned(),
                found,
            });
        }
        Ok(())
    }
}
