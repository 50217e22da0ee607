//! A digest of a model's weights: the same for the same bytes, opened in the same way.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::files::read_small;
use crate::manifest::{self, Manifest};
use crate::open::DEFAULT_WEIGHTS;
use crate::scan::{checksums, Run};
use crate::shards::Shards;
use crate::{Error, OpenOptions, Progress, Result};

/// Files are hashed in pieces of this size, so that all cores have work.
const PIECE: u64 = 64 << 20;
/// A file that changed this recently may change again without a new time.
const CLOCK_DOUBT: Duration = Duration::from_secs(2);
const MAX_MEMO_BYTES: u64 = 16 << 20;

/// A digest of the configuration and all weights of `path` as `options` open it.
///
/// A packed directory's manifest holds the checksums; a published checkpoint's files
/// are read, which takes as long as reading takes. What was found is kept in the file
/// `memo`, by device, inode, size and time of each file, and not read again.
pub fn weights_digest(
    path: impl AsRef<Path>,
    options: &OpenOptions,
    memo: Option<&Path>,
    progress: &dyn Progress,
) -> Result<[u8; 32]> {
    let path = path.as_ref();
    match manifest::is_packed(path) {
        true => packed_digest(path),
        false => published_digest(path, options, memo, progress),
    }
}

/// Hashes fields with their lengths, so that no two lists of fields are alike.
struct Fields(blake3::Hasher);

impl Fields {
    fn new(kind: &str) -> Self {
        let mut this = Self(blake3::Hasher::new());
        this.add(kind);
        this
    }

    fn add(&mut self, field: impl AsRef<[u8]>) {
        let field = field.as_ref();
        self.0.update(&(field.len() as u64).to_le_bytes()).update(field);
    }

    fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

fn packed_digest(directory: &Path) -> Result<[u8; 32]> {
    let manifest = Manifest::read(directory)?;
    let mut fields = Fields::new("packed 1");
    let config = manifest.copies.iter().find(|copy| copy.name == "config.json");
    fields.add(config.map_or("", |copy| copy.blake3.as_str()));
    for tensor in &manifest.tensors {
        fields.add(&tensor.name);
        fields.add(tensor.format.as_deref().unwrap_or_default());
        fields.add(format!("{:?}", tensor.shape));
        fields.add(&tensor.blake3);
    }
    Ok(fields.finish())
}

fn published_digest(
    directory: &Path,
    options: &OpenOptions,
    memo: Option<&Path>,
    progress: &dyn Progress,
) -> Result<[u8; 32]> {
    let mut fields = Fields::new("published 1");
    fields.add(options.weights.unwrap_or(DEFAULT_WEIGHTS).to_string());
    for rule in &options.rules {
        fields.add(&rule.pattern);
        fields.add(rule.format.to_string());
    }
    fields.add(read_small(&directory.join("config.json"), 64 << 20)?);
    let shards = Shards::open(directory)?;
    let mut memo = Memo::open(memo);
    for path in shards.paths() {
        fields.add(path.file_name().unwrap_or_default().as_encoded_bytes());
        fields.add(memo.digest(path, progress)?);
    }
    memo.save();
    Ok(fields.finish())
}

/// Digests of files that were hashed before.
struct Memo {
    path: Option<PathBuf>,
    known: BTreeMap<String, String>,
    changed: bool,
}

impl Memo {
    /// What cannot be read is hashed again.
    fn open(path: Option<&Path>) -> Self {
        let bytes = path.and_then(|path| read_small(path, MAX_MEMO_BYTES).ok());
        let known = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path: path.map(Path::to_owned), known: known.unwrap_or_default(), changed: false }
    }

    fn digest(&mut self, path: &Path, progress: &dyn Progress) -> Result<String> {
        let metadata = path.metadata().map_err(|error| Error::io(path, error))?;
        let (time, nanos) = (metadata.mtime(), metadata.mtime_nsec());
        let key =
            format!("{}:{}:{}:{time}.{nanos:09}", metadata.dev(), metadata.ino(), metadata.len());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let settled = modified.elapsed().is_ok_and(|age| age > CLOCK_DOUBT);
        let digest = file_digest(path, metadata.len(), progress)?;
        if settled {
            self.known.insert(key, digest.clone());
            self.changed = true;
        }
        Ok(digest)
    }

    /// A memo that cannot be written is of no importance.
    fn save(&self) {
        let Some(path) = self.path.as_ref().filter(|_| self.changed) else { return };
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let Ok(json) = serde_json::to_vec_pretty(&self.known) else { return };
        let written = std::fs::write(&temporary, json);
        if written.and_then(|()| std::fs::rename(&temporary, path)).is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
    }
}

fn file_digest(path: &Path, bytes: u64, progress: &dyn Progress) -> Result<String> {
    let what = path.display().to_string();
    let run = |offset| Run { path, what: &what, offset, bytes: PIECE.min(bytes - offset) };
    let runs: Vec<_> = (0..bytes).step_by(PIECE as usize).map(run).collect();
    let mut hasher = blake3::Hasher::new();
    for piece in checksums(&runs, progress)? {
        hasher.update(piece.as_bytes());
    }
    Ok(hasher.finalize().to_string())
}
