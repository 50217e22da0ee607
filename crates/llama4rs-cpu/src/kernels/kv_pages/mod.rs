//! Pages of keys and values, and writing into them.
//!
//! [`llama4rs_tensor::kv`] draws what is in a page.

mod arena;
mod rotate;
mod seal;

use llama4rs_tensor::{Bytes, KvDtype, KvGeometry, PageForm, PageId, Result, SealedHead, Slot};

use self::arena::Arena;
use crate::parallel::Threads;
use crate::Tensor;

pub use self::rotate::rotate;
#[cfg(test)]
pub use self::seal::Sealed;

/// Numbers that are worth waking the threads for.
const PARALLEL_NUMBERS: usize = 16 << 10;

/// A growing pool of pages.
pub struct KvPages {
    geometry: KvGeometry,
    /// `None` without codes.
    sealed_head: Option<SealedHead>,
    exact: Arena,
    sealed: Arena,
}

impl KvPages {
    /// A pool without pages.
    pub fn new(geometry: KvGeometry) -> Result<Self> {
        geometry.check()?;
        let arena = |form| Arena::new(geometry.page_bytes(form));
        Ok(Self {
            geometry,
            sealed_head: geometry.sealed_head(),
            exact: arena(PageForm::Exact),
            sealed: arena(PageForm::Sealed),
        })
    }

    /// The sizes.
    pub fn geometry(&self) -> &KvGeometry {
        &self.geometry
    }

    /// The layout of a head in a sealed page; `None` without codes.
    pub fn sealed_head(&self) -> Option<&SealedHead> {
        self.sealed_head.as_ref()
    }

    fn arena(&self, form: PageForm) -> &Arena {
        match form {
            PageForm::Exact => &self.exact,
            PageForm::Sealed => &self.sealed,
        }
    }

    fn arena_mut(&mut self, form: PageForm) -> &mut Arena {
        match form {
            PageForm::Exact => &mut self.exact,
            PageForm::Sealed => &mut self.sealed,
        }
    }

    /// Whether a page may be used.
    pub fn has(&self, page: PageId) -> bool {
        page.index() < self.num_pages(page.form())
    }

    /// Pages of a form that may be used.
    pub fn num_pages(&self, form: PageForm) -> usize {
        self.arena(form).num_pages()
    }

    /// Makes `num_pages` pages of a form usable; never takes pages away.
    pub fn reserve(&mut self, form: PageForm, num_pages: usize) -> Result<()> {
        self.arena_mut(form).reserve(num_pages)
    }

    /// All bytes of a page.
    pub fn page(&self, page: PageId) -> &[u8] {
        self.arena(page.form()).page(page.index())
    }

    /// Makes `bytes`, as many as a page has, the content of a page.
    pub fn adopt(&mut self, page: PageId, bytes: Bytes) {
        self.arena_mut(page.form()).adopt(page.index(), bytes);
    }

    /// Gives up the content of a page.
    pub fn discard(&mut self, page: PageId) {
        self.arena_mut(page.form()).discard(page.index());
    }

    /// Where the head's bytes start in a page.
    fn head_start(&self, form: PageForm, layer: usize, head: usize) -> usize {
        let KvGeometry { num_layers, num_kv_heads, .. } = self.geometry;
        assert!(layer < num_layers && head < num_kv_heads, "a head of the pool");
        (layer * num_kv_heads + head) * self.geometry.head_bytes(form)
    }

    /// One head of one layer in a page: keys and values `[token][head_dim]` of an
    /// exact page, the sections of a sealed one.
    pub fn head(&self, page: PageId, layer: usize, head: usize) -> &[u8] {
        let start = self.head_start(page.form(), layer, head);
        &self.page(page)[start..start + self.geometry.head_bytes(page.form())]
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
        slots.iter().for_each(|slot| self.exact.take_back(slot.page.index()));
        let pages = &*self;
        let write = |task: usize| {
            let (head, value) = (task / 2, task % 2 == 1);
            let source = if value { values } else { keys };
            let rotates = value && dtype.rotates_values();
            let plane = pages.head_start(PageForm::Exact, layer, head)
                + value as usize * pages.geometry.plane_bytes();
            let bytes = head_dim * dtype.exact_bytes();
            let mut rotated = Vec::new();
            for (t, slot) in slots.iter().enumerate() {
                let start = plane + slot.offset as usize * bytes;
                // SAFETY: the pool is borrowed exclusively, each task has its own
                // planes, and the page was taken back above.
                let token =
                    unsafe { pages.exact.part_mut(slot.page.index(), start..start + bytes) };
                let mut numbers = &source.row(t)[head * head_dim..][..head_dim];
                if rotates {
                    rotated.clear();
                    rotated.extend_from_slice(numbers);
                    rotate(&mut rotated);
                    numbers = &rotated;
                }
                encode(dtype, numbers, token);
            }
        };
        let tasks = num_kv_heads * 2;
        if slots.len() * num_kv_heads * head_dim < PARALLEL_NUMBERS {
            (0..tasks).for_each(write);
        } else {
            threads.for_each(tasks, write);
        }
    }

    /// Quantises `layer` of full exact pages into sealed ones; all of them exist.
    pub fn seal(&mut self, threads: &Threads, layer: usize, pages: &[(PageId, PageId)]) {
        let heads = self.geometry.num_kv_heads;
        pages.iter().for_each(|(_, sealed)| self.sealed.take_back(sealed.index()));
        let Some(layout) = &self.sealed_head else { return };
        let pool = &*self;
        let start = |head| pool.head_start(PageForm::Sealed, layer, head);
        threads.for_each(pages.len() * heads, |task| {
            let ((exact, sealed), head) = (pages[task / heads], task % heads);
            let exact = pool.head(exact, layer, head);
            let part = start(head)..start(head) + layout.bytes();
            // SAFETY: the pool is borrowed exclusively, each task has its own head of
            // one of the pages, which differ, and the page was taken back above.
            let sealed = unsafe { pool.sealed.part_mut(sealed.index(), part) };
            seal::seal_head(&pool.geometry, layout, exact, sealed);
        });
    }
}

fn encode(dtype: KvDtype, values: &[f32], bytes: &mut [u8]) {
    match dtype.exact() {
        KvDtype::F32 => {
            for (to, value) in bytes.chunks_exact_mut(4).zip(values) {
                to.copy_from_slice(&value.to_le_bytes());
            }
        }
        _ => {
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
    use llama4rs_tensor::{Backend, Error};

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
                cpu.kv_reserve(&mut pool, PageForm::Exact, 4).unwrap();
                let slots: Vec<Slot> = [(3, 4), (0, 0), (3, 0), (1, 2)]
                    .map(|(page, offset)| Slot { page: PageId::exact(page), offset })
                    .to_vec();
                let (keys, values) = (random.tensor(4, 24), random.tensor(4, 24));
                cpu.write_kv(&mut pool, 1, &slots, &keys, &values).unwrap();
                cpu.kv_reserve(&mut pool, PageForm::Exact, 10_000).unwrap();
                let mut found = 0;
                for (page, layer, head) in
                    (0..12).flat_map(|i| (0..6).map(move |j| (i, j % 3, j / 3)))
                {
                    for value in [false, true] {
                        let source = if value { &values } else { &keys };
                        let id = PageId::exact(page);
                        let planes = pool.head(id, layer, head);
                        let plane = planes.chunks(planes.len() / 2).nth(value as usize).unwrap();
                        for (offset, bytes) in plane.chunks(12 * dtype.exact_bytes()).enumerate() {
                            let at = Slot { page: id, offset: offset as u32 };
                            let slot = slots.iter().position(|&s| s == at && layer == 1);
                            let expected: Vec<u8> = match slot {
                                None => vec![0; 12 * dtype.exact_bytes()],
                                Some(t) => {
                                    found += 1;
                                    let row = &source.row(t)[head * 12..][..12];
                                    let bytes = |x: &f32| match dtype {
                                        KvDtype::F32 => x.to_le_bytes().to_vec(),
                                        _ => bf16::from_f32(*x).to_le_bytes().to_vec(),
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
    fn pages_of_real_models_are_whole_system_pages() {
        for dtype in KvDtype::ALL {
            let sizes = KvGeometry {
                num_layers: 12,
                num_kv_heads: 8,
                head_dim: 128,
                page_tokens: 64,
                dtype,
            };
            let mut pool = KvPages::new(sizes).unwrap();
            for form in [PageForm::Exact, PageForm::Sealed] {
                pool.reserve(form, 10).unwrap();
                assert!(sizes.page_bytes(form).is_multiple_of(4096));
                let head = pool.head(PageId::new(form, 9), 11, 7);
                assert_eq!(head.as_ptr() as usize % 64, 0);
                assert!(head.iter().all(|&byte| byte == 0));
            }
        }
    }

    #[test]
    fn absurd_pools_are_errors() {
        let sizes =
            |num_layers, head_dim| KvGeometry { num_layers, head_dim, ..geometry(KvDtype::F32) };
        assert!(KvPages::new(sizes(0, 12)).is_err());
        assert!(KvPages::new(sizes(usize::MAX, 12)).is_err());
        let mut pool = KvPages::new(sizes(1, 1 << 50)).unwrap();
        assert!(matches!(pool.reserve(PageForm::Exact, 1), Err(Error::OutOfMemory { .. })));
        assert_eq!(pool.num_pages(PageForm::Exact), 0);
    }
}
