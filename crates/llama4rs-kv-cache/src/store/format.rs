//! The bytes of a segment file; `docs/kv-format.md` draws them.
//!
//! ```text
//! header │ token keys │ page table │ zeros │ page │ page │ … │ footer
//! 0      256                        64 KiB, then every 4 KiB    last 64 bytes
//! ```

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::chain::{Fingerprint, PageHash};
use super::name::SegmentName;
use crate::{PoolKind, TokenKey, PAGE_TOKENS};

/// Version that this crate writes and reads.
pub(super) const VERSION: u32 = 1;
/// Most pages of a segment: 8192 tokens.
pub const MAX_PAGES: usize = 128;
pub(super) const HEADER_BYTES: usize = 256;
pub(super) const FOOTER_BYTES: usize = 64;
/// Header, token keys and page table of the largest segment fit in here.
pub(super) const MAX_META_BYTES: usize =
    HEADER_BYTES + MAX_PAGES * (PAGE_TOKENS * KEY_BYTES + ENTRY_BYTES);

const MAGIC: &[u8; 8] = b"L4RSKVS\n";
const FOOTER_MAGIC: &[u8; 8] = b"L4RSKVE\n";
const KEY_BYTES: usize = 8;
const ENTRY_BYTES: usize = 16;
const SECTION_ALIGNMENT: u64 = 64 << 10;
const PAGE_ALIGNMENT: u64 = 4 << 10;
/// No page is nearly as large; keeps sums far from overflow.
const MAX_PAGE_BYTES: u64 = 1 << 40;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub pool: PoolKind,
    pub fingerprint: Fingerprint,
    /// The text before the segment.
    pub parent: PageHash,
    /// The text up to the end of its first page.
    pub head: PageHash,
    /// The text up to its end.
    pub end: PageHash,
    /// Pages of the text before it.
    pub start: u64,
    /// Pages in it.
    pub pages: usize,
}

/// Where a page lies, and the checksum of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageEntry {
    pub offset: u64,
    pub bytes: u64,
    pub checksum: u64,
}

impl PageEntry {
    pub fn range(&self) -> Range<usize> {
        self.offset as usize..(self.offset + self.bytes) as usize
    }
}

/// Everything in front of the pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub header: Header,
    pub keys: Vec<TokenKey>,
    pub pages: Vec<PageEntry>,
}

/// Why bytes are no segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    Damaged(String),
    Unsupported(String),
}

fn damaged<T>(problem: impl Into<String>) -> Result<T, Flaw> {
    Err(Flaw::Damaged(problem.into()))
}

impl Header {
    /// The name that a file with this header has.
    pub fn name(&self) -> SegmentName {
        SegmentName {
            pool: self.pool,
            start: self.start,
            pages: self.pages as u32,
            head: self.head.short(),
            end: self.end.short(),
        }
    }

    /// Bytes of header, token keys and page table.
    pub fn meta_bytes(&self) -> usize {
        HEADER_BYTES + self.pages * (PAGE_TOKENS * KEY_BYTES + ENTRY_BYTES)
    }

    fn encode(&self, file_bytes: u64) -> [u8; HEADER_BYTES] {
        let mut out = Fields::default();
        out.put(MAGIC);
        out.put(&VERSION.to_le_bytes());
        // Flags of later versions: a reader that does not know one must not go on.
        out.put(&0u32.to_le_bytes());
        out.put(&u32::from(self.pool == PoolKind::Chunked).to_le_bytes());
        out.put(&(PAGE_TOKENS as u32).to_le_bytes());
        out.put(&(self.pages as u32).to_le_bytes());
        out.put(&0u32.to_le_bytes());
        out.put(&self.start.to_le_bytes());
        out.put(&file_bytes.to_le_bytes());
        out.put(&self.fingerprint);
        out.put(self.parent.as_bytes());
        out.put(self.head.as_bytes());
        out.put(self.end.as_bytes());
        out.bytes
    }

    /// The header and the length of the file that it promises.
    pub fn parse(bytes: &[u8]) -> Result<(Self, u64), Flaw> {
        let Some(bytes) = bytes.get(..HEADER_BYTES) else {
            return damaged("shorter than a header");
        };
        let mut fields = Reader(bytes);
        if fields.take::<8>() != *MAGIC {
            return damaged("not a file of keys and values: its first bytes are others");
        }
        let version = fields.u32();
        if version != VERSION {
            return Err(Flaw::Unsupported(format!("format version {version}")));
        }
        let flags = fields.u32();
        if flags != 0 {
            return Err(Flaw::Unsupported(format!("flags {flags:#x}")));
        }
        let pool = match fields.u32() {
            0 => PoolKind::Global,
            1 => PoolKind::Chunked,
            other => return damaged(format!("there is no pool {other}")),
        };
        let page_tokens = fields.u32() as usize;
        if page_tokens != PAGE_TOKENS {
            return Err(Flaw::Unsupported(format!("pages of {page_tokens} tokens")));
        }
        let pages = fields.u32() as usize;
        if !(1..=MAX_PAGES).contains(&pages) {
            return damaged(format!("{pages} pages, a segment has 1 to {MAX_PAGES}"));
        }
        fields.u32();
        let start = fields.u64();
        let file_bytes = fields.u64();
        let header = Self {
            pool,
            start,
            pages,
            fingerprint: fields.take(),
            parent: PageHash::from_bytes(fields.take()),
            head: PageHash::from_bytes(fields.take()),
            end: PageHash::from_bytes(fields.take()),
        };
        Ok((header, file_bytes))
    }
}

/// Where each page of a segment goes, checksums still open, and the file's length.
pub(super) fn layout(
    header: &Header,
    sizes: impl Iterator<Item = u64>,
) -> Option<(Vec<PageEntry>, u64)> {
    let mut offset = (header.meta_bytes() as u64).next_multiple_of(SECTION_ALIGNMENT);
    let mut pages = Vec::with_capacity(header.pages);
    for bytes in sizes {
        if !(1..=MAX_PAGE_BYTES).contains(&bytes) {
            return None;
        }
        pages.push(PageEntry { offset, bytes, checksum: 0 });
        offset = (offset + bytes).next_multiple_of(PAGE_ALIGNMENT);
    }
    Some((pages, offset + FOOTER_BYTES as u64))
}

impl Meta {
    /// The bytes before the pages and those after them.
    pub fn encode(&self, file_bytes: u64) -> (Vec<u8>, [u8; FOOTER_BYTES]) {
        let mut meta = Vec::with_capacity(self.header.meta_bytes());
        meta.extend(self.header.encode(file_bytes));
        meta.extend(self.keys.iter().flat_map(|key| key.to_le_bytes()));
        for page in &self.pages {
            meta.extend(page.bytes.to_le_bytes());
            meta.extend(page.checksum.to_le_bytes());
        }
        let footer = footer(file_bytes, xxh3_64(&meta));
        (meta, footer)
    }

    /// Reads the bytes in front of the pages of a file of `file_bytes` bytes,
    /// which ends in `footer`; checks that everything fits together.
    pub fn parse(meta: &[u8], file_bytes: u64, end: &[u8; FOOTER_BYTES]) -> Result<Self, Flaw> {
        let (header, promised) = Header::parse(meta)?;
        if promised != file_bytes {
            return damaged(format!("{file_bytes} bytes long, its header says {promised}"));
        }
        let Some(meta) = meta.get(..header.meta_bytes()) else {
            return damaged("shorter than its header says");
        };
        if *end != footer(file_bytes, xxh3_64(meta)) {
            return damaged("the checksum of its header, token keys and page table is wrong");
        }
        let (keys, table) = meta[HEADER_BYTES..].split_at(header.pages * PAGE_TOKENS * KEY_BYTES);
        let keys = keys.chunks_exact(KEY_BYTES).map(|key| Reader(key).u64()).collect();
        let entry = |bytes| {
            let mut fields = Reader(bytes);
            (fields.u64(), fields.u64())
        };
        let table: Vec<(u64, u64)> = table.chunks_exact(ENTRY_BYTES).map(entry).collect();
        let fits = layout(&header, table.iter().map(|(bytes, _)| *bytes));
        let Some((mut pages, length)) = fits else { return damaged("a page of impossible size") };
        if length != file_bytes {
            return damaged(format!("{file_bytes} bytes long, its pages need {length}"));
        }
        for (page, (_, checksum)) in pages.iter_mut().zip(table) {
            page.checksum = checksum;
        }
        Ok(Self { header, keys, pages })
    }

    /// Whether the hashes in the header are those of the token keys.
    pub fn check_hashes(&self) -> Result<(), Flaw> {
        let Header { parent, head, end, .. } = self.header;
        let mut pages = self.keys.chunks_exact(PAGE_TOKENS);
        let first = pages.next().map(|page| parent.after(page));
        let last = first.map(|first| pages.fold(first, |hash, page| hash.after(page)));
        match first == Some(head) && last == Some(end) {
            true => Ok(()),
            false => damaged("its hashes are not those of its token keys"),
        }
    }
}

/// The checksum of a page's bytes.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

fn footer(file_bytes: u64, meta_checksum: u64) -> [u8; FOOTER_BYTES] {
    let mut footer = [0; FOOTER_BYTES];
    footer[..8].copy_from_slice(FOOTER_MAGIC);
    footer[8..16].copy_from_slice(&file_bytes.to_le_bytes());
    footer[16..24].copy_from_slice(&meta_checksum.to_le_bytes());
    footer
}

/// A header in the making.
struct Fields {
    bytes: [u8; HEADER_BYTES],
    len: usize,
}

impl Default for Fields {
    fn default() -> Self {
        Self { bytes: [0; HEADER_BYTES], len: 0 }
    }
}

impl Fields {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.len..self.len + field.len()].copy_from_slice(field);
        self.len += field.len();
    }
}

/// Takes fields off the front of bytes whose length was checked.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meta(pages: usize, page_bytes: u64) -> (Meta, u64) {
        let keys: Vec<TokenKey> = (0..(pages * PAGE_TOKENS) as u64).collect();
        let parent = PageHash::root(&[4; 32]);
        let mut chain = vec![parent];
        crate::store::chain::extend_chain(&mut chain, parent, &keys);
        let header = Header {
            pool: PoolKind::Chunked,
            fingerprint: [5; 32],
            parent,
            head: chain[1],
            end: chain[pages],
            start: 9,
            pages,
        };
        let sizes = (0..pages as u64).map(|i| page_bytes + i);
        let (mut entries, length) = layout(&header, sizes).unwrap();
        for (entry, checksum) in entries.iter_mut().zip(77..) {
            entry.checksum = checksum;
        }
        (Meta { header, keys, pages: entries }, length)
    }

    #[test]
    fn pages_are_aligned_and_apart() {
        for pages in [1, 2, 127, 128] {
            let (meta, length) = meta(pages, 5000);
            let mut end = meta.header.meta_bytes();
            for page in &meta.pages {
                assert!(page.range().start >= end);
                assert_eq!(page.offset % PAGE_ALIGNMENT, 0);
                end = page.range().end;
            }
            assert_eq!(meta.pages[0].offset % SECTION_ALIGNMENT, 0);
            assert!(length as usize >= end + FOOTER_BYTES);
            assert!(meta.header.meta_bytes() <= MAX_META_BYTES);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pages in 1..=MAX_PAGES, page_bytes in 1u64..100_000) {
            let (meta, length) = meta(pages, page_bytes);
            let (bytes, footer) = meta.encode(length);
            let read = Meta::parse(&bytes, length, &footer);
            prop_assert_eq!(read.as_ref(), Ok(&meta));
            prop_assert_eq!(read.unwrap().check_hashes(), Ok(()));
        }

        /// Any other bytes are refused, without a panic and without believing a size.
        #[test]
        fn no_flipped_byte_is_believed(at in any::<prop::sample::Index>(), flip in 1u8..) {
            let (meta, length) = meta(3, 5000);
            let (mut bytes, mut footer) = meta.encode(length);
            let at = at.index(bytes.len() + FOOTER_BYTES);
            match at.checked_sub(bytes.len()) {
                None => bytes[at] ^= flip,
                Some(at) => footer[at] ^= flip,
            }
            prop_assert!(Meta::parse(&bytes, length, &footer).is_err());
        }

        #[test]
        fn no_other_length_is_believed(cut in any::<prop::sample::Index>(), longer in 1u64..1 << 40) {
            let (meta, length) = meta(3, 5000);
            let (bytes, footer) = meta.encode(length);
            let cut = cut.index(bytes.len());
            prop_assert!(Meta::parse(&bytes[..cut], length, &footer).is_err());
            prop_assert!(Meta::parse(&bytes, length - cut as u64 - 1, &footer).is_err());
            prop_assert!(Meta::parse(&bytes, length + longer, &footer).is_err());
        }

        #[test]
        fn hostile_headers_with_good_checksums_are_refused(
            field in 8usize..HEADER_BYTES,
            value in any::<u64>(),
        ) {
            let (meta, length) = meta(3, 5000);
            let (mut bytes, _) = meta.encode(length);
            let field = field.min(HEADER_BYTES - 8);
            bytes[field..field + 8].copy_from_slice(&value.to_le_bytes());
            let end = footer(length, xxh3_64(&bytes));
            if let Ok(read) = Meta::parse(&bytes, length, &end) {
                prop_assert_eq!(read.pages.len(), 3);
                prop_assert_eq!(read.keys, meta.keys);
            }
        }
    }
}
