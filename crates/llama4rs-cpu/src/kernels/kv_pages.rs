//! Pages of keys and values, and writing into them.
//!
//! A page is `[layer][kv head][key, value][token][head_dim]`. Pages come in
//! chunks of zeroed memory that never move, so growing copies nothing, and the
//! system gives real memory to a page only when it is written.

use std::alloc::{alloc_zeroed, dealloc, Layout};
use std::ops::Range;
use std::ptr::NonNull;

use llama4rs_tensor::{Error, KvDtype, KvGeometry, Result, Slot, ALIGNMENT};

use crate::parallel::Threads;
use crate::Tensor;

/// Memory of a chunk, unless one page is larger.
const CHUNK_BYTES: usize = 8 << 20;

/// A growing pool of pages.
pub struct KvPages {
    geometry: KvGeometry,
    page_bytes: usize,
    pages_per_chunk: usize,
    num_pages: usize,
    chunks: Vec<Chunk>,
}

impl KvPages {
    /// A pool without pages.
    pub fn new(geometry: KvGeometry) -> Result<Self> {
        let KvGeometry { num_layers, num_kv_heads, head_dim, page_tokens, dtype } = geometry;
        let page_bytes = [num_layers, num_kv_heads, 2, page_tokens, head_dim, dtype.bytes()]
            .into_iter()
            .try_fold(1usize, usize::checked_mul)
            .filter(|&bytes| bytes > 0 && bytes <= isize::MAX as usize / 2)
            .ok_or_else(|| Error::shape("kv pool", "sizes above zero that fit in memory", format!("{geometry:?}")))?;
        let pages_per_chunk = (CHUNK_BYTES / page_bytes).max(1);
        Ok(Self { geometry, page_bytes, pages_per_chunk, num_pages: 0, chunks: Vec::new() })
    }

    /// The sizes.
    pub fn geometry(&self) -> &KvGeometry {
        &self.geometry
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
                .page_bytes
                .checked_mul(self.pages_per_chunk)
                .and_then(Chunk::zeroed)
                .filter(|_| self.chunks.try_reserve(1).is_ok())
                .ok_or_else(|| Error::OutOfMemory {
                    what: "key/value pages",
                    bytes: self.page_bytes.saturating_mul(num_pages),
                })?;
            self.chunks.push(chunk);
        }
        self.num_pages = self.num_pages.max(num_pages);
        Ok(())
    }

    /// Where a plane is: its chunk and its bytes there.
    fn plane_range(&self, page: usize, layer: usize, head: usize, value: bool) -> (usize, Range<usize>) {
        assert!(page < self.num_pages && layer < self.geometry.num_layers && head < self.geometry.num_kv_heads);
        let bytes = self.geometry.plane_elements() * self.geometry.dtype.bytes();
        let plane = (layer * self.geometry.num_kv_heads + head) * 2 + value as usize;
        let start = page % self.pages_per_chunk * self.page_bytes + plane * bytes;
        (page / self.pages_per_chunk, start..start + bytes)
    }

    /// The keys (or values) of one head of one layer in one page: `[token][head_dim]`.
    pub fn plane(&self, page: usize, layer: usize, head: usize, value: bool) -> &[u8] {
        let (chunk, range) = self.plane_range(page, layer, head, value);
        &self.chunks[chunk].bytes()[range]
    }

    /// As [`KvPages::plane`], to be written by several tasks.
    ///
    /// # Safety
    /// While the result lives, no other reference to this plane does.
    #[allow(clippy::mut_from_ref)]
    unsafe fn plane_mut(&self, page: usize, layer: usize, head: usize, value: bool) -> &mut [u8] {
        let (chunk, range) = self.plane_range(page, layer, head, value);
        let start = self.chunks[chunk].pointer.as_ptr().wrapping_add(range.start);
        // SAFETY: the range is inside of the chunk (as `plane` checks for the
        // same range), and the caller promises exclusiveness.
        unsafe { std::slice::from_raw_parts_mut(start, range.len()) }
    }

    /// Stores row `t` of `keys` and `values` at `slots[t]`; the shapes fit.
    pub fn write(&mut self, threads: &Threads, layer: usize, slots: &[Slot], keys: &Tensor, values: &Tensor) {
        let KvGeometry { num_kv_heads, head_dim, dtype, .. } = self.geometry;
        let pages = &*self;
        let write = |task: usize| {
            let (head, value) = (task / 2, task % 2 == 1);
            let source = if value { values } else { keys };
            for (t, slot) in slots.iter().enumerate() {
                // SAFETY: the pool is borrowed exclusively, and each task has its own planes.
                let plane = unsafe { pages.plane_mut(slot.page as usize, layer, head, value) };
                let bytes = head_dim * dtype.bytes();
                let token = &mut plane[slot.offset as usize * bytes..][..bytes];
                encode(dtype, &source.row(t)[head * head_dim..][..head_dim], token);
            }
        };
        let tasks = num_kv_heads * 2;
        if slots.len() * num_kv_heads * head_dim < 16 << 10 {
            (0..tasks).for_each(write);
        } else {
            threads.for_each(tasks, write);
        }
    }
}

fn encode(dtype: KvDtype, values: &[f32], bytes: &mut [u8]) {
    match dtype {
        KvDtype::F32 => {
            for (to, value) in bytes.chunks_exact_mut(4).zip(values) {
                to.copy_from_slice(&value.to_le_bytes());
            }
        }
        KvDtype::Bf16 => {
            for (to, &value) in bytes.chunks_exact_mut(2).zip(values) {
                to.copy_from_slice(&bf16_bits(value).to_le_bytes());
            }
        }
    }
}

/// The nearest bf16, ties to even; a NaN stays one.
#[inline]
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    (if value.is_nan() { bits | 0x40_0000 } else { rounded } >> 16) as u16
}

/// Zeroed memory that stays where it is.
struct Chunk {
    /// What was allocated.
    memory: NonNull<u8>,
    layout: Layout,
    /// The first aligned byte of it.
    pointer: NonNull<u8>,
}

impl Chunk {
    /// Asks for no more than the allocator's own alignment: only then does zeroed
    /// memory come straight from the system, untouched.
    fn zeroed(bytes: usize) -> Option<Self> {
        let layout = Layout::from_size_align(bytes.checked_add(ALIGNMENT)?, 16).ok()?;
        // SAFETY: the size is not zero.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skip = memory.as_ptr().align_offset(ALIGNMENT);
        // SAFETY: `skip < ALIGNMENT`, which the layout has to spare.
        let pointer = unsafe { memory.add(skip) };
        Some(Self { memory, layout, pointer })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the chunk owns these initialised bytes; `plane_mut` is only
        // reached through an exclusive borrow of the pool.
        unsafe {
            std::slice::from_raw_parts(self.pointer.as_ptr(), self.layout.size() - ALIGNMENT)
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, freed once.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

// SAFETY: plain memory owned by one value; access follows the borrow rules.
unsafe impl Send for Chunk {}
// SAFETY: as above; `&Chunk` only reads, but for `plane_mut`, which needs a promise.
unsafe impl Sync for Chunk {}
