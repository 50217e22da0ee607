//! Pages of keys and values, and writing into them.
//!
//! A page is `[layer][kv head][key, value][token][head_dim]`. Pages come in
//! chunks of zeroed memory that never move, so growing copies nothing, and the
//! system gives real memory to a page only when it is written.

use std::ops::Range;

use llama4rs_tensor::{Error, KvDtype, KvGeometry, Result, Slot};
use memmap2::MmapMut;

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
    /// Anonymous memory, aligned to the system's pages.
    chunks: Vec<MmapMut>,
}

impl KvPages {
    /// A pool without pages.
    pub fn new(geometry: KvGeometry) -> Result<Self> {
        let KvGeometry { num_layers, num_kv_heads, head_dim, page_tokens, dtype } = geometry;
        let page_bytes = [num_layers, num_kv_heads, 2, page_tokens, head_dim, dtype.bytes()]
            .into_iter()
            .try_fold(1usize, usize::checked_mul)
            .filter(|&bytes| bytes > 0 && bytes <= isize::MAX as usize / 2)
            .ok_or_else(|| {
                Error::shape(
                    "kv pool",
                    "sizes above zero that fit in memory",
                    format!("{geometry:?}"),
                )
            })?;
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
                .and_then(|bytes| MmapMut::map_anon(bytes).ok())
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
    fn plane_range(
        &self,
        page: usize,
        layer: usize,
        head: usize,
        value: bool,
    ) -> (usize, Range<usize>) {
        assert!(
            page < self.num_pages
                && layer < self.geometry.num_layers
                && head < self.geometry.num_kv_heads
        );
        let bytes = self.geometry.plane_elements() * self.geometry.dtype.bytes();
        let plane = (layer * self.geometry.num_kv_heads + head) * 2 + value as usize;
        let start = page % self.pages_per_chunk * self.page_bytes + plane * bytes;
        (page / self.pages_per_chunk, start..start + bytes)
    }

    /// The keys (or values) of one head of one layer in one page: `[token][head_dim]`.
    pub fn plane(&self, page: usize, layer: usize, head: usize, value: bool) -> &[u8] {
        let (chunk, range) = self.plane_range(page, layer, head, value);
        &self.chunks[chunk][range]
    }

    /// As [`KvPages::plane`], to be written by several tasks.
    ///
    /// # Safety
    /// While the result lives, no other reference to this plane does.
    #[allow(clippy::mut_from_ref)]
    unsafe fn plane_mut(&self, page: usize, layer: usize, head: usize, value: bool) -> &mut [u8] {
        let (chunk, range) = self.plane_range(page, layer, head, value);
        let start = self.chunks[chunk].as_ptr().cast_mut().wrapping_add(range.start);
        // SAFETY: the range is inside of the chunk, which is writable memory; the
        // caller promises exclusiveness.
        unsafe { std::slice::from_raw_parts_mut(start, range.len()) }
    }

    /// Stores row `t` of `keys` and `values` at `slots[t]`; the shapes fit.
    pub fn write(
        &mut self,
        threads: &Threads,
        layer: usize,
        slots: &[Slot],
        keys: &Tensor,
        values: &Tensor,
    ) {
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

#[cfg(test)]
mod tests {
    use half::bf16;
    use llama4rs_tensor::Backend;

    use super::*;
    use crate::test_support::{all_cpus, Random};

    fn geometry(dtype: KvDtype) -> KvGeometry {
        KvGeometry { num_layers: 3, num_kv_heads: 2, head_dim: 12, page_tokens: 5, dtype }
    }

    #[test]
    fn what_is_written_is_there_and_nothing_else() {
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            for cpu in all_cpus() {
                let random = &mut Random(12);
                let mut pool = cpu.kv_pool(geometry(dtype)).unwrap();
                cpu.kv_reserve(&mut pool, 4).unwrap();
                let slots: Vec<Slot> = [(3, 4), (0, 0), (3, 0), (1, 2)]
                    .map(|(page, offset)| Slot { page, offset })
                    .to_vec();
                let (keys, values) = (random.tensor(4, 24), random.tensor(4, 24));
                cpu.write_kv(&mut pool, 1, &slots, &keys, &values).unwrap();
                cpu.kv_reserve(&mut pool, 10_000).unwrap();
                let mut found = 0;
                for (page, layer, head) in
                    (0..12).flat_map(|i| (0..6).map(move |j| (i, j % 3, j / 3)))
                {
                    for value in [false, true] {
                        let source = if value { &values } else { &keys };
                        let plane = pool.plane(page, layer, head, value);
                        for (offset, bytes) in plane.chunks(12 * dtype.bytes()).enumerate() {
                            let at = Slot { page: page as u32, offset: offset as u32 };
                            let slot = slots.iter().position(|&s| s == at && layer == 1);
                            let expected: Vec<u8> = match slot {
                                None => vec![0; 12 * dtype.bytes()],
                                Some(t) => {
                                    found += 1;
                                    let row = &source.row(t)[head * 12..][..12];
                                    let bytes = |x: &f32| match dtype {
                                        KvDtype::F32 => x.to_le_bytes().to_vec(),
                                        KvDtype::Bf16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
                                    };
                                    row.iter().flat_map(bytes).collect()
                                }
                            };
                            assert_eq!(bytes, expected, "{page} {layer} {head} {value} {offset}");
                        }
                    }
                }
                assert_eq!(found, 4 * 2 * 2);
            }
        }
    }

    #[test]
    fn bf16_is_rounded_to_nearest_even() {
        let random = &mut Random(13);
        for _ in 0..100_000 {
            let value = f32::from_bits(random.bits() as u32);
            let expected = bf16::from_f32(value);
            let got = bf16::from_bits(bf16_bits(value));
            assert!(got == expected || got.is_nan() && expected.is_nan(), "{value}");
        }
        assert!(bf16::from_bits(bf16_bits(f32::from_bits(0x7F80_0001))).is_nan());
    }

    #[test]
    fn planes_start_on_cache_lines() {
        let mut pool = KvPages::new(KvGeometry {
            num_layers: 12,
            num_kv_heads: 8,
            head_dim: 128,
            page_tokens: 64,
            dtype: KvDtype::Bf16,
        })
        .unwrap();
        pool.reserve(100).unwrap();
        assert_eq!(pool.plane(99, 11, 7, true).as_ptr() as usize % 64, 0);
        assert!(pool.plane(99, 11, 7, true).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn absurd_pools_are_errors() {
        let sizes =
            |num_layers, head_dim| KvGeometry { num_layers, head_dim, ..geometry(KvDtype::F32) };
        assert!(KvPages::new(sizes(0, 12)).is_err());
        assert!(KvPages::new(sizes(usize::MAX, 12)).is_err());
        let mut pool = KvPages::new(sizes(1, 1 << 50)).unwrap();
        assert!(matches!(pool.reserve(1), Err(Error::OutOfMemory { .. })));
        assert_eq!(pool.num_pages(), 0);
    }
}
