//! Read-only memory maps of files: the workspace's only `mmap`.
//!
//! The contract that makes `&[u8]` over a map sound: a mapped file is never
//! written or truncated by us while a map lives. Packed files are written under
//! a temporary name and renamed, so a path never changes its bytes in place. A
//! foreign process that truncates the file breaks the contract; the system then
//! ends us with SIGBUS, as for every engine that maps weights.
//!
//! On Linux a map asks for large pages: a core reads them up to half as fast again.
//! A file system that keeps large folios (ext4 on Linux 6.18 does) then reads a cold
//! file into them; what the page cache already holds in small pages stays there.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Error, Result};

/// A whole file, mapped read-only; cheap to clone.
#[derive(Clone)]
pub struct MappedFile {
    path: Arc<PathBuf>,
    map: Arc<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps `path`. An empty file gives an empty slice.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        Self::map(&file, path)
    }

    /// Maps a file that is open already; `path` is for messages.
    pub fn map(file: &File, path: &Path) -> Result<Self> {
        // SAFETY: the map is read-only and private to this type; see the module
        // contract for why the bytes do not change below us.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(|e| Error::io(path, e))?;
        #[cfg(target_os = "linux")]
        // Where this is refused, small pages serve, too.
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { path: Arc::new(path.to_owned()), map: Arc::new(map) })
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl std::fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MappedFile({}, {} bytes)", self.path.display(), self.map.len())
    }
}
