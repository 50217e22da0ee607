//! Memory of the pages of one form.

use std::ops::Range;

use llama4rs_tensor::{Bytes, Error, Result, ALIGNMENT};
use memmap2::{MmapMut, MmapOptions};

/// Memory of a chunk, unless one page is larger.
const CHUNK_BYTES: usize = 8 << 20;

/// Pages of at least this size are worth the system's large pages.
#[cfg(target_os = "linux")]
const LARGE_PAGE: usize = 1 << 19;

/// Pages of one size in chunks of zeroed memory that never move: growing copies
/// nothing, and the system gives real memory to a page only when it is written.
pub struct Arena {
    page_bytes: usize,
    /// From one page to the next.
    stride: usize,
    pages_per_chunk: usize,
    num_pages: usize,
    /// Anonymous memory, aligned to the system's pages.
    chunks: Vec<MmapMut>,
    /// By page: bytes that stand for its own memory.
    adopted: Vec<Option<Bytes>>,
}

impl Arena {
    /// No pages yet, of `page_bytes` bytes each.
    pub fn new(page_bytes: usize) -> Self {
        let stride = page_bytes.next_multiple_of(ALIGNMENT);
        let pages_per_chunk = (CHUNK_BYTES / stride.max(1)).max(1);
        let (chunks, adopted) = (Vec::new(), Vec::new());
        Self { page_bytes, stride, pages_per_chunk, num_pages: 0, chunks, adopted }
    }

    /// Pages that may be used.
    pub fn num_pages(&self) -> usize {
        self.num_pages
    }

    /// Makes `num_pages` pages usable; never takes pages away.
    pub fn reserve(&mut self, num_pages: usize) -> Result<()> {
        let wanted = num_pages.div_ceil(self.pages_per_chunk);
        while self.chunks.len() < wanted {
            let chunk = self
                .stride
                .checked_mul(self.pages_per_chunk)
                .and_then(|bytes| {
                    // A page that adopts its bytes needs no memory of its own.
                    MmapOptions::new().len(bytes).no_reserve_swap().map_anon().ok()
                })
                .filter(|_| self.chunks.try_reserve(1).is_ok())
                .ok_or_else(|| Error::OutOfMemory {
                    what: "key/value pages",
                    bytes: self.stride.saturating_mul(num_pages),
                })?;
            #[cfg(target_os = "linux")]
            if self.page_bytes >= LARGE_PAGE {
                // Small pages of the system serve, too, only more slowly.
                let _ = chunk.advise(memmap2::Advice::HugePage);
            }
            self.chunks.push(chunk);
        }
        self.num_pages = self.num_pages.max(num_pages);
        Ok(())
    }

    /// The chunk and the place in it of a page's own memory.
    fn place(&self, page: usize) -> (&MmapMut, Range<usize>) {
        assert!(page < self.num_pages, "a page that is reserved");
        let start = page % self.pages_per_chunk * self.stride;
        (&self.chunks[page / self.pages_per_chunk], start..start + self.page_bytes)
    }

    /// The content of a page.
    #[inline]
    pub fn page(&self, page: usize) -> &[u8] {
        if let Some(Some(bytes)) = self.adopted.get(page) {
            return bytes;
        }
        let (chunk, range) = self.place(page);
        &chunk[range]
    }

    /// A part of a page's own memory, to be written by several tasks.
    ///
    /// # Safety
    /// While the result lives, no other reference to this part does. The page has
    /// been [taken back](Self::take_back) since it last adopted bytes.
    ///
    /// # Panics
    /// When the part is not inside of the page.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part_mut(&self, page: usize, part: Range<usize>) -> &mut [u8] {
        let (chunk, range) = self.place(page);
        assert!(part.start <= part.end && part.end <= self.page_bytes, "part of a page");
        let start = chunk.as_ptr().cast_mut().wrapping_add(range.start + part.start);
        // SAFETY: the part is inside of the chunk, which is writable memory; the
        // caller promises exclusiveness.
        unsafe { std::slice::from_raw_parts_mut(start, part.len()) }
    }

    /// Makes `bytes`, as many as a page has, the content of a page.
    pub fn adopt(&mut self, page: usize, bytes: Bytes) {
        assert!(page < self.num_pages && bytes.len() == self.page_bytes, "bytes of a page");
        self.discard(page);
        if self.adopted.len() <= page {
            self.adopted.resize_with(page + 1, || None);
        }
        self.adopted[page] = Some(bytes);
    }

    /// Makes the page's own memory its content, whatever that is.
    pub fn take_back(&mut self, page: usize) {
        if let Some(adopted) = self.adopted.get_mut(page) {
            *adopted = None;
        }
    }

    /// Gives up the content of a page and the memory that holds it.
    pub fn discard(&mut self, page: usize) {
        self.take_back(page);
        let (chunk, range) = self.place(page);
        give_back(chunk, range);
    }
}

/// Gives the whole system pages of a range back to the system.
#[cfg(unix)]
fn give_back(memory: &MmapMut, range: Range<usize>) {
    /// The largest that systems of this kind use.
    const SYSTEM_PAGE: usize = if cfg!(target_arch = "x86_64") { 1 << 12 } else { 1 << 16 };
    let start = range.start.next_multiple_of(SYSTEM_PAGE);
    let end = range.end / SYSTEM_PAGE * SYSTEM_PAGE;
    if start < end {
        // SAFETY: anonymous private memory whose content nobody needs: what is read
        // there next is zeros or what was there.
        let advice = unsafe {
            memory.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
        };
        // Where the system refuses, the memory stays ours.
        drop(advice);
    }
}

#[cfg(not(unix))]
fn give_back(_memory: &MmapMut, _range: Range<usize>) {}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::AlignedBytes;

    use super::*;

    fn arena(page_bytes: usize, pages: usize) -> Arena {
        let mut arena = Arena::new(page_bytes);
        arena.reserve(pages).unwrap();
        arena
    }

    fn fill(arena: &mut Arena, page: usize, byte: u8) {
        arena.take_back(page);
        // SAFETY: the arena is borrowed exclusively.
        unsafe { arena.part_mut(page, 0..arena.page_bytes) }.fill(byte);
    }

    #[test]
    fn pages_are_apart_aligned_and_stay() {
        for page_bytes in [1, 40, 4096, 100_000, 9 << 20] {
            let mut arena = arena(page_bytes, 3);
            (0..3).for_each(|page| fill(&mut arena, page, page as u8 + 1));
            arena.reserve(100).unwrap();
            for page in 0..3 {
                assert!(arena.page(page).iter().all(|&byte| byte == page as u8 + 1));
                assert_eq!(arena.page(page).as_ptr() as usize % ALIGNMENT, 0);
                assert_eq!(arena.page(page).len(), page_bytes);
            }
        }
    }

    #[test]
    fn adopted_bytes_stand_for_a_page_until_it_is_written_or_discarded() {
        let mut arena = arena(100, 5);
        (0..5).for_each(|page| fill(&mut arena, page, 1));
        for leave in [Arena::take_back, Arena::discard] {
            let mut bytes = AlignedBytes::zeroed(100).unwrap();
            bytes.fill(7);
            let address = bytes.as_ptr();
            arena.adopt(2, bytes.into());
            assert_eq!(arena.page(2).as_ptr(), address, "not copied");
            assert_eq!([1, 2, 3].map(|page| arena.page(page)[99]), [1, 7, 1]);
            leave(&mut arena, 2);
            fill(&mut arena, 2, 9);
            assert_eq!([1, 2, 3].map(|page| arena.page(page)[99]), [1, 9, 1]);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn discarding_gives_memory_back_and_spares_the_neighbours() {
        let mut arena = arena(1_000_000, 4);
        (0..4).for_each(|page| fill(&mut arena, page, 5));
        arena.discard(1);
        // All but the rims of the page is zero, because it is new memory.
        let zeros = arena.page(1).iter().filter(|&&byte| byte == 0).count();
        assert!(zeros >= 1_000_000 - (2 << 16), "{zeros}");
        assert!([0, 2, 3].iter().all(|&page| arena.page(page).iter().all(|&byte| byte == 5)));
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let mut arena = Arena::new(1 << 60);
        assert!(matches!(arena.reserve(1), Err(Error::OutOfMemory { .. })));
        assert_eq!(arena.num_pages(), 0);
    }
}
