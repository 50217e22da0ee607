//! The queries of some rows that share one key/value head.

use std::marker::PhantomData;

use llama4rs_tensor::{KvDtype, PageForm, PageId};

use super::SEGMENT_TOKENS;
use crate::kernels::exp::exp;
use crate::kernels::kv_pages::{rotate, unseal_head, KvPages};
use crate::parallel::Shared;
use crate::simd::{Kernel, Simd, LANES};
use crate::Tensor;

/// Working memory of one task. A *query* is one head of one row; the heads of a
/// row follow each other.
#[derive(Default)]
pub struct TaskScratch {
    /// `[query][width]`
    queries: Vec<f32>,
    /// `[page token][width]`, unpacked, where the width is not that of a head.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// `[query][page token]`: scores, then probabilities.
    scores: Vec<f32>,
    segment: Partial,
    total: Partial,
}

/// Unfinished softmax sums of every query.
#[derive(Default)]
struct Partial {
    /// Largest score so far.
    largest: Vec<f32>,
    /// `Σ exp(score - largest)`
    sum: Vec<f32>,
    /// `Σ exp(score - largest) value`, `[query][width]`
    acc: Vec<f32>,
}

impl Partial {
    fn clear(&mut self, queries: usize, width: usize) {
        refill(&mut self.largest, queries, f32::NEG_INFINITY);
        refill(&mut self.sum, queries, 0.0);
        refill(&mut self.acc, queries * width, 0.0);
    }
}

fn refill(values: &mut Vec<f32>, len: usize, value: f32) {
    values.clear();
    values.resize(len, value);
}

/// Attention of `rows` rows from `first_row` on, for the query heads of one key/value head.
pub struct AttentionTask<'a> {
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
    pub out: Shared<'a, f32>,
    pub scratch: &'a mut TaskScratch,
}

/// Sizes that the steps of a task share.
#[derive(Clone, Copy)]
struct Sizes {
    /// Rows, and query heads of each.
    rows: usize,
    heads: usize,
    /// `head_dim` and the next multiple of 16.
    head_dim: usize,
    width: usize,
    /// Tokens of a page, as a multiple of 16.
    padded_tokens: usize,
}

impl Kernel for AttentionTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { pool, layer, kv_head, pages, visible, scale, .. } = self;
        let geometry = pool.geometry();
        let page_tokens = geometry.page_tokens;
        let sizes = Sizes {
            rows: self.rows,
            heads: self.queries.cols() / (geometry.head_dim * geometry.num_kv_heads),
            head_dim: geometry.head_dim,
            width: geometry.head_dim.next_multiple_of(LANES),
            padded_tokens: page_tokens.next_multiple_of(LANES),
        };
        let scratch = self.scratch;
        scratch.prepare(sizes);
        for (i, query) in scratch.queries.chunks_exact_mut(sizes.width).enumerate() {
            let head = kv_head * sizes.heads + i % sizes.heads;
            let row = self.queries.row(self.first_row + i / sizes.heads);
            query[..sizes.head_dim]
                .copy_from_slice(&row[head * sizes.head_dim..][..sizes.head_dim]);
        }

        let last_visible = visible + self.rows - 1;
        let segment_pages = (SEGMENT_TOKENS / page_tokens).max(1);
        for (i, &page) in pages[..last_visible.div_ceil(page_tokens)].iter().enumerate() {
            if i > 0 && i % segment_pages == 0 {
                scratch.merge(simd, sizes);
            }
            let before = i * page_tokens;
            let tokens = page_tokens.min(last_visible - before);
            // Tokens of this page that row `r` sees.
            let seen = |r: usize| (visible + r).saturating_sub(before).min(page_tokens);
            let head = pool.head(page, layer, kv_head);
            if let (PageForm::Sealed, Some(layout)) = (page.form(), pool.sealed_head()) {
                let plane = |value| {
                    let plane = unseal_head(geometry, layout, head, value);
                    let mut padded = vec![0.0; page_tokens * sizes.width];
                    let rows = padded.chunks_exact_mut(sizes.width);
                    for (to, from) in rows.zip(plane.chunks_exact(sizes.head_dim)) {
                        to[..sizes.head_dim].copy_from_slice(from);
                    }
                    padded
                };
                let (keys, values) = (plane(false), plane(true));
                let (k, v) = (Rows::<F32>::of_floats(&keys), Rows::of_floats(&values));
                scratch.page(simd, sizes, seen, scale, k, v);
                continue;
            }
            let (keys, values) = head.split_at(geometry.plane_bytes());
            if sizes.width != sizes.head_dim {
                let TaskScratch { keys: k, values: v, .. } = &mut *scratch;
                unpack(geometry.dtype, keys, tokens, sizes, k);
                unpack(geometry.dtype, values, tokens, sizes, v);
                // Taken out for the time of the call, which changes the rest.
                let (keys, values) = (std::mem::take(k), std::mem::take(v));
                let (k, v) = (Rows::<F32>::of_floats(&keys), Rows::of_floats(&values));
                scratch.page(simd, sizes, seen, scale, k, v);
                (scratch.keys, scratch.values) = (keys, values);
            } else if geometry.dtype == KvDtype::F32 {
                let (keys, values) = (Rows::<F32>::new(keys), Rows::new(values));
                scratch.page(simd, sizes, seen, scale, keys, values);
            } else {
                let (keys, values) = (Rows::<Bf16>::new(keys), Rows::new(values));
                scratch.page(simd, sizes, seen, scale, keys, values);
            }
        }
        scratch.merge(simd, sizes);

        for (i, acc) in scratch.total.acc.chunks_exact(sizes.width).enumerate() {
            let row = (self.first_row + i / sizes.heads) * self.queries.cols();
            let head = kv_head * sizes.heads + i % sizes.heads;
            let start = row + head * sizes.head_dim;
            // SAFETY: this task alone has these rows and this key/value head.
            let out = unsafe { self.out.part(start..start + sizes.head_dim) };
            let sum = scratch.total.sum[i];
            out.iter_mut().zip(acc).for_each(|(out, acc)| *out = acc / sum);
            if geometry.dtype.rotates_values() {
                rotate(out);
            }
        }
    }
}

/// How a key or value is stored.
trait Element: Copy {
    const BYTES: usize;
    /// 16 of them as floats.
    ///
    /// # Safety
    /// `16 * BYTES` bytes can be read at `from`.
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F;
}

/// Single precision.
#[derive(Clone, Copy)]
struct F32;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { simd.load(from.cast()) }
    }
}

/// The upper half of a single.
#[derive(Clone, Copy)]
struct Bf16;

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { simd.load_bf16(from) }
    }
}

/// Keys or values of a page, `[token][width]`.
#[derive(Clone, Copy)]
struct Rows<'a, E> {
    bytes: &'a [u8],
    element: PhantomData<E>,
}

impl<'a, E: Element> Rows<'a, E> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, element: PhantomData }
    }

    /// The first `tokens` rows.
    #[inline(always)]
    fn first(self, tokens: usize, width: usize) -> *const u8 {
        assert!(self.bytes.len() >= tokens * width * E::BYTES, "rows of a page");
        self.bytes.as_ptr()
    }
}

impl<'a> Rows<'a, F32> {
    fn of_floats(floats: &'a [f32]) -> Self {
        // SAFETY: any float is four bytes.
        Self::new(unsafe {
            std::slice::from_raw_parts(floats.as_ptr().cast(), std::mem::size_of_val(floats))
        })
    }
}

/// The first `tokens` rows of a plane as floats `[token][width]`, for widths that
/// are not whole vectors. The floats beyond `head_dim` stay zero.
fn unpack(dtype: KvDtype, plane: &[u8], tokens: usize, sizes: Sizes, floats: &mut [f32]) {
    let rows = plane.chunks_exact(sizes.head_dim * dtype.exact_bytes()).take(tokens);
    for (row, floats) in rows.zip(floats.chunks_exact_mut(sizes.width)) {
        match dtype {
            KvDtype::F32 => {
                for (float, bytes) in floats.iter_mut().zip(row.chunks_exact(4)) {
                    *float = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
            _ => {
                for (float, bytes) in floats.iter_mut().zip(row.chunks_exact(2)) {
                    let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
                    *float = f32::from_bits((bits as u32) << 16);
                }
            }
        }
    }
}

impl TaskScratch {
    fn prepare(&mut self, sizes: Sizes) {
        let queries = sizes.rows * sizes.heads;
        refill(&mut self.queries, queries * sizes.width, 0.0);
        if sizes.width != sizes.head_dim {
            refill(&mut self.keys, sizes.padded_tokens * sizes.width, 0.0);
            refill(&mut self.values, sizes.padded_tokens * sizes.width, 0.0);
        }
        refill(&mut self.scores, queries * sizes.padded_tokens, 0.0);
        self.segment.clear(queries, sizes.width);
        self.total.clear(queries, sizes.width);
    }

    /// Adds one page, of which row `r` sees `seen(r)` tokens.
    #[inline(always)]
    fn page<S: Simd, E: Element>(
        &mut self,
        simd: S,
        sizes: Sizes,
        seen: impl Fn(usize) -> usize,
        scale: f32,
        keys: Rows<'_, E>,
        values: Rows<'_, E>,
    ) {
        for row in 0..sizes.rows {
            self.score(simd, sizes, row, seen(row), scale, keys);
            self.soften(simd, sizes, row, seen(row));
        }
        self.accumulate(simd, sizes, seen, values);
    }

    /// Scores of a row's queries with the `seen` tokens of the page.
    #[inline(always)]
    fn score<S: Simd, E: Element>(
        &mut self,
        simd: S,
        sizes: Sizes,
        row: usize,
        seen: usize,
        scale: f32,
        keys: Rows<'_, E>,
    ) {
        let Sizes { heads, width, padded_tokens, .. } = sizes;
        let keys = keys.first(seen, width);
        let whole = seen / 4 * 4;
        let mut head = 0;
        while head < heads {
            let query = row * heads + head;
            let queries = &self.queries[query * width..];
            let scores = &mut self.scores[query * padded_tokens..];
            let mut scores = Scores { queries, width, scores, padded_tokens, scale };
            // SAFETY: there are `seen` keys.
            head += unsafe {
                match heads - head {
                    5 if S::MANY_REGISTERS => scores.fill::<S, E, 5>(simd, keys, whole, seen),
                    4.. if S::MANY_REGISTERS => scores.fill::<S, E, 4>(simd, keys, whole, seen),
                    2.. if S::MANY_REGISTERS => scores.fill::<S, E, 2>(simd, keys, whole, seen),
                    _ => scores.fill::<S, E, 1>(simd, keys, whole, seen),
                }
            };
        }
    }

    /// Scores of a row's queries to probabilities, which its `seen` tokens share.
    #[inline(always)]
    fn soften<S: Simd>(&mut self, simd: S, sizes: Sizes, row: usize, seen: usize) {
        if seen == 0 {
            return;
        }
        let padded = seen.next_multiple_of(LANES);
        for query in row * sizes.heads..(row + 1) * sizes.heads {
            let scores = &mut self.scores[query * sizes.padded_tokens..][..padded];
            scores[seen..].fill(f32::NEG_INFINITY);

            let mut largest = simd.splat(f32::NEG_INFINITY);
            for chunk in scores.chunks_exact(LANES) {
                // SAFETY: 16 floats.
                largest = simd.max(largest, unsafe { simd.load(chunk.as_ptr()) });
            }
            let (before, page) = (self.segment.largest[query], simd.largest(largest));
            let largest = if page > before { page } else { before };
            self.segment.largest[query] = largest;

            let mut sum = simd.splat(0.0);
            for chunk in scores.chunks_exact_mut(LANES) {
                // SAFETY: 16 floats.
                unsafe {
                    let score = simd.load(chunk.as_ptr());
                    let p = exp(simd, simd.sub(score, simd.splat(largest)));
                    simd.store(p, chunk.as_mut_ptr());
                    sum = simd.add(sum, p);
                }
            }
            let factor = exp_one(simd, before - largest);
            let sum = self.segment.sum[query].mul_add(factor, simd.sum(sum));
            self.segment.sum[query] = sum;
            if factor != 1.0 {
                let acc = &mut self.segment.acc[query * sizes.width..][..sizes.width];
                acc.iter_mut().for_each(|acc| *acc *= factor);
            }
        }
    }

    /// Adds the values of the page, weighed by the probabilities.
    #[inline(always)]
    fn accumulate<S: Simd, E: Element>(
        &mut self,
        simd: S,
        sizes: Sizes,
        seen: impl Fn(usize) -> usize,
        values: Rows<'_, E>,
    ) {
        let mut first = 0;
        while first < sizes.width {
            let vectors = if first + 2 * LANES <= sizes.width { 2 } else { 1 };
            for row in 0..sizes.rows {
                let mut head = 0;
                while head < sizes.heads {
                    let query = row * sizes.heads + head;
                    let strip = Strip { sizes, query, first, tokens: seen(row) };
                    head += match (vectors, sizes.heads - head) {
                        (2, 5) if S::MANY_REGISTERS => {
                            self.add_strip::<S, E, 5, 2>(simd, strip, values)
                        }
                        (2, 4..) if S::MANY_REGISTERS => {
                            self.add_strip::<S, E, 4, 2>(simd, strip, values)
                        }
                        (2, 2..) => self.add_strip::<S, E, 2, 2>(simd, strip, values),
                        (2, _) => self.add_strip::<S, E, 1, 2>(simd, strip, values),
                        (_, 4..) => self.add_strip::<S, E, 4, 1>(simd, strip, values),
                        _ => self.add_strip::<S, E, 1, 1>(simd, strip, values),
                    };
                }
            }
            first += vectors * LANES;
        }
    }

    /// `H` heads of one row, `V` vectors of their width; returns `H`.
    #[inline(always)]
    fn add_strip<S: Simd, E: Element, const H: usize, const V: usize>(
        &mut self,
        simd: S,
        strip: Strip,
        values: Rows<'_, E>,
    ) -> usize {
        let Strip { sizes: Sizes { width, padded_tokens, .. }, query, first, tokens } = strip;
        let mut scores = [&self.scores[..0]; H];
        for h in 0..H {
            scores[h] = &self.scores[(query + h) * padded_tokens..][..tokens];
        }
        let values = values.first(tokens, width);
        let acc = &mut self.segment.acc[query * width..(query + H) * width];
        debug_assert!(first + V * LANES <= width);
        // SAFETY: `first + V * 16 <= width`, and every row of `acc` and of
        // `values` has `width` elements; `token` stays below `tokens`.
        unsafe {
            let mut sums = [[simd.splat(0.0); V]; H];
            for h in 0..H {
                for v in 0..V {
                    sums[h][v] = simd.load(acc.as_ptr().add(h * width + first + v * LANES));
                }
            }
            for token in 0..tokens {
                let row = values.add((token * width + first) * E::BYTES);
                let mut value = [E::load(simd, row); V];
                for v in 1..V {
                    value[v] = E::load(simd, row.add(v * LANES * E::BYTES));
                }
                for h in 0..H {
                    let p = simd.splat(*scores[h].get_unchecked(token));
                    for v in 0..V {
                        sums[h][v] = simd.fma(p, value[v], sums[h][v]);
                    }
                }
            }
            for h in 0..H {
                for v in 0..V {
                    let to = acc.as_mut_ptr().add(h * width + first + v * LANES);
                    simd.store(sums[h][v], to);
                }
            }
        }
        H
    }

    /// Adds the segment to the total and starts a new one.
    #[inline(always)]
    fn merge<S: Simd>(&mut self, simd: S, sizes: Sizes) {
        let queries = sizes.rows * sizes.heads;
        let Self { segment, total, .. } = self;
        for query in 0..queries {
            if segment.largest[query] == f32::NEG_INFINITY {
                continue; // the row saw nothing of this segment
            }
            let (before, new) = (total.largest[query], segment.largest[query]);
            let largest = if new > before { new } else { before };
            let (old_factor, factor) =
                (exp_one(simd, before - largest), exp_one(simd, new - largest));
            total.largest[query] = largest;
            total.sum[query] = segment.sum[query].mul_add(factor, total.sum[query] * old_factor);
            let range = query * sizes.width..(query + 1) * sizes.width;
            for (total, segment) in total.acc[range.clone()].iter_mut().zip(&segment.acc[range]) {
                *total = segment.mul_add(factor, *total * old_factor);
            }
        }
        segment.clear(queries, sizes.width);
    }
}

/// What [`TaskScratch::add_strip`] works on.
#[derive(Clone, Copy)]
struct Strip {
    sizes: Sizes,
    /// First query.
    query: usize,
    /// First float of the width.
    first: usize,
    tokens: usize,
}

/// Scores of some heads of one row.
struct Scores<'a> {
    /// `[head][width]`
    queries: &'a [f32],
    width: usize,
    /// `[head][padded_tokens]`
    scores: &'a mut [f32],
    padded_tokens: usize,
    scale: f32,
}

impl Scores<'_> {
    /// Fills in the first `tokens` scores of `H` heads: four keys at a time up to
    /// `whole`, then one by one. Returns `H`.
    ///
    /// # Safety
    /// `keys` points to `tokens` keys of `width` elements.
    #[inline(always)]
    unsafe fn fill<S: Simd, E: Element, const H: usize>(
        &mut self,
        simd: S,
        keys: *const u8,
        whole: usize,
        tokens: usize,
    ) -> usize {
        assert!(self.queries.len() >= H * self.width);
        for token in (0..whole).step_by(4) {
            // SAFETY: four keys from `token` on, `H` queries.
            let partial = unsafe { self.partial_dots::<S, E, H, 4>(simd, keys, token) };
            for h in 0..H {
                let dots = simd.sum_four(partial[h]);
                let scores = &mut self.scores[h * self.padded_tokens + token..][..4];
                scores.iter_mut().zip(dots).for_each(|(score, dot)| *score = dot * self.scale);
            }
        }
        for token in whole..tokens {
            // SAFETY: one key, `H` queries.
            let partial = unsafe { self.partial_dots::<S, E, H, 1>(simd, keys, token) };
            for h in 0..H {
                self.scores[h * self.padded_tokens + token] = simd.sum(partial[h][0]) * self.scale;
            }
        }
        H
    }

    /// Lane `l` of result `[h][k]`: the sum over the inputs `i` with `i % 16 == l`
    /// of `query h · key (token + k)`.
    ///
    /// # Safety
    /// `keys` has keys up to `token + K`, and there are `H` queries.
    #[inline(always)]
    unsafe fn partial_dots<S: Simd, E: Element, const H: usize, const K: usize>(
        &self,
        simd: S,
        keys: *const u8,
        token: usize,
    ) -> [[S::F; K]; H] {
        let width = self.width;
        let mut sums = [[simd.splat(0.0); K]; H];
        for i in (0..width).step_by(LANES) {
            // SAFETY: `i + 16 <= width`, a multiple of 16 and the length of every query and key.
            unsafe {
                let mut key = [simd.splat(0.0); K];
                for k in 0..K {
                    key[k] = E::load(simd, keys.add(((token + k) * width + i) * E::BYTES));
                }
                for h in 0..H {
                    let q = simd.load(self.queries.as_ptr().add(h * width + i));
                    for k in 0..K {
                        sums[h][k] = simd.fma(q, key[k], sums[h][k]);
                    }
                }
            }
        }
        sums
    }
}

/// `exp` of a single value.
#[inline(always)]
fn exp_one<S: Simd>(simd: S, x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    // SAFETY: 16 floats.
    unsafe { simd.store(exp(simd, simd.splat(x)), lanes.as_mut_ptr()) };
    lanes[0]
}
