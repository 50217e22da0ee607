//! One block of rows and one key/value head, over some of its segments.

use llama4rs_tensor::{KvDtype, KvGeometry, PageForm, PageId};

use super::exact::{unpack, Bf16, Element, ExactPage, Rows, F32};
use super::pairs::{Ahead, PairPage, PairScratch, LINE};
use super::sealed::{AddSealed, Scales, SealedPage, SealedScratch};
use super::work::{Partial, Sizes, Work};
use super::SEGMENT_TOKENS;
use crate::kernels::kv_pages::{rotate, KvPages};
use crate::parallel::Shared;
use crate::simd::{IntegerKernel, Integers, Simd, LANES};
use crate::{Arithmetic, Tensor};

/// Working memory of one task.
#[derive(Default)]
pub struct TaskScratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    /// `[page token][width]`, unpacked, where the width is not that of a head.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Centres and steps of a sealed page.
    scales: Vec<f32>,
    sealed: SealedScratch,
    pairs: PairScratch,
    segment: Vec<f32>,
    total: Vec<f32>,
}

/// Rows of one span, for the query heads of one key/value head.
#[derive(Clone, Copy)]
pub struct Rowset<'a> {
    pub pool: &'a KvPages,
    pub layer: usize,
    pub kv_head: usize,
    pub queries: &'a Tensor,
    pub first_row: usize,
    pub rows: usize,
    pub pages: &'a [PageId],
    /// Tokens that the first row sees.
    pub visible: usize,
    pub scale: f32,
    pub arithmetic: Arithmetic,
}

/// Pages of a segment.
pub fn segment_pages(page_tokens: usize) -> usize {
    (SEGMENT_TOKENS / page_tokens).max(1)
}

impl Rowset<'_> {
    pub fn sizes(&self) -> Sizes {
        let geometry = self.pool.geometry();
        Sizes {
            rows: self.rows,
            heads: self.queries.cols() / (geometry.head_dim * geometry.num_kv_heads),
            head_dim: geometry.head_dim,
            width: geometry.head_dim.next_multiple_of(LANES),
            padded_tokens: geometry.page_tokens.next_multiple_of(LANES),
        }
    }

    /// Whether exact pages are multiplied in pairs: pages of bf16 that are whole lines.
    fn in_pairs(&self) -> bool {
        let KvGeometry { head_dim, page_tokens, dtype, .. } = *self.pool.geometry();
        self.arithmetic == Arithmetic::Fast
            && dtype.exact() == KvDtype::Bf16
            && head_dim.is_multiple_of(LINE)
            && page_tokens.is_multiple_of(LANES)
    }

    /// The pages that some row sees.
    fn seen_pages(&self) -> &[PageId] {
        let last_visible = self.visible + self.rows - 1;
        &self.pages[..last_visible.div_ceil(self.pool.geometry().page_tokens)]
    }

    /// Segments that some row sees.
    pub fn segments(&self) -> usize {
        self.seen_pages().len().div_ceil(segment_pages(self.pool.geometry().page_tokens))
    }

    /// Writes what the queries have gathered to their places in `out`.
    ///
    /// # Safety
    /// No other thread has the outputs of these rows and this key/value head.
    pub unsafe fn write(&self, total: &Partial<'_>, out: Shared<'_, f32>) {
        let sizes = self.sizes();
        let rotates = self.pool.geometry().dtype.rotates_values();
        for (i, acc) in total.acc.chunks_exact(sizes.width).enumerate() {
            let row = (self.first_row + i / sizes.heads) * self.queries.cols();
            let head = self.kv_head * sizes.heads + i % sizes.heads;
            let start = row + head * sizes.head_dim;
            // SAFETY: the caller's promise; the queries differ.
            let out = unsafe { out.part(start..start + sizes.head_dim) };
            out.iter_mut().zip(acc).for_each(|(out, acc)| *out = acc / total.sum[i]);
            if rotates {
                rotate(out);
            }
        }
    }
}

/// What a task gives.
pub enum Goal<'a> {
    /// The sums of one segment.
    Segment(usize, &'a mut [f32]),
    /// The outputs of the rows.
    Rows(Shared<'a, f32>),
}

/// Attention of a rowset.
pub struct AttentionTask<'a> {
    pub rowset: Rowset<'a>,
    pub goal: Goal<'a>,
    pub scratch: &'a mut TaskScratch,
}

impl IntegerKernel for AttentionTask<'_> {
    #[inline(always)]
    fn run<I: Integers>(self, integers: I) {
        let Self { rowset, goal, scratch } = self;
        let sizes = rowset.sizes();
        scratch.prepare(integers.simd(), &rowset, sizes);
        match goal {
            Goal::Segment(index, floats) => {
                scratch.segment(integers, &rowset, index, Partial::of(sizes, floats));
            }
            Goal::Rows(out) => {
                // Taken out for the time of the calls, which change the rest.
                let mut segment = std::mem::take(&mut scratch.segment);
                let mut total = std::mem::take(&mut scratch.total);
                segment.resize(sizes.partial().max(segment.len()), 0.0);
                total.resize(sizes.partial().max(total.len()), 0.0);
                let mut sums = Partial::of(sizes, &mut total);
                sums.clear();
                for index in 0..rowset.segments() {
                    let part = Partial::of(sizes, &mut segment);
                    scratch.segment(integers, &rowset, index, part);
                    sums.merge(integers.simd(), sizes, &Partial::of(sizes, &mut segment));
                }
                // SAFETY: this task alone has these rows and this key/value head.
                unsafe { rowset.write(&sums, out) };
                (scratch.segment, scratch.total) = (segment, total);
            }
        }
    }
}

/// Adds segments, in their order, to the total of their rowset.
pub struct MergeTask<'a> {
    pub rowset: Rowset<'a>,
    /// Sums of each segment, `stride` floats from one to the next.
    pub segments: &'a mut [f32],
    pub stride: usize,
    pub total: Partial<'a>,
}

impl crate::simd::Kernel for MergeTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let sizes = self.rowset.sizes();
        for segment in self.segments.chunks_exact_mut(self.stride) {
            self.total.merge(simd, sizes, &Partial::of(sizes, segment));
        }
    }
}

impl TaskScratch {
    /// Brings the queries in and makes room.
    #[inline(always)]
    fn prepare<S: Simd>(&mut self, simd: S, rowset: &Rowset<'_>, sizes: Sizes) {
        let Sizes { heads, head_dim, width, padded_tokens, .. } = sizes;
        refill(&mut self.queries, sizes.queries() * width);
        for (i, query) in self.queries.chunks_exact_mut(width).enumerate() {
            let head = rowset.kv_head * heads + i % heads;
            let row = rowset.queries.row(rowset.first_row + i / heads);
            query[..head_dim].copy_from_slice(&row[head * head_dim..][..head_dim]);
        }
        if width != head_dim {
            refill(&mut self.keys, padded_tokens * width);
            refill(&mut self.values, padded_tokens * width);
        }
        refill(&mut self.scores, sizes.queries() * padded_tokens);
        refill(&mut self.scales, 2 * (width + padded_tokens));
        self.sealed.prepare(sizes);
        if rowset.in_pairs() {
            self.pairs.prepare(simd, sizes, &self.queries);
        }
    }

    /// Gathers the pages of segment `index` into `partial`.
    #[inline(always)]
    fn segment<I: Integers>(
        &mut self,
        integers: I,
        rowset: &Rowset<'_>,
        index: usize,
        mut partial: Partial<'_>,
    ) {
        let Rowset { pool, layer, kv_head, visible, scale, .. } = *rowset;
        let (simd, sizes) = (integers.simd(), rowset.sizes());
        let geometry = pool.geometry();
        let page_tokens = geometry.page_tokens;
        let last_visible = visible + rowset.rows - 1;
        let Self { queries, scores, keys: k, values: v, scales, sealed, pairs, .. } = self;
        partial.clear();
        let next = std::ptr::null();
        let mut work = Work { sizes, scale, queries, scores, partial, next };

        let pages = rowset.seen_pages();
        let first = index * segment_pages(page_tokens);
        let end = pages.len().min(first + segment_pages(page_tokens));
        for (number, &page) in pages.iter().enumerate().take(end).skip(first) {
            let head = pool.head(page, layer, kv_head);
            let next = pages.get(number + 1).map(|&next| pool.head(next, layer, kv_head));
            work.next = next.map_or(std::ptr::null(), |head| head.as_ptr());
            if page.form() == PageForm::Sealed {
                let page = sealed_page(simd, pool, head, scales);
                match geometry.dtype {
                    KvDtype::Int4 => add_sealed::<I, 4>(integers, &mut work, sealed, page),
                    _ => add_sealed::<I, 8>(integers, &mut work, sealed, page),
                }
                continue;
            }
            let before = number * page_tokens;
            let (keys, values) = head.split_at(geometry.plane_bytes());
            if rowset.in_pairs() {
                add_pairs(simd, &mut work, pairs, rowset, before, keys, values);
                continue;
            }
            if sizes.width != sizes.head_dim {
                let tokens = page_tokens.min(last_visible - before);
                unpack(geometry.dtype, keys, tokens, sizes, k);
                unpack(geometry.dtype, values, tokens, sizes, v);
                let (keys, values) = (Rows::<F32>::of_floats(k), Rows::of_floats(v));
                add_exact(simd, &mut work, rowset, before, keys, values);
                continue;
            }
            let next = [0, keys.len()].map(|at| match work.next.is_null() {
                true => work.next,
                false => work.next.wrapping_add(at),
            });
            if geometry.dtype == KvDtype::F32 {
                let (keys, values) = (Rows::<F32>::new(keys, next[0]), Rows::new(values, next[1]));
                add_exact(simd, &mut work, rowset, before, keys, values);
            } else {
                let (keys, values) = (Rows::<Bf16>::new(keys, next[0]), Rows::new(values, next[1]));
                add_exact(simd, &mut work, rowset, before, keys, values);
            }
        }
    }
}

/// [`AddSealed`] in a function of its own: in one with all others it takes the
/// compiler minutes.
#[inline(never)]
fn add_sealed<I: Integers, const BITS: usize>(
    integers: I,
    work: &mut Work<'_>,
    scratch: &mut SealedScratch,
    page: SealedPage<'_>,
) {
    integers.run_integers(AddSealed::<BITS> { work, scratch, page });
}

/// [`ExactPage`] in a function of its own.
#[inline(never)]
fn add_exact<'k, S: Simd, E: Element>(
    simd: S,
    work: &mut Work<'_>,
    rowset: &Rowset<'_>,
    before: usize,
    keys: Rows<'k, E>,
    values: Rows<'k, E>,
) {
    let page_tokens = rowset.pool.geometry().page_tokens;
    let visible = rowset.visible;
    simd.run(ExactPage { work, before, page_tokens, visible, keys, values });
}

/// [`PairPage`] in a function of its own.
#[inline(never)]
fn add_pairs<S: Simd>(
    simd: S,
    work: &mut Work<'_>,
    scratch: &mut PairScratch,
    rowset: &Rowset<'_>,
    before: usize,
    keys: &[u8],
    values: &[u8],
) {
    let page_tokens = rowset.pool.geometry().page_tokens;
    let visible = rowset.visible;
    let ahead = Ahead::new(work.next, keys.len() + values.len());
    simd.run(PairPage { work, scratch, before, page_tokens, visible, keys, values, ahead });
}

/// The sections of one head, its centres and steps as floats in `scales`.
#[inline(always)]
fn sealed_page<'a, S: Simd>(
    simd: S,
    pool: &KvPages,
    head: &'a [u8],
    scales: &'a mut [f32],
) -> SealedPage<'a> {
    let layout = pool.sealed_head().expect("a pool with sealed pages");
    let tokens = pool.geometry().page_tokens;
    let sections =
        [&layout.key_centres, &layout.key_steps, &layout.value_centres, &layout.value_steps];
    let mut to = 0;
    for section in sections {
        let halves = &head[section.clone()];
        for half in halves.chunks_exact(2 * LANES) {
            // SAFETY: 16 halves, and 16 floats.
            unsafe {
                let floats = simd.load_f16(half.as_ptr());
                simd.store(floats, scales[to..to + LANES].as_mut_ptr());
            }
            to += LANES;
        }
    }
    let (keys, values) = scales.split_at(2 * layout.width);
    let (key_centres, key_steps) = keys.split_at(layout.width);
    let (value_centres, value_steps) = values.split_at(tokens);
    SealedPage {
        head,
        key_codes: layout.key_codes.clone(),
        value_codes: layout.value_codes.clone(),
        keys: Scales { centres: key_centres, steps: key_steps },
        values: Scales { centres: value_centres, steps: &value_steps[..tokens] },
    }
}

fn refill(values: &mut Vec<f32>, len: usize) {
    values.clear();
    values.resize(len, 0.0);
}
