//! The bytes of a text's pages, checked by several threads.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};

use llama4rs_tensor::Bytes;

use super::format::MAX_META_BYTES;
use super::name::SegmentName;
use super::parallel::{run_in_order, Outcome};
use super::path::Stretch;
use super::segment::{ReadMode, Segment};
use super::{Error, Result, Store, Text};
use crate::{PoolKind, PAGE_TOKENS};

/// Another thread is worth its start for so many bytes.
const BYTES_PER_THREAD: u64 = 256 << 10;
/// Files that are open at the same time: a system may allow a process as few as 256.
const OPEN_FILES: usize = 64;

/// The caller asked to stop while pages were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

/// Bytes that a store read from its files to find and check pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BytesRead {
    /// Of pages.
    pub pages: u64,
    /// Of headers, token keys, page tables and footers.
    pub meta: u64,
}

/// [`BytesRead`] while threads count.
#[derive(Default)]
pub(super) struct Counters {
    pages: AtomicU64,
    meta: AtomicU64,
}

impl Store {
    /// Bytes that were read so far.
    pub fn bytes_read(&self) -> BytesRead {
        let Counters { pages, meta } = &self.counters;
        let [pages, meta] = [pages, meta].map(|counter| counter.load(Ordering::Relaxed));
        BytesRead { pages, meta }
    }

    /// The bytes of pages `wanted` of `text`, from the first on, as many as are stored
    /// and sound. Files that are not are removed. `floor` as in
    /// [`available`](Self::available); `interrupted` is asked between pages.
    pub fn read(
        &mut self,
        pool: PoolKind,
        text: Text<'_>,
        floor: usize,
        wanted: Range<usize>,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> std::result::Result<Vec<Bytes>, Interrupted> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut path = self.path(pool, text, floor);
        path.retain(|stretch| stretch.end() > wanted.start && stretch.start() < wanted.end);
        let mut found = Vec::with_capacity(wanted.len());
        for path in path.chunks(OPEN_FILES) {
            let threads = self.threads_for((path.len() * MAX_META_BYTES) as u64);
            let opened = run_in_order(threads, path.len(), interrupted, |number, _: &mut ()| {
                self.open_stretch(&path[number], text)
            });
            let segments = self.sound(opened, |number| path[number].name)?;

            let mut pages = Vec::new();
            for (stretch, segment) in path.iter().zip(&segments) {
                let here = stretch.start().max(wanted.start)..stretch.end().min(wanted.end);
                pages.extend(here.map(|page| (stretch, segment, page)));
            }
            let bytes =
                |&(stretch, _, page): &(&Stretch, _, _)| self.sizes.of(stretch.name.pool, page);
            let threads = self.threads_for(pages.iter().map(bytes).sum::<usize>() as u64);
            let read = run_in_order(threads, pages.len(), interrupted, |number, scratch| {
                let (stretch, segment, page) = pages[number];
                self.read_page(&stretch.name, segment, page, scratch)
            });
            let read = self.sound(read, |number| pages[number].0.name)?;
            let is_whole = segments.len() == path.len() && read.len() == pages.len();
            found.extend(read);
            if !is_whole {
                break;
            }
        }
        Ok(found)
    }

    /// What an outcome has before its first failure; the file that failed is blamed.
    fn sound<T>(
        &mut self,
        outcome: ControlFlow<(), Outcome<T, Error>>,
        name_of: impl FnOnce(usize) -> SegmentName,
    ) -> std::result::Result<Vec<T>, Interrupted> {
        let ControlFlow::Continue(outcome) = outcome else { return Err(Interrupted) };
        if let Some((number, error)) = &outcome.failed {
            self.blame(&name_of(*number), error);
        }
        Ok(outcome.done)
    }

    /// Opens a file of a path and compares its token keys.
    fn open_stretch(&self, stretch: &Stretch, text: Text<'_>) -> Result<Segment> {
        let mut segment = self.open_segment(&stretch.name)?;
        if common_pages(&segment, text) < stretch.pages {
            return Err(Error::damaged(&self.file(&stretch.name), "its token keys are others"));
        }
        if self.options.read == ReadMode::Map {
            segment.map()?;
        }
        Ok(segment)
    }

    /// Page `page` of the text.
    fn read_page(
        &self,
        name: &SegmentName,
        segment: &Segment,
        page: usize,
        scratch: &mut Vec<u8>,
    ) -> Result<Bytes> {
        let index = page - name.start as usize;
        let bytes = segment.meta.pages[index].bytes;
        let expected = self.sizes.of(name.pool, page);
        if bytes != expected as u64 {
            let problem = format!("page {page} has {bytes} bytes, expected {expected}");
            return Err(Error::damaged(&self.file(name), problem));
        }
        self.counters.pages.fetch_add(bytes, Ordering::Relaxed);
        segment.page(&*self.disk, index, scratch)
    }

    /// Opens a file whose pages are this store's; its header, keys and table are checked.
    pub(super) fn open_segment(&self, name: &SegmentName) -> Result<Segment> {
        let path = self.file(name);
        let segment = Segment::open(&*self.disk, &path)?;
        self.counters.meta.fetch_add(segment.meta_bytes_read(), Ordering::Relaxed);
        match segment.meta.header.fingerprint == self.options.fingerprint {
            true => Ok(segment),
            false => Err(Error::damaged(&path, "its fingerprint is another model's")),
        }
    }

    fn threads_for(&self, bytes: u64) -> usize {
        self.options.threads.get().min((bytes / BYTES_PER_THREAD) as usize).max(1)
    }
}

/// The first pages of a segment whose token keys are those of the text.
pub(super) fn common_pages(segment: &Segment, text: Text<'_>) -> usize {
    let start = segment.meta.header.start as usize;
    let rest = text.page_keys(start..text.pages());
    let pages = segment.meta.keys.chunks_exact(PAGE_TOKENS);
    pages.zip(rest.chunks_exact(PAGE_TOKENS)).take_while(|(stored, keys)| stored == keys).count()
}
