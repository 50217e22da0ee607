//! The queries of some rows that share one key/value head.

use llama4rs_tensor::KvDtype;

use super::SEGMENT_TOKENS;
use crate::kernels::exp::exp;
use crate::kernels::kv_pages::KvPages;
use crate::parallel::Shared;
use crate::simd::{Kernel, Simd, LANES};
use crate::Tensor;

/// Working memory of one task. A *query* is one head of one row; the heads of a
/// row follow each other.
#[derive(Default)]
pub struct TaskScratch {
    /// `[query][width]`
    queries: Vec<f32>,
    /// `[page token][width]`, unpacked.
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
    pub pages: &'a [u32],
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
            query[..sizes.head_dim].copy_from_slice(&row[head * sizes.head_dim..][..sizes.head_dim]);
        }

        let last_visible = visible + self.rows - 1;
        let segment_pages = (SEGMENT_TOKENS / page_tokens).max(1);
        for (i, &page) in pages[..last_visible.div_ceil(page_tokens)].iter().enumerate() {
            if i > 0 && i % segment_pages == 0 {
                scratch.merge(simd, sizes);
            }
            let before = i * page_tokens;
            let tokens = page_tokens.min(last_visible - before);
            let plane = |value| pool.plane(page as usize, layer, kv_head, value);
            unpack(simd, geometry.dtype, plane(false), tokens, sizes, &mut scratch.keys);
            unpack(simd, geometry.dtype, plane(true), tokens, sizes, &mut scratch.values);
            // Tokens of this page that row `r` sees.
            let seen = |r: usize| (visible + r).saturating_sub(before).min(page_tokens);
            scratch.score(simd, sizes, tokens, scale);
            for row in 0..sizes.rows {
                scratch.soften(simd, sizes, row, seen(row));
            }
            scratch.accumulate(simd, sizes, seen);
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
        }
    }
}

/// The first `tokens` rows of a plane as floats `[token][width]`.
#[inline(always)]
fn unpack<S: Simd>(
    simd: S,
    dtype: KvDtype,
    plane: &[u8],
    tokens: usize,
    sizes: Sizes,
    floats: &mut [f32],
) {
    let Sizes { head_dim, width, .. } = sizes;
    let rows = plane.chunks_exact(head_dim * dtype.bytes()).take(tokens);
    for (row, floats) in rows.zip(floats.chunks_exact_mut(width)) {
        match dtype {
            KvDtype::F32 => {
                for (float, bytes) in floats.iter_mut().zip(row.chunks_exact(4)) {
                    *float = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
            KvDtype::Bf16 => {
                let whole = head_dim / LANES * LANES;
                for i in (0..whole).step_by(LANES) {
                    // SAFETY: 16 bf16 numbers are left in the row, 16 floats in `floats`.
                    unsafe {
                        let lanes = simd.load_bf16(row.as_ptr().add(i * 2));
                        simd.store(lanes, floats.as_mut_ptr().add(i));
                    }
                }
                for i in whole..head_dim {
                    let bits = u16::from_le_bytes([row[i * 2], row[i * 2 + 1]]);
                    floats[i] = f32::from_bits((bits as u32) << 16);
                }
            }
        }
    }
}

impl TaskScratch {
    fn prepare(&mut self, sizes: Sizes) {
        let queries = sizes.rows * sizes.heads;
        refill(&mut self.queries, queries * sizes.width, 0.0);
        refill(&mut self.keys, sizes.padded_tokens * sizes.width, 0.0);
        refill(&mut self.values, sizes.padded_tokens * sizes.width, 0.0);
        refill(&mut self.scores, queries * sizes.padded_tokens, 0.0);
        self.segment.clear(queries, sizes.width);
        self.total.clear(queries, sizes.width);
    }

    /// Scores of all queries with the first `tokens` keys of the page, and with
    /// a few more that nobody reads.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, sizes: Sizes, tokens: usize, scale: f32) {
        let width = sizes.width;
        for first in (0..tokens).step_by(LANES) {
            let keys = &self.keys[first * width..(first + LANES) * width];
            let scores = self.scores.chunks_exact_mut(sizes.padded_tokens);
            for (query, scores) in self.queries.chunks_exact(width).zip(scores) {
                let dots = dots(simd, query, keys);
                let target = &mut scores[first..first + LANES];
                // SAFETY: `target` has 16 floats.
                unsafe { simd.store(simd.mul(dots, simd.splat(scale)), target.as_mut_ptr()) };
            }
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
    fn accumulate<S: Simd>(&mut self, simd: S, sizes: Sizes, seen: impl Fn(usize) -> usize) {
        // Four heads at a time read the values less often; fewer heads need more
        // vectors of each to hide the latency of the multiply-add.
        let wide = if sizes.heads >= 4 { 2 * LANES } else { 4 * LANES };
        let mut first = 0;
        while first < sizes.width {
            let strip = if first + wide <= sizes.width { wide } else { LANES };
            for row in 0..sizes.rows {
                let tokens = seen(row);
                let mut head = 0;
                while head < sizes.heads {
                    let left = sizes.heads - head;
                    let query = row * sizes.heads + head;
                    let task = Strip { sizes, query, first, tokens };
                    head += match (strip / LANES, left) {
                        (2, 4..) if S::MANY_REGISTERS => self.add_strip::<S, 4, 2>(simd, task),
                        (2, 2..) => self.add_strip::<S, 2, 2>(simd, task),
                        (2, _) => self.add_strip::<S, 1, 2>(simd, task),
                        (4, 2..) if S::MANY_REGISTERS => self.add_strip::<S, 2, 4>(simd, task),
                        (4, _) => self.add_strip::<S, 1, 4>(simd, task),
                        (_, 4..) => self.add_strip::<S, 4, 1>(simd, task),
                        _ => self.add_strip::<S, 1, 1>(simd, task),
                    };
                }
            }
            first += strip;
        }
    }

    /// `H` heads of one row, `V` vectors of their width; returns `H`.
    #[inline(always)]
    fn add_strip<S: Simd, const H: usize, const V: usize>(
        &mut self,
        simd: S,
        strip: Strip,
    ) -> usize {
        let Strip { sizes: Sizes { width, padded_tokens, .. }, query, first, tokens } = strip;
        let scores: [&[f32]; H] =
            std::array::from_fn(|h| &self.scores[(query + h) * padded_tokens..][..tokens]);
        let values = &self.values[..tokens * width];
        let acc = &mut self.segment.acc[query * width..(query + H) * width];
        debug_assert!(first + V * LANES <= width);
        // SAFETY: `first + V * 16 <= width`, and every row of `acc` and of
        // `values` has `width` floats; `token` stays below `tokens`.
        unsafe {
            let mut sums: [[S::F; V]; H] = std::array::from_fn(|h| {
                std::array::from_fn(|v| simd.load(acc.as_ptr().add(h * width + first + v * LANES)))
            });
            for token in 0..tokens {
                let row = values.as_ptr().add(token * width + first);
                let value: [S::F; V] = std::array::from_fn(|v| simd.load(row.add(v * LANES)));
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
            for (total, segment) in
                total.acc[range.clone()].iter_mut().zip(&segment.acc[range])
            {
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

/// The products of one query with 16 keys `[16][width]`.
#[inline(always)]
fn dots<S: Simd>(simd: S, query: &[f32], keys: &[f32]) -> S::F {
    let width = query.len();
    assert!(keys.len() == LANES * width && width % LANES == 0);
    if S::MANY_REGISTERS {
        return simd.sum_each(partial_dots::<S, LANES>(simd, query, keys));
    }
    let mut sums = [0.0; LANES];
    for (sums, keys) in sums.chunks_exact_mut(4).zip(keys.chunks_exact(4 * width)) {
        for (sum, lanes) in sums.iter_mut().zip(partial_dots::<S, 4>(simd, query, keys)) {
            *sum = simd.sum(lanes);
        }
    }
    // SAFETY: 16 floats.
    unsafe { simd.load(sums.as_ptr()) }
}

/// Lane `l` of result `k`: the sum over the inputs `i` with `i % 16 == l` of `query · keys[k]`.
#[inline(always)]
fn partial_dots<S: Simd, const K: usize>(simd: S, query: &[f32], keys: &[f32]) -> [S::F; K] {
    let width = query.len();
    assert!(keys.len() >= K * width);
    let mut sums = [simd.splat(0.0); K];
    for i in (0..width / LANES).map(|i| i * LANES) {
        // SAFETY: `i + 16 <= width`, and `keys` has `K` rows of `width` floats.
        unsafe {
            let q = simd.load(query.as_ptr().add(i));
            for k in 0..K {
                sums[k] = simd.fma(q, simd.load(keys.as_ptr().add(k * width + i)), sums[k]);
            }
        }
    }
    sums
}

/// `exp` of a single value.
#[inline(always)]
fn exp_one<S: Simd>(simd: S, x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    // SAFETY: 16 floats.
    unsafe { simd.store(exp(simd, simd.splat(x)), lanes.as_mut_ptr()) };
    lanes[0]
}
