//! What the queries of a task have gathered, and how they gather more.

use crate::kernels::exp::exp;
use crate::simd::pairs::{put_factors, SUM_SCALE};
use crate::simd::{Simd, LANES};

/// Sizes that the steps of a task share. A *query* is one head of one row; the
/// heads of a row follow each other.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Rows, and query heads of each.
    pub rows: usize,
    pub heads: usize,
    /// `head_dim` and the next multiple of 16.
    pub head_dim: usize,
    pub width: usize,
    /// Tokens of a page, as a multiple of 16.
    pub padded_tokens: usize,
}

impl Sizes {
    pub fn queries(&self) -> usize {
        self.rows * self.heads
    }

    /// Floats of a [`Partial`].
    pub fn partial(&self) -> usize {
        self.queries() * (self.width + 2)
    }
}

/// Unfinished softmax sums of every query.
pub struct Partial<'a> {
    /// Largest score so far.
    pub largest: &'a mut [f32],
    /// `Σ exp(score - largest)`
    pub sum: &'a mut [f32],
    /// `Σ exp(score - largest) value`, `[query][width]`
    pub acc: &'a mut [f32],
}

impl<'a> Partial<'a> {
    /// The sums in the first [`Sizes::partial`] of these floats.
    pub fn of(sizes: Sizes, floats: &'a mut [f32]) -> Self {
        let (largest, rest) = floats[..sizes.partial()].split_at_mut(sizes.queries());
        let (sum, acc) = rest.split_at_mut(sizes.queries());
        Self { largest, sum, acc }
    }

    /// Nothing seen yet.
    pub fn clear(&mut self) {
        self.largest.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.acc.fill(0.0);
    }

    /// Adds the sums of the next segment.
    #[inline(always)]
    pub fn merge<S: Simd>(&mut self, simd: S, sizes: Sizes, segment: &Partial<'_>) {
        for query in 0..sizes.queries() {
            if segment.largest[query] == f32::NEG_INFINITY {
                continue; // the row saw nothing of this segment
            }
            let (before, new) = (self.largest[query], segment.largest[query]);
            let largest = if new > before { new } else { before };
            let mut changes = [0.0; LANES];
            (changes[0], changes[1]) = (before - largest, new - largest);
            let [old_factor, factor, ..] = exp_lanes(simd, changes);
            self.largest[query] = largest;
            self.sum[query] = segment.sum[query].mul_add(factor, self.sum[query] * old_factor);
            let range = query * sizes.width..(query + 1) * sizes.width;
            for (total, segment) in self.acc[range.clone()].iter_mut().zip(&segment.acc[range]) {
                *total = segment.mul_add(factor, *total * old_factor);
            }
        }
    }
}

/// The queries of a task on their way through the pages of one segment.
pub struct Work<'a> {
    pub sizes: Sizes,
    /// Factor of every score.
    pub scale: f32,
    /// `[query][width]`
    pub queries: &'a [f32],
    /// `[query][page token]`: scores, then probabilities.
    pub scores: &'a mut [f32],
    pub partial: Partial<'a>,
    /// Where the same head of the next page begins, to be asked for in time.
    pub next: *const u8,
}

impl Work<'_> {
    /// Scores of a row's queries to probabilities, which its `seen` tokens share.
    /// What was gathered before is scaled to the new largest score. With `factors`, for
    /// all tokens of each query, they are rounded and go there.
    #[inline(always)]
    pub fn soften<S: Simd>(
        &mut self,
        simd: S,
        row: usize,
        seen: usize,
        mut factors: Option<&mut [u32]>,
    ) {
        let heads = self.sizes.heads;
        if seen == 0 {
            return;
        }
        for first in (row * heads..(row + 1) * heads).step_by(LANES) {
            let queries = first..(first + LANES).min((row + 1) * heads);
            let mut changes = [0.0; LANES];
            for (query, change) in queries.clone().zip(&mut changes) {
                *change = self.raise_largest(simd, query, seen);
            }
            let changes = exp_lanes(simd, changes);
            let words = self.sizes.padded_tokens / 2 * S::PAIR_WORDS;
            for (query, change) in queries.zip(changes) {
                let at = (query - row * heads) * words;
                let factors = factors.as_mut().map(|factors| &mut factors[at..at + words]);
                self.add_probabilities(simd, query, seen, change, factors);
            }
        }
    }

    /// Takes the page's scores into the largest score; gives its change.
    #[inline(always)]
    fn raise_largest<S: Simd>(&mut self, simd: S, query: usize, seen: usize) -> f32 {
        let scores = &mut self.scores[query * self.sizes.padded_tokens..];
        let scores = &mut scores[..seen.next_multiple_of(LANES)];
        scores[seen..].fill(f32::NEG_INFINITY);
        let mut largest = simd.splat(f32::NEG_INFINITY);
        for chunk in scores.chunks_exact(LANES) {
            // SAFETY: 16 floats.
            largest = simd.max(largest, unsafe { simd.load(chunk.as_ptr()) });
        }
        let (before, page) = (self.partial.largest[query], simd.largest(largest));
        let largest = if page > before { page } else { before };
        self.partial.largest[query] = largest;
        before - largest
    }

    /// Turns scores into probabilities; `change` scales what was there before.
    #[inline(always)]
    fn add_probabilities<S: Simd>(
        &mut self,
        simd: S,
        query: usize,
        seen: usize,
        change: f32,
        factors: Option<&mut [u32]>,
    ) {
        let Sizes { width, padded_tokens, .. } = self.sizes;
        let largest = simd.splat(self.partial.largest[query]);
        let scores = &mut self.scores[query * padded_tokens..][..seen.next_multiple_of(LANES)];
        let mut sum = simd.splat(0.0);
        let sum = match factors {
            None => {
                for chunk in scores.chunks_exact_mut(LANES) {
                    // SAFETY: 16 floats.
                    unsafe {
                        let p = exp(simd, simd.sub(simd.load(chunk.as_ptr()), largest));
                        simd.store(p, chunk.as_mut_ptr());
                        sum = simd.add(sum, p);
                    }
                }
                simd.sum(sum)
            }
            Some(factors) => {
                let factors = factors.chunks_exact_mut(LANES / 2 * S::PAIR_WORDS);
                for (chunk, factors) in scores.chunks_exact(LANES).zip(factors) {
                    // SAFETY: 16 floats.
                    let score = unsafe { simd.load(chunk.as_ptr()) };
                    let p = exp(simd, simd.sub(score, largest));
                    sum = simd.add(sum, put_factors(simd, p, factors));
                }
                simd.sum(sum) * SUM_SCALE
            }
        };
        self.partial.sum[query] = self.partial.sum[query].mul_add(change, sum);
        if change != 1.0 {
            let acc = &mut self.partial.acc[query * width..][..width];
            acc.iter_mut().for_each(|acc| *acc *= change);
        }
    }
}

/// `exp` of each of 16 numbers.
#[inline(always)]
fn exp_lanes<S: Simd>(simd: S, x: [f32; LANES]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    // SAFETY: 16 floats.
    unsafe { simd.store(exp(simd, simd.load(x.as_ptr())), lanes.as_mut_ptr()) };
    lanes
}
