//! Exact pages of bf16 with fast arithmetic: products of pairs ([`crate::simd::pairs`]).
//!
//! Keys become panels of 16 tokens, channel pair by channel pair, and values panels of 16
//! channels, token pair by token pair: once per page, for all queries of the task, or in
//! registers where it has one row. A query's
//! channels, or its probabilities, are the factors that a panel is multiplied by, so no product
//! needs a sum across lanes.

use std::ops::Range;

use super::work::{Sizes, Work};
use crate::simd::pairs::{put_factors, SUM_SCALE};
use crate::simd::{Kernel, Simd, LANES};

/// Channels that a line of 16 words holds.
pub const LINE: usize = 2 * LANES;

/// Working memory for pages of pairs.
#[derive(Default)]
pub struct PairScratch {
    /// `[panel of 16 tokens][pair of channels][token]`
    keys: Vec<u32>,
    /// `[panel of 16 channels][pair of tokens][channel]`
    values: Vec<u32>,
    /// `[query][pair of channels]`, factors.
    queries: Vec<u32>,
    /// `[query][pair of tokens]`, factors.
    probabilities: Vec<u32>,
}

impl PairScratch {
    /// Rounds the queries, `[query][width]`, and makes room.
    #[inline(always)]
    pub fn prepare<S: Simd>(&mut self, simd: S, sizes: Sizes, queries: &[f32]) {
        let Sizes { width, padded_tokens, .. } = sizes;
        self.keys.resize(padded_tokens * width / 2, 0);
        self.values.resize(padded_tokens * width / 2, 0);
        self.queries.resize(queries.len() / 2 * S::PAIR_WORDS, 0);
        self.probabilities.resize(sizes.queries() * padded_tokens / 2 * S::PAIR_WORDS, 0);
        let words = self.queries.chunks_exact_mut(LANES / 2 * S::PAIR_WORDS);
        for (words, floats) in words.zip(queries.chunks_exact(LANES)) {
            // SAFETY: 16 floats.
            put_factors(simd, unsafe { simd.load(floats.as_ptr()) }, words);
        }
    }
}

/// A page of pairs for the queries of a task.
pub struct PairPage<'w, 'a, 'k> {
    pub work: &'w mut Work<'a>,
    pub scratch: &'w mut PairScratch,
    /// Tokens before the page, and in it.
    pub before: usize,
    pub page_tokens: usize,
    /// Tokens of all pages that the first row sees; each later row sees one more.
    pub visible: usize,
    /// `[token][width]`
    pub keys: &'k [u8],
    pub values: &'k [u8],
    pub ahead: Ahead,
}

/// Calls `$call` with `$r` queries at a time, from the first on.
macro_rules! by_queries {
    ($queries:expr, |$r:ident, $query:ident| $call:expr) => {{
        let mut $query = $queries.start;
        while $query < $queries.end {
            $query += by_queries!(@ $queries.end - $query, $r, $call, 6 5 4 2 1);
        }
    }};
    (@ $left:expr, $r:ident, $call:expr, $($n:literal)+) => {
        match $left {
            $($n.. => { const $r: usize = $n; $call; $r })+
            0 => unreachable!("queries are left"),
        }
    };
}

impl Kernel for PairPage<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let Sizes { rows, heads, padded_tokens, .. } = self.work.sizes;
        let first = (0..rows).find(|&row| self.seen(row) > 0).unwrap_or(rows);
        let most = self.seen(rows - 1);
        // The heads of one row use a panel once: it stays in registers.
        let once = rows == 1 && S::MANY_REGISTERS;
        if once {
            by_queries!(0..heads, |R, query| self.score_once::<S, R>(simd, query, most));
        } else {
            self.gather_keys(simd, most);
            self.score(simd, first * heads..rows * heads, most.div_ceil(LANES));
        }
        let words = heads * padded_tokens / 2 * S::PAIR_WORDS;
        for row in first..rows {
            let seen = self.seen(row);
            let factors = &mut self.scratch.probabilities[row * words..][..words];
            self.work.soften(simd, row, seen, Some(factors));
        }
        if once {
            by_queries!(0..heads, |R, query| self.add_once::<S, R>(simd, query, most));
            return;
        }
        self.gather_values(simd, most);
        // Rows that see equally much go together.
        let mut row = first;
        while row < rows {
            let seen = self.seen(row);
            let end = (row..rows).find(|&row| self.seen(row) != seen).unwrap_or(rows);
            self.accumulate(simd, row * heads..end * heads, seen);
            row = end;
        }
    }
}

impl PairPage<'_, '_, '_> {
    /// Tokens of the page that a row sees.
    #[inline(always)]
    fn seen(&self, row: usize) -> usize {
        (self.visible + row).saturating_sub(self.before).min(self.page_tokens)
    }

    /// Lays out the first `tokens` keys, and those that fill up a panel.
    #[inline(always)]
    fn gather_keys<S: Simd>(&mut self, simd: S, tokens: usize) {
        let Sizes { width, .. } = self.work.sizes;
        let panels = tokens.div_ceil(LANES);
        let to = &mut self.scratch.keys[..panels * LANES * width / 2];
        assert!(self.keys.len() >= panels * LANES * width * 2, "keys of a page");
        for (panel, to) in to.chunks_exact_mut(LANES * width / 2).enumerate() {
            for (i, to) in to.chunks_exact_mut(LANES * LANES).enumerate() {
                let at = panel * LANES * width * 2 + i * 2 * LINE;
                self.ahead.ask(simd, LANES / 2);
                // SAFETY: 16 keys of `2 * width` bytes, of which 64 are read from `64 * i` on.
                let lines =
                    unsafe { simd.transpose(self.keys.as_ptr().wrapping_add(at), width * 2) };
                put_lines(simd, lines, to);
            }
        }
    }

    /// Scores of some queries with the first `tokens` keys, and those that fill up a panel.
    #[inline(always)]
    fn score_once<S: Simd, const R: usize>(&mut self, simd: S, query: usize, tokens: usize) {
        let Sizes { width, .. } = self.work.sizes;
        let panels = tokens.div_ceil(LANES);
        assert!(self.keys.len() >= panels * LANES * width * 2, "keys of a page");
        let x = Factors::<S>::of(&self.scratch.queries, query, width / 2);
        assert!(x.words.len() >= R * x.stride, "factors of the queries");
        for panel in 0..panels {
            let mut sums = [simd.splat(0.0); R];
            for i in 0..width / LINE {
                self.ahead.ask(simd, LANES);
                let at = panel * LANES * width * 2 + i * 2 * LINE;
                // SAFETY: as in `gather_keys`.
                let lines =
                    unsafe { simd.transpose(self.keys.as_ptr().wrapping_add(at), width * 2) };
                for l in 0..LANES {
                    let line = simd.normal_pairs(lines[l]);
                    let at = (i * LANES + l) * S::PAIR_WORDS;
                    for r in 0..R {
                        let x = x.words.as_ptr().wrapping_add(r * x.stride + at);
                        // SAFETY: every query has factors for all pairs.
                        sums[r] = unsafe { simd.dot_pairs(sums[r], line, x, 1) };
                    }
                }
            }
            for r in 0..R {
                put_scores(simd, self.work, query + r, panel, sums[r]);
            }
        }
    }

    /// Lays out the first `tokens` values, and one more if they are odd.
    #[inline(always)]
    fn gather_values<S: Simd>(&mut self, simd: S, tokens: usize) {
        let Sizes { width, padded_tokens, .. } = self.work.sizes;
        let pairs = padded_tokens / 2;
        let bytes = 2 * width;
        assert!(self.values.len() >= tokens.next_multiple_of(2) * bytes, "values of a page");
        for pair in 0..tokens.div_ceil(2) {
            for i in 0..width / LINE {
                let at = 2 * pair * bytes + i * 2 * LINE;
                self.ahead.ask(simd, 1);
                let row = self.values.as_ptr().wrapping_add(at);
                // SAFETY: two values of `bytes`, of which 64 are read from `64 * i` on.
                let lines = unsafe { simd.interleave(row, row.wrapping_add(bytes)) };
                for p in 0..2 {
                    let to = &mut self.scratch.values[((2 * i + p) * pairs + pair) * LANES..];
                    put_lines(simd, [lines[p]], &mut to[..LANES]);
                }
            }
        }
    }

    /// Adds the first `tokens` values, weighed by the probabilities of some queries.
    #[inline(always)]
    fn add_once<S: Simd, const R: usize>(&mut self, simd: S, query: usize, tokens: usize) {
        let Sizes { width, padded_tokens, .. } = self.work.sizes;
        let bytes = 2 * width;
        assert!(self.values.len() >= tokens * bytes, "values of a page");
        let x = Factors::<S>::of(&self.scratch.probabilities, query, padded_tokens / 2);
        assert!(x.words.len() >= R * x.stride && tokens <= padded_tokens, "factors of the queries");
        // What is beside an odd last value.
        let nothing = [0u8; 2 * LINE];
        for i in 0..width / LINE {
            let mut sums = [[simd.splat(0.0); 2]; R];
            for pair in 0..tokens.div_ceil(2) {
                self.ahead.ask(simd, 2);
                let row = self.values.as_ptr().wrapping_add(2 * pair * bytes + i * 2 * LINE);
                let next =
                    if 2 * pair + 1 < tokens { row.wrapping_add(bytes) } else { nothing.as_ptr() };
                // SAFETY: 64 bytes of two values, or of one and of zeros.
                let lines = unsafe { simd.interleave(row, next) };
                let lines = [simd.normal_pairs(lines[0]), simd.normal_pairs(lines[1])];
                for r in 0..R {
                    let x = x.words.as_ptr().wrapping_add(r * x.stride + pair * S::PAIR_WORDS);
                    for p in 0..2 {
                        // SAFETY: every query has factors for all pairs.
                        sums[r][p] = unsafe { simd.dot_pairs(sums[r][p], lines[p], x, 1) };
                    }
                }
            }
            for r in 0..R {
                for p in 0..2 {
                    add_values(simd, self.work, query + r, 2 * i + p, sums[r][p]);
                }
            }
        }
    }

    /// Scores of some queries with some panels of keys.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, queries: Range<usize>, panels: usize) {
        let mut panel = 0;
        while panel < panels {
            if S::MANY_REGISTERS && panel + 4 <= panels {
                by_queries!(queries, |R, query| self.score_tile::<S, R, 4>(simd, query, panel));
                panel += 4;
            } else {
                by_queries!(queries, |R, query| self.score_tile::<S, R, 1>(simd, query, panel));
                panel += 1;
            }
        }
    }

    #[inline(always)]
    fn score_tile<S: Simd, const R: usize, const P: usize>(
        &mut self,
        simd: S,
        query: usize,
        panel: usize,
    ) {
        let pairs = self.work.sizes.width / 2;
        let x = Factors::<S>::of(&self.scratch.queries, query, pairs);
        let keys = &self.scratch.keys[panel * pairs * LANES..];
        let mut dots = [[simd.splat(0.0); P]; R];
        x.add_dots(simd, keys, pairs, 0..pairs, false, &mut dots, &mut self.ahead);
        for r in 0..R {
            for p in 0..P {
                put_scores(simd, self.work, query + r, panel + p, dots[r][p]);
            }
        }
    }

    /// Adds the first `tokens` values, weighed by the probabilities of some queries.
    #[inline(always)]
    fn accumulate<S: Simd>(&mut self, simd: S, queries: Range<usize>, tokens: usize) {
        let panels = self.work.sizes.width / LANES;
        let mut panel = 0;
        while panel < panels {
            if S::MANY_REGISTERS && panel + 4 <= panels {
                by_queries!(queries, |R, query| {
                    self.add_tile::<S, R, 4>(simd, query, panel, tokens)
                });
                panel += 4;
            } else {
                by_queries!(queries, |R, query| {
                    self.add_tile::<S, R, 1>(simd, query, panel, tokens)
                });
                panel += 1;
            }
        }
    }

    #[inline(always)]
    fn add_tile<S: Simd, const R: usize, const P: usize>(
        &mut self,
        simd: S,
        query: usize,
        panel: usize,
        tokens: usize,
    ) {
        let pairs = self.work.sizes.padded_tokens / 2;
        let x = Factors::<S>::of(&self.scratch.probabilities, query, pairs);
        let values = &self.scratch.values[panel * pairs * LANES..];
        let mut sums = [[simd.splat(0.0); P]; R];
        let ahead = &mut self.ahead;
        x.add_dots(simd, values, pairs, 0..tokens / 2, false, &mut sums, ahead);
        if tokens % 2 == 1 {
            // What the row does not see may be anything, which zero would not silence.
            x.add_dots(simd, values, pairs, tokens / 2..tokens / 2 + 1, true, &mut sums, ahead);
        }
        for r in 0..R {
            for p in 0..P {
                add_values(simd, self.work, query + r, panel + p, sums[r][p]);
            }
        }
    }
}

/// Sums over the channels to scores of a query with a panel of keys.
#[inline(always)]
fn put_scores<S: Simd>(simd: S, work: &mut Work<'_>, query: usize, panel: usize, sums: S::F) {
    let at = query * work.sizes.padded_tokens + panel * LANES;
    let unscaled = simd.mul(sums, simd.splat(SUM_SCALE));
    let scores = simd.mul(unscaled, simd.splat(work.scale));
    // SAFETY: 16 floats.
    unsafe { simd.store(scores, work.scores[at..][..LANES].as_mut_ptr()) };
}

/// Adds sums over the tokens to what a query has of a panel of channels.
#[inline(always)]
fn add_values<S: Simd>(simd: S, work: &mut Work<'_>, query: usize, panel: usize, sums: S::F) {
    let at = query * work.sizes.width + panel * LANES;
    let acc = &mut work.partial.acc[at..][..LANES];
    // SAFETY: 16 floats.
    unsafe {
        let sum = simd.fma(sums, simd.splat(SUM_SCALE), simd.load(acc.as_ptr()));
        simd.store(sum, acc.as_mut_ptr());
    }
}

/// What is wanted soon, asked for a few lines at a time: more at once would wait for each other.
pub struct Ahead {
    next: *const u8,
    lines: usize,
}

impl Ahead {
    /// The bytes of one head in the next page; null: none.
    pub fn new(next: *const u8, bytes: usize) -> Self {
        Self { next, lines: if next.is_null() { 0 } else { bytes / 64 } }
    }

    #[inline(always)]
    fn ask<S: Simd>(&mut self, simd: S, lines: usize) {
        for _ in 0..lines.min(self.lines) {
            simd.prefetch_far(self.next);
            self.next = self.next.wrapping_add(64);
        }
        self.lines = self.lines.saturating_sub(lines);
    }
}

/// Writes lines of pairs one after another.
#[inline(always)]
fn put_lines<S: Simd, const N: usize>(simd: S, lines: [S::W; N], to: &mut [u32]) {
    assert!(to.len() == N * LANES);
    for i in 0..N {
        let line = simd.f32_code(simd.normal_pairs(lines[i]));
        // SAFETY: 16 words, and floats may have any bits.
        unsafe { simd.store(line, to.as_mut_ptr().add(i * LANES).cast()) };
    }
}

/// Factors of some queries.
struct Factors<'a, S> {
    words: &'a [u32],
    /// Words from one query to the next.
    stride: usize,
    simd: std::marker::PhantomData<S>,
}

impl<'a, S: Simd> Factors<'a, S> {
    /// Those from `query` on, of which each has some `pairs`.
    #[inline(always)]
    fn of(words: &'a [u32], query: usize, pairs: usize) -> Self {
        let stride = pairs * S::PAIR_WORDS;
        Self { words: &words[query * stride..], stride, simd: std::marker::PhantomData }
    }

    /// `sums[r][p] += Σ factors[r] · panels[p]` over the pairs of `range`, of `pairs` that a
    /// panel has. Of `halves`, only the first number of each pair counts.
    #[inline(always)]
    fn add_dots<const R: usize, const P: usize>(
        &self,
        simd: S,
        panels: &[u32],
        pairs: usize,
        range: Range<usize>,
        halves: bool,
        sums: &mut [[S::F; P]; R],
        ahead: &mut Ahead,
    ) {
        assert!(self.words.len() >= R * self.stride && self.stride >= range.end * S::PAIR_WORDS);
        assert!(panels.len() >= P * pairs * LANES && range.end <= pairs);
        let mut local = *sums;
        for i in range {
            ahead.ask(simd, 2);
            let x = self.words.as_ptr().wrapping_add(i * S::PAIR_WORDS);
            // SAFETY: every panel has lines for all `pairs`.
            let mut lines = [unsafe { simd.line(panels.as_ptr().add(i * LANES).cast()) }; P];
            for p in 0..P {
                // SAFETY: as above.
                unsafe {
                    let line = panels.as_ptr().add((p * pairs + i) * LANES);
                    lines[p] = match halves {
                        false => simd.line(line.cast()),
                        true => first_halves(simd, line),
                    };
                }
            }
            for r in 0..R {
                for p in 0..P {
                    // SAFETY: every query has factors for all pairs.
                    local[r][p] = unsafe {
                        simd.dot_pairs(local[r][p], lines[p], x.wrapping_add(r * self.stride), 1)
                    };
                }
            }
        }
        *sums = local;
    }
}

/// A line without the second number of each pair.
///
/// # Safety
/// 16 words can be read at `from`.
#[inline(always)]
unsafe fn first_halves<S: Simd>(simd: S, from: *const u32) -> S::W {
    let mut words = [0u32; LANES];
    // SAFETY: the caller's promise; the array has 16 words.
    unsafe {
        for i in 0..LANES {
            words[i] = *from.add(i) & 0xFFFF;
        }
        simd.line(words.as_ptr().cast())
    }
}
