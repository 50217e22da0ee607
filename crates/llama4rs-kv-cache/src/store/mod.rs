//! Keys and values on disk: pages that outlive the process.
//!
//! A directory of immutable *segment* files, each a run of up to 128 full pages of
//! one pool. **The directory is the truth**: there is no manifest to keep. A file is
//! written under a temporary name, made durable, and then given a name that says
//! which text its pages belong to, by the hashes of [`PageHash`]; from then on it is
//! only read, and removed as a whole. So any number of processes read and write
//! side by side without a lock, and one that is killed leaves nothing half done.
//!
//! **Any doubt is a miss.** Fingerprint, token keys, sizes and checksums are compared
//! before a page is handed out; what does not fit is computed again, and the file
//! that was at fault is removed so that it can be written anew.
//!
//! ```text
//! chain    hashes of a text's page boundaries
//! name     file names           format   bytes of a file
//! index    what the names tell  segment  one file, open
//! path     a text's files       read     their pages, by several threads
//! write    new files            upkeep   budget, leftovers, listing, verifying, pruning
//! disk     every system call    parallel jobs in order
//! ```

mod chain;
mod disk;
mod error;
mod format;
mod index;
mod name;
mod parallel;
mod path;
mod read;
mod segment;
mod upkeep;
mod write;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

pub use chain::{extend_chain, fingerprint, Fingerprint, PageHash, Text};
pub use error::{Error, Result};
pub use format::MAX_PAGES as SEGMENT_PAGES;
pub use read::{BytesRead, Interrupted};
pub use segment::ReadMode;
pub use upkeep::{list, prune, verify, Prune, Pruned, SegmentInfo, VerifyReport};
pub use write::Pages;

use disk::{Disk, System};
use index::Index;

use crate::PoolKind;

/// Where keys and values are kept, and how.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The directory; made if need be. Any number of processes and models share it.
    pub dir: PathBuf,
    /// What the pages are computed by.
    pub fingerprint: Fingerprint,
    /// Most bytes of all files in the directory; what was not used for longest goes first.
    pub budget: Option<u64>,
    /// How pages come into memory.
    pub read: ReadMode,
    /// Threads that check pages when a text is found.
    pub threads: NonZeroUsize,
}

/// Makes the directory of a store if need be, for its owner only.
pub fn make_directory(dir: &Path) -> Result<()> {
    make_directory_on(&System, dir)
}

fn make_directory_on(disk: &dyn Disk, dir: &Path) -> Result<()> {
    disk.create_dir(dir).map_err(Error::io(dir, "make the directory"))
}

/// Bytes of a page, which depend on its place in the text only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSizes {
    /// The first page of the global layers.
    pub first_global: usize,
    /// Every other page of the global layers.
    pub global: usize,
    /// Every page of the chunked layers.
    pub chunked: usize,
}

impl PageSizes {
    fn of(&self, pool: PoolKind, page: usize) -> usize {
        match (pool, page) {
            (PoolKind::Chunked, _) => self.chunked,
            (PoolKind::Global, 0) => self.first_global,
            (PoolKind::Global, _) => self.global,
        }
    }
}

/// An open store, for the pages of one fingerprint.
pub struct Store {
    disk: Arc<dyn Disk>,
    options: StoreOptions,
    sizes: PageSizes,
    root: PageHash,
    index: Index,
    /// Number of the last file begun, for temporary names.
    begun: u64,
    /// When each path was last marked as used, by its last file.
    touched: path::Touched,
    counters: read::Counters,
}

impl Store {
    /// Opens the directory and removes what writers that died left behind.
    ///
    /// Costs one listing of the directory: files are opened when they are needed.
    pub fn open(options: StoreOptions, sizes: PageSizes) -> Result<Self> {
        Self::open_on(Arc::new(System), options, sizes)
    }

    fn open_on(disk: Arc<dyn Disk>, options: StoreOptions, sizes: PageSizes) -> Result<Self> {
        let dir = &options.dir;
        make_directory_on(&*disk, dir)?;
        let mut index = Index::default();
        index.refresh(&*disk, dir).map_err(Error::io(dir, "list the directory"))?;
        upkeep::remove_leftovers(&*disk, dir);
        let root = PageHash::root(&options.fingerprint);
        let touched = path::Touched::default();
        // Distinct among processes that share the directory and a process number.
        let begun = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let begun = begun.as_nanos() as u64;
        Ok(Self {
            disk,
            options,
            sizes,
            root,
            index,
            begun,
            touched,
            counters: read::Counters::default(),
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.options.dir
    }

    /// Most bytes of all files.
    pub fn budget(&self) -> Option<u64> {
        self.options.budget
    }

    /// How pages come into memory.
    pub fn read_mode(&self) -> ReadMode {
        self.options.read
    }

    /// The hash at the beginning of every text.
    pub fn root(&self) -> PageHash {
        self.root
    }
}
