//! Bytes that are either ours or a part of a mapped file.

use std::alloc::{alloc_zeroed, dealloc, Layout};
use std::ops::{Deref, DerefMut, Range};

use crate::{Error, MappedFile, Result};

/// Every packed matrix starts at a multiple of this: one cache line, one AVX-512 register.
pub const ALIGNMENT: usize = 64;

/// A zeroed heap buffer aligned to [`ALIGNMENT`].
pub struct AlignedBytes {
    pointer: std::ptr::NonNull<u8>,
    len: usize,
}

impl AlignedBytes {
    /// `len` zero bytes, or [`Error::OutOfMemory`].
    pub fn zeroed(len: usize) -> Result<Self> {
        let refused = Error::OutOfMemory { what: "packed weights", bytes: len };
        let Ok(layout) = Self::layout(len) else { return Err(refused) };
        // SAFETY: the layout's size is at least ALIGNMENT, so never zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let pointer = std::ptr::NonNull::new(raw).ok_or(refused)?;
        Ok(Self { pointer, len })
    }

    fn layout(len: usize) -> std::result::Result<Layout, std::alloc::LayoutError> {
        Layout::from_size_align(len.max(ALIGNMENT), ALIGNMENT)
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        let layout = Self::layout(self.len).expect("the layout that `zeroed` allocated with");
        // SAFETY: allocated in `zeroed` with the same layout, freed once.
        unsafe { dealloc(self.pointer.as_ptr(), layout) }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `pointer` owns `len` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `pointer` owns `len` initialised bytes and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }
}

// SAFETY: the buffer is plain memory owned by one value; access follows the borrow rules.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above; `&AlignedBytes` only reads.
unsafe impl Sync for AlignedBytes {}

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
