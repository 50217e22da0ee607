//! Exact pages: keys and values are floats, f32 or bf16.

use std::marker::PhantomData;

use llama4rs_tensor::KvDtype;

use super::work::{Sizes, Work};
use crate::simd::{Kernel, Simd, LANES};

/// How a key or value is stored.
pub trait Element: Copy {
    const BYTES: usize;
    /// 16 of them as floats.
    ///
    /// # Safety
    /// `16 * BYTES` bytes can be read at `from`.
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F;
}

/// Single precision.
#[derive(Clone, Copy)]
pub struct F32;

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
pub struct Bf16;

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
pub struct Rows<'a, E> {
    bytes: &'a [u8],
    /// As many bytes that are wanted soon; null: none.
    next: *const u8,
    element: PhantomData<E>,
}

impl<'a, E: Element> Rows<'a, E> {
    /// Rows in the bytes of a page.
    pub fn new(bytes: &'a [u8], next: *const u8) -> Self {
        Self { bytes, next, element: PhantomData }
    }

    /// What is wanted soon, to be asked for by the first query; null: nothing.
    #[inline(always)]
    fn ask(&self, query: usize) -> *const u8 {
        if query == 0 {
            self.next
        } else {
            std::ptr::null()
        }
    }

    /// The first `tokens` rows.
    #[inline(always)]
    fn first(self, tokens: usize, width: usize) -> *const u8 {
        assert!(self.bytes.len() >= tokens * width * E::BYTES, "rows of a page");
        self.bytes.as_ptr()
    }
}

impl<'a> Rows<'a, F32> {
    /// Unpacked rows.
    pub fn of_floats(floats: &'a [f32]) -> Self {
        // SAFETY: any float is four bytes.
        let bytes = unsafe {
            std::slice::from_raw_parts(floats.as_ptr().cast(), std::mem::size_of_val(floats))
        };
        Self::new(bytes, std::ptr::null())
    }
}

/// The first `tokens` rows of a plane as floats `[token][width]`, for widths that
/// are not whole vectors. The floats beyond `head_dim` stay zero.
pub fn unpack(dtype: KvDtype, plane: &[u8], tokens: usize, sizes: Sizes, floats: &mut [f32]) {
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

/// An exact page for the queries of a task.
pub struct ExactPage<'w, 'a, 'k, E> {
    pub work: &'w mut Work<'a>,
    /// Tokens before the page, and in it.
    pub before: usize,
    pub page_tokens: usize,
    /// Tokens of all pages that the first row sees; each later row sees one more.
    pub visible: usize,
    pub keys: Rows<'k, E>,
    pub values: Rows<'k, E>,
}

impl<E: Element> Kernel for ExactPage<'_, '_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { work, before, page_tokens, visible, keys, values } = self;
        let seen = |row: usize| (visible + row).saturating_sub(before).min(page_tokens);
        for row in 0..work.sizes.rows {
            work.score(simd, row, seen(row), keys);
            work.soften(simd, row, seen(row), None);
        }
        work.accumulate(simd, seen, values);
    }
}

impl Work<'_> {
    /// Scores of a row's queries with the `seen` tokens of the page.
    #[inline(always)]
    fn score<S: Simd, E: Element>(&mut self, simd: S, row: usize, seen: usize, keys: Rows<'_, E>) {
        let Sizes { heads, width, padded_tokens, .. } = self.sizes;
        let scale = self.scale;
        let rows = keys;
        let keys = rows.first(seen, width);
        let whole = seen / 4 * 4;
        let mut head = 0;
        while head < heads {
            let query = row * heads + head;
            let queries = &self.queries[query * width..];
            let scores = &mut self.scores[query * padded_tokens..];
            let next = rows.ask(query);
            let mut scores = Scores { queries, width, scores, padded_tokens, scale, next };
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

    /// Adds the values of the page, weighed by the probabilities.
    #[inline(always)]
    fn accumulate<S: Simd, E: Element>(
        &mut self,
        simd: S,
        seen: impl Fn(usize) -> usize,
        values: Rows<'_, E>,
    ) {
        let sizes = self.sizes;
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
        let next = values.ask(query);
        let values = values.first(tokens, width);
        let acc = &mut self.partial.acc[query * width..(query + H) * width];
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
                let start = (token * width + first) * E::BYTES;
                let row = values.add(start);
                if !next.is_null() {
                    for line in (0..V * LANES * E::BYTES).step_by(64) {
                        simd.prefetch_far(next.wrapping_add(start + line));
                    }
                }
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
}

/// What [`Work::add_strip`] works on.
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
    /// Keys that are wanted soon; null: none.
    next: *const u8,
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
            if !self.next.is_null() {
                let four = 4 * self.width * E::BYTES;
                for line in (0..four).step_by(64) {
                    simd.prefetch_far(self.next.wrapping_add(token / 4 * four + line));
                }
            }
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
