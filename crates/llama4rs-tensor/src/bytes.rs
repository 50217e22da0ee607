//! Bytes that are either ours or a part of a mapped file.

use std::ops::{Deref, DerefMut, Range};

use memmap2::MmapMut;

use crate::{Error, MappedFile, Result};

/// Every packed matrix starts at a multiple of this: one cache line, one AVX-512 register.
pub const ALIGNMENT: usize = 64;

/// A zeroed buffer aligned to [`ALIGNMENT`], in large pages where the system has them:
/// a core reads them up to half as fast again as small ones.
pub struct AlignedBytes(MmapMut);

impl AlignedBytes {
    /// `len` zero bytes, or [`Error::OutOfMemory`].
    pub fn zeroed(len: usize) -> Result<Self> {
        let map = MmapMut::map_anon(len)
            .map_err(|_| Error::OutOfMemory { what: "packed weights", bytes: len })?;
        #[cfg(target_os = "linux")]
        // Where this is refused, small pages serve, too.
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self(map))
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Owned bytes or a range of a mapped file, aligned to [`ALIGNMENT`].
pub enum Bytes {
    /// Memory of our own.
    Owned(AlignedBytes),
    /// A part of a mapped file.
    Mapped {
        /// The file.
        file: MappedFile,
        /// Which of its bytes.
        range: Range<usize>,
    },
}

impl Bytes {
    /// The `range` of a mapped file; refuses a range outside of the file or off the alignment.
    pub fn mapped(file: &MappedFile, range: Range<usize>) -> Result<Self> {
        let slice = file.get(range.clone()).ok_or_else(|| Error::Length {
            what: file.path().display().to_string(),
            expected: range.end,
            found: file.len(),
        })?;
        if !(slice.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
            return Err(Error::shape(
                "map weights",
                format!("an offset that is a multiple of {ALIGNMENT}"),
                format!("offset {} in {}", range.start, file.path().display()),
            ));
        }
        Ok(Bytes::Mapped { file: file.clone(), range })
    }

    /// Whether the bytes belong to a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self, Bytes::Mapped { .. })
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Owned(bytes) => bytes,
            Bytes::Mapped { file, range } => &file[range.clone()],
        }
    }
}

impl From<AlignedBytes> for Bytes {
    fn from(bytes: AlignedBytes) -> Self {
        Bytes::Owned(bytes)
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.is_mapped() { "mapped" } else { "owned" };
        write!(f, "Bytes({kind}, {})", self.len())
    }
}
