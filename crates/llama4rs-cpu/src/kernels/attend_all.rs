//! `out = softmax(scale · q kᵀ) v` per head, where all rows of a tile see each other.
//!
//! The order of operations, for one query (one row, one head) and the `n` keys of its tile:
//!
//! ```text
//! s[t] = scale * (q · k[t])        one fma after the other, from the first input on
//! m = max s;  p[t] = exp(s[t] - m)
//! sum = Σ p                        p[t] in lane t % 16, then a tree
//! out = (Σ p[t] v[t]) / sum        one fma after the other, from the first row on
//! ```
//!
//! A lane is a key in the first product and a column in the second, so no
//! product needs a sum across lanes. A task is one head of one tile (or a part of
//! its rows, where there are more threads than heads); it lays the keys out as
//! panels of 16, input by input, and goes through its rows in blocks, which take
//! a few panels (then a few rows of values) at a time out of the nearest cache.

use crate::kernels::exp::exp;
use crate::parallel::{Shared, Spare, Threads};
use crate::simd::{Dispatch, Kernel, Simd, LANES};
use crate::Tensor;

/// Queries that are multiplied at once.
const GROUP: usize = 6;
/// Queries of a block.
const BLOCK: usize = 4 * GROUP;
/// Rows of values that stay in the nearest cache for a block.
const CHUNK: usize = 128;
/// Tasks per thread, so that none waits long for the last one.
const TASKS_PER_THREAD: usize = 4;

/// Attention within every `tile_rows` rows. The shapes fit: `q`, `k`, `v` and
/// `out` are alike, in whole tiles of rows and whole heads of columns.
pub fn attend_all(
    dispatch: Dispatch,
    threads: &Threads,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    tile_rows: usize,
    head_dim: usize,
    scale: f32,
    out: &mut Tensor,
) {
    let (tiles, heads) = (q.rows() / tile_rows, q.cols() / head_dim);
    if tiles * heads == 0 {
        return;
    }
    let parts = match threads.count() {
        1 => 1,
        count => (count * TASKS_PER_THREAD).div_ceil(tiles * heads),
    };
    let part_rows = tile_rows.div_ceil(parts).next_multiple_of(BLOCK);
    let parts = tile_rows.div_ceil(part_rows);
    let scratch = Spare::<Scratch>::default();
    let out = Shared::new(out.values_mut());
    threads.for_each(tiles * heads * parts, |task| {
        let (pair, part) = (task / parts, task % parts);
        let sizes = Sizes {
            keys: tile_rows,
            padded_keys: tile_rows.next_multiple_of(LANES),
            head_dim,
            width: head_dim.next_multiple_of(LANES),
            cols: q.cols(),
            origin: pair / heads * tile_rows * q.cols() + pair % heads * head_dim,
        };
        let rows = part * part_rows..tile_rows.min((part + 1) * part_rows);
        scratch.with(|scratch| {
            let (q, k, v) = (q.values(), k.values(), v.values());
            dispatch.run(AttendAll { q, k, v, sizes, rows, scale, out, scratch });
        });
    });
}

/// Working memory of a task.
#[derive(Default)]
struct Scratch {
    /// `[panel of 16 keys][input][key]`
    keys: Vec<f32>,
    /// `[key][width]`
    values: Vec<f32>,
    /// `[group][input][query]`
    queries: Vec<f32>,
    /// `[query][padded key]`: scores, then probabilities.
    scores: Vec<f32>,
    /// `[query]`: sums of the probabilities.
    sums: Vec<f32>,
    /// `[query][width]`: sums of the values, weighed.
    acc: Vec<f32>,
}

/// What the steps of a task share.
#[derive(Clone, Copy)]
struct Sizes {
    /// Rows of a tile, and the next multiple of 16.
    keys: usize,
    padded_keys: usize,
    /// Columns of a head, and the next multiple of 16.
    head_dim: usize,
    width: usize,
    /// Columns of all heads.
    cols: usize,
    /// Where the head's first row of the tile starts.
    origin: usize,
}

impl Sizes {
    /// Where a row of the tile has this head.
    fn at(&self, row: usize) -> std::ops::Range<usize> {
        let start = self.origin + row * self.cols;
        start..start + self.head_dim
    }
}

struct AttendAll<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    sizes: Sizes,
    /// Rows of the tile that this task computes.
    rows: std::ops::Range<usize>,
    scale: f32,
    out: Shared<'a, f32>,
    scratch: &'a mut Scratch,
}

impl Kernel for AttendAll<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { q, k, v, sizes, rows, scale, out, scratch } = self;
        scratch.gather(sizes, k, v);
        for first in rows.clone().step_by(BLOCK) {
            let count = BLOCK.min(rows.end - first);
            // Queries that nobody has are zero, and their results stay here.
            let groups = count.div_ceil(GROUP);
            scratch.queries[..groups * GROUP * sizes.head_dim].fill(0.0);
            for row in 0..count {
                let group = &mut scratch.queries[row / GROUP * GROUP * sizes.head_dim..];
                let inputs = group[row % GROUP..].iter_mut().step_by(GROUP);
                inputs.zip(&q[sizes.at(first + row)]).for_each(|(to, &from)| *to = from);
            }
            scratch.score(simd, sizes, groups, scale);
            scratch.soften(simd, sizes, groups);
            scratch.accumulate(simd, sizes, groups);
            for row in 0..count {
                // SAFETY: this task alone has these rows of this head.
                let out = unsafe { out.part(sizes.at(first + row)) };
                let acc = &scratch.acc[row * sizes.width..];
                let sum = scratch.sums[row];
                out.iter_mut().zip(acc).for_each(|(out, acc)| *out = acc / sum);
            }
        }
    }
}

impl Scratch {
    /// Takes the keys and values of the head; what is missing of a panel or a width is zero.
    #[inline(always)]
    fn gather(&mut self, sizes: Sizes, k: &[f32], v: &[f32]) {
        let Sizes { keys, padded_keys, head_dim, width, .. } = sizes;
        let refill = |values: &mut Vec<f32>, len| {
            values.clear();
            values.resize(len, 0.0);
        };
        refill(&mut self.keys, padded_keys * head_dim);
        refill(&mut self.values, keys * width);
        refill(&mut self.queries, BLOCK * head_dim);
        refill(&mut self.scores, BLOCK * padded_keys);
        refill(&mut self.sums, BLOCK);
        refill(&mut self.acc, BLOCK * width);
        for row in 0..keys {
            let panel = &mut self.keys[row / LANES * LANES * head_dim..][..LANES * head_dim];
            let inputs = panel[row % LANES..].iter_mut().step_by(LANES);
            inputs.zip(&k[sizes.at(row)]).for_each(|(to, &from)| *to = from);
            self.values[row * width..][..head_dim].copy_from_slice(&v[sizes.at(row)]);
        }
    }

    /// Scores of all queries with all keys.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, sizes: Sizes, groups: usize, scale: f32) {
        let panels = sizes.padded_keys / LANES;
        let mut panel = 0;
        while panel < panels {
            let many = S::MANY_REGISTERS && panel + 4 <= panels;
            for group in 0..groups {
                if many {
                    self.score_tile::<S, 4>(simd, sizes, group, panel, scale);
                } else {
                    self.score_tile::<S, 1>(simd, sizes, group, panel, scale);
                }
            }
            panel += if many { 4 } else { 1 };
        }
    }

    /// Scores of one group of queries with `P` panels of keys.
    #[inline(always)]
    fn score_tile<S: Simd, const P: usize>(
        &mut self,
        simd: S,
        sizes: Sizes,
        group: usize,
        panel: usize,
        scale: f32,
    ) {
        let Sizes { head_dim, padded_keys, .. } = sizes;
        let keys = &self.keys[panel * LANES * head_dim..][..P * LANES * head_dim];
        let queries = &self.queries[group * GROUP * head_dim..][..GROUP * head_dim];
        let scores = &mut self.scores[group * GROUP * padded_keys..][..GROUP * padded_keys];
        assert!((panel + P) * LANES <= padded_keys);
        // SAFETY: each of the `P` panels has `head_dim` lines of 16 floats, the
        // group as many lines of `GROUP`; every row of scores has room for the panels.
        unsafe {
            let mut dots = [[simd.splat(0.0); P]; GROUP];
            for i in 0..head_dim {
                let line = keys.as_ptr().add(i * LANES);
                let key: [S::F; P] =
                    std::array::from_fn(|p| simd.load(line.add(p * LANES * head_dim)));
                for r in 0..GROUP {
                    let query = simd.splat(*queries.get_unchecked(i * GROUP + r));
                    for p in 0..P {
                        dots[r][p] = simd.fma(query, key[p], dots[r][p]);
                    }
                }
            }
            let scale = simd.splat(scale);
            for r in 0..GROUP {
                let to = scores.as_mut_ptr().add(r * padded_keys + panel * LANES);
                for p in 0..P {
                    simd.store(simd.mul(dots[r][p], scale), to.add(p * LANES));
                }
            }
        }
    }

    /// Scores to probabilities that are not divided by their sum yet.
    #[inline(always)]
    fn soften<S: Simd>(&mut self, simd: S, sizes: Sizes, groups: usize) {
        let rows = self.scores.chunks_exact_mut(sizes.padded_keys).zip(&mut self.sums);
        for (scores, sum) in rows.take(groups * GROUP) {
            scores[sizes.keys..].fill(f32::NEG_INFINITY);
            let mut largest = simd.splat(f32::NEG_INFINITY);
            for chunk in scores.chunks_exact(LANES) {
                // SAFETY: 16 floats.
                largest = simd.max(largest, unsafe { simd.load(chunk.as_ptr()) });
            }
            let largest = simd.splat(simd.largest(largest));
            let mut lanes = simd.splat(0.0);
            for chunk in scores.chunks_exact_mut(LANES) {
                // SAFETY: 16 floats.
                unsafe {
                    let p = exp(simd, simd.sub(simd.load(chunk.as_ptr()), largest));
                    simd.store(p, chunk.as_mut_ptr());
                    lanes = simd.add(lanes, p);
                }
            }
            *sum = simd.sum(lanes);
        }
    }

    /// Sums of the values, weighed by the probabilities.
    #[inline(always)]
    fn accumulate<S: Simd>(&mut self, simd: S, sizes: Sizes, groups: usize) {
        let Sizes { keys, width, .. } = sizes;
        self.acc[..groups * GROUP * width].fill(0.0);
        let mut first = 0;
        while first < width {
            let vectors = match (width - first) / LANES {
                3.. if S::MANY_REGISTERS => 3,
                2 if S::MANY_REGISTERS => 2,
                _ => 1,
            };
            for token in (0..keys).step_by(CHUNK) {
                let tokens = token..keys.min(token + CHUNK);
                for group in 0..groups {
                    let (at, tokens) = ((group, first), tokens.clone());
                    match vectors {
                        3 => self.add_tile::<S, 3>(simd, sizes, at, tokens),
                        2 => self.add_tile::<S, 2>(simd, sizes, at, tokens),
                        _ => self.add_tile::<S, 1>(simd, sizes, at, tokens),
                    }
                }
            }
            first += vectors * LANES;
        }
    }

    /// Adds some rows of values to a group of queries, in `V` vectors of the width.
    #[inline(always)]
    fn add_tile<S: Simd, const V: usize>(
        &mut self,
        simd: S,
        sizes: Sizes,
        (group, first): (usize, usize),
        tokens: std::ops::Range<usize>,
    ) {
        let Sizes { padded_keys, width, .. } = sizes;
        let scores = &self.scores[group * GROUP * padded_keys..][..GROUP * padded_keys];
        let values = &self.values[..tokens.end * width];
        let acc = &mut self.acc[group * GROUP * width..][..GROUP * width];
        assert!(first + V * LANES <= width && tokens.end <= padded_keys);
        // SAFETY: every row of `values` and of `acc` has `width` floats, from
        // `first` on at least `V` vectors; every row of scores has all `tokens`.
        unsafe {
            let mut sums: [[S::F; V]; GROUP] = std::array::from_fn(|r| {
                let from = acc.as_ptr().add(r * width + first);
                std::array::from_fn(|v| simd.load(from.add(v * LANES)))
            });
            for token in tokens {
                let row = values.as_ptr().add(token * width + first);
                let value: [S::F; V] = std::array::from_fn(|v| simd.load(row.add(v * LANES)));
                for r in 0..GROUP {
                    let p = simd.splat(*scores.get_unchecked(r * padded_keys + token));
                    for v in 0..V {
                        sums[r][v] = simd.fma(p, value[v], sums[r][v]);
                    }
                }
            }
            for r in 0..GROUP {
                for v in 0..V {
                    simd.store(sums[r][v], acc.as_mut_ptr().add(r * width + first + v * LANES));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::Backend;
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::exp::reference::exp;
    use crate::test_support::{all_cpus, assert_bits, assert_close, best_cpu, Random};
    use crate::Cpu;

    /// A tile's row of one head.
    fn row(x: &Tensor, row: usize, head: usize, head_dim: usize) -> &[f32] {
        &x.row(row)[head * head_dim..(head + 1) * head_dim]
    }

    /// Calls `query(q, keys, values)` for every head of every row and strings the results together.
    fn each_query<T>(
        [q, k, v]: [&Tensor; 3],
        tile_rows: usize,
        head_dim: usize,
        mut query: impl FnMut(&[f32], Vec<&[f32]>, Vec<&[f32]>) -> Vec<T>,
    ) -> Vec<T> {
        let mut out = Vec::new();
        for r in 0..q.rows() {
            let first = r / tile_rows * tile_rows;
            for head in 0..q.cols() / head_dim {
                let all =
                    |x| (first..first + tile_rows).map(|t| row(x, t, head, head_dim)).collect();
                out.extend(query(row(q, r, head, head_dim), all(k), all(v)));
            }
        }
        out
    }

    /// One query, in the order of operations of this file.
    fn reference(q: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32) -> Vec<f32> {
        let dot = |k: &[f32]| q.iter().zip(k).fold(0.0f32, |sum, (q, k)| q.mul_add(*k, sum));
        let scores: Vec<f32> = keys.iter().map(|k| dot(k) * scale).collect();
        let largest = scores.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s));
        let p: Vec<f32> = scores.iter().map(|s| exp(s - largest)).collect();
        let mut lanes = [0.0f32; LANES];
        p.iter().enumerate().for_each(|(t, p)| lanes[t % LANES] += p);
        for width in [8, 4, 2, 1] {
            (0..width).for_each(|i| lanes[i] += lanes[i + width]);
        }
        let weighed =
            |i: usize| p.iter().zip(values).fold(0.0f32, |sum, (p, v)| p.mul_add(v[i], sum));
        (0..q.len()).map(|i| weighed(i) / lanes[0]).collect()
    }

    /// One query in double precision, straight from the formula.
    fn exactly(q: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32) -> Vec<f64> {
        let dot = |k: &[f32]| q.iter().zip(k).map(|(&q, &k)| q as f64 * k as f64).sum::<f64>();
        let scores: Vec<f64> = keys.iter().map(|k| dot(k) * scale as f64).collect();
        let largest = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
        let p: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let sum: f64 = p.iter().sum();
        let weighed = |i: usize| p.iter().zip(values).map(|(p, v)| p * v[i] as f64).sum::<f64>();
        (0..q.len()).map(|i| weighed(i) / sum).collect()
    }

    fn run(
        cpu: &Cpu,
        [q, k, v]: [&Tensor; 3],
        tile: usize,
        head_dim: usize,
        scale: f32,
    ) -> Vec<f32> {
        let mut out = Tensor::from_values(&vec![f32::NAN; q.values().len()], q.cols()).unwrap();
        attend_all(cpu.dispatch, &cpu.threads, q, k, v, tile, head_dim, scale, &mut out);
        out.values().to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_set_and_thread_count_gives_the_reference(
            tiles in 1usize..4,
            heads in 1usize..4,
            (tile_rows, head_dim) in prop::sample::select(vec![
                (1, 1), (5, 2), (17, 16), (65, 24), (37, 88), (16, 128), (97, 48), (145, 32),
            ]),
            scale in 0.1f32..4.0,
            seed in any::<u64>(),
        ) {
            let random = &mut Random(seed);
            let [q, k, v] = [(); 3].map(|()| random.tensor(tiles * tile_rows, heads * head_dim));
            let qkv = [&q, &k, &v];
            let expected =
                each_query(qkv, tile_rows, head_dim, |q, k, v| reference(q, &k, &v, scale));
            let exact = each_query(qkv, tile_rows, head_dim, |q, k, v| exactly(q, &k, &v, scale));
            assert_close("reference", &exact, &expected, 1e-5);
            for cpu in all_cpus() {
                let got = run(cpu, qkv, tile_rows, head_dim, scale);
                assert_bits(&cpu.description(), &expected, &got);
            }
            // A tile does not see the others.
            let first = |x: &Tensor| {
                Tensor::from_values(&x.values()[..tile_rows * x.cols()], x.cols()).unwrap()
            };
            let [q, k, v] = qkv.map(first);
            let got = run(best_cpu(), [&q, &k, &v], tile_rows, head_dim, scale);
            assert_bits("one tile", &expected[..got.len()], &got);
        }
    }

    #[test]
    fn a_real_head_is_close_to_the_formula() {
        let random = &mut Random(4);
        let [q, k, v] = [(); 3].map(|()| random.tensor(577, 88));
        let scale = 1.0 / 88f32.sqrt();
        let exact = each_query([&q, &k, &v], 577, 88, |q, k, v| exactly(q, &k, &v, scale));
        let got = run(best_cpu(), [&q, &k, &v], 577, 88, scale);
        assert_close("577 x 88", &exact, &got, 1e-5);
        for cpu in all_cpus() {
            assert_bits(&cpu.description(), &got, &run(cpu, [&q, &k, &v], 577, 88, scale));
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let random = &mut Random(5);
        let [q, k, v] = [(); 3].map(|()| random.tensor(37, 16));
        let got = run(best_cpu(), [&q, &k, &v], 37, 16, 1e6);
        assert!(got.iter().all(|x| x.abs() <= 1.0), "{got:?}");
    }
}
