//! A segment file that is open to read.

use std::fs::File;
use std::path::{Path, PathBuf};

use llama4rs_tensor::{AlignedBytes, Bytes, MappedFile};

use super::disk::Disk;
use super::error::{Error, Result};
use super::format::{checksum, Flaw, Header, Meta, FOOTER_BYTES, HEADER_BYTES, MAX_META_BYTES};

/// How pages come from the disk into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// They stay in the file, which is mapped: memory that the system can take back.
    #[default]
    Map,
    /// They are copied into memory: for file systems on which maps are not safe.
    Copy,
}

/// Header, token keys and page table were checked when it was opened; a page's
/// bytes are checked when they are first asked for.
pub(super) struct Segment {
    path: PathBuf,
    file: File,
    pub meta: Meta,
    map: Option<MappedFile>,
    meta_bytes_read: u64,
}

impl Segment {
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<Self> {
        let file = disk.open(path).map_err(Error::io(path, "open"))?;
        let length = file.metadata().map_err(Error::io(path, "open"))?.len();
        if length < (HEADER_BYTES + FOOTER_BYTES) as u64 {
            return Err(Error::damaged(path, format!("only {length} bytes long")));
        }
        let mut meta = vec![0; length.min(MAX_META_BYTES as u64) as usize];
        read_at(disk, path, &file, &mut meta, 0)?;
        let refuse = |flaw| refusal(path, flaw);
        // The version decides whether there is a footer to look for.
        Header::parse(&meta).map_err(refuse)?;
        let mut footer = [0; FOOTER_BYTES];
        read_at(disk, path, &file, &mut footer, length - FOOTER_BYTES as u64)?;
        let meta_bytes_read = (meta.len() + footer.len()) as u64;
        let meta = Meta::parse(&meta, length, &footer).map_err(refuse)?;
        let name = meta.header.name().to_string();
        if path.file_name().is_none_or(|found| found != name.as_str()) {
            return Err(Error::damaged(path, format!("its header is that of {name}")));
        }
        Ok(Self { path: path.to_owned(), file, meta, map: None, meta_bytes_read })
    }

    /// Reads a page with explicit calls and compares its checksum. The bytes are in
    /// `buffer`, which has the page's size.
    fn read_checked(&self, disk: &dyn Disk, index: usize, buffer: &mut [u8]) -> Result<()> {
        let page = self.meta.pages[index];
        read_at(disk, &self.path, &self.file, buffer, page.offset)?;
        match checksum(buffer) == page.checksum {
            true => Ok(()),
            false => Err(Error::damaged(
                &self.path,
                format!("the checksum of page {index} of {} is wrong", self.meta.header.pages),
            )),
        }
    }

    /// Compares the hashes with the token keys.
    pub fn check_hashes(&self) -> Result<()> {
        self.meta.check_hashes().map_err(|flaw| refusal(&self.path, flaw))
    }

    /// Checks a page without keeping it.
    pub fn check(&self, disk: &dyn Disk, index: usize, scratch: &mut Vec<u8>) -> Result<()> {
        scratch.resize(self.meta.pages[index].bytes as usize, 0);
        self.read_checked(disk, index, scratch)
    }

    /// Lets [`page`](Self::page) give pages that stay in the file.
    pub fn map(&mut self) -> Result<()> {
        self.map = Some(MappedFile::map(&self.file, &self.path)?);
        Ok(())
    }

    /// A page's bytes, checked; a copy unless the file is [mapped](Self::map).
    ///
    /// They are read before they are mapped: a file that was cut short or cannot be
    /// read is an error here and no SIGBUS later.
    pub fn page(&self, disk: &dyn Disk, index: usize, scratch: &mut Vec<u8>) -> Result<Bytes> {
        let page = self.meta.pages[index];
        let Some(map) = &self.map else {
            let mut bytes = AlignedBytes::zeroed(page.bytes as usize)?;
            self.read_checked(disk, index, &mut bytes)?;
            return Ok(bytes.into());
        };
        self.check(disk, index, scratch)?;
        Ok(Bytes::mapped(map, page.range())?)
    }

    /// What opening it has read.
    pub fn meta_bytes_read(&self) -> u64 {
        self.meta_bytes_read
    }
}

fn refusal(path: &Path, flaw: Flaw) -> Error {
    match flaw {
        Flaw::Damaged(problem) => Error::damaged(path, problem),
        Flaw::Unsupported(problem) => Error::Unsupported { path: path.to_owned(), problem },
    }
}

fn read_at(
    disk: &dyn Disk,
    path: &Path,
    file: &File,
    buffer: &mut [u8],
    offset: u64,
) -> Result<()> {
    disk.read_at(file, buffer, offset).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::damaged(path, "it became shorter"),
        _ => Error::io(path, "read")(error),
    })
}
