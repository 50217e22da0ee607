//! The products in single precision.
//!
//! The order of operations, for one query (one row, one head) and the `n` keys of its tile:
//!
//! ```text
//! s[t] = scale * (q · k[t])        one fma after the other, from the first input on
//! m = max s;  p[t] = exp(s[t] - m)
//! sum = Σ p                        p[t] in lane t % 16, then a tree
//! out = (Σ p[t] v[t]) / sum        one fma after the other, from the first row on
//! ```

use super::{Sizes, Task, BLOCK, CHUNK, GROUP};
use crate::kernels::exp::exp;
use crate::simd::{Kernel, Simd, LANES};

/// Working memory of a task.
#[derive(Default)]
pub struct Scratch {
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

pub struct Attend<'a> {
    pub task: Task<'a>,
    pub scratch: &'a mut Scratch,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { task: Task { q, k, v, sizes, rows, scale, out }, scratch } = self;
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
                let acc = &scratch.acc[row * sizes.width()..];
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
        let Sizes { keys, head_dim, .. } = sizes;
        let (padded_keys, width) = (sizes.padded_keys(), sizes.width());
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
        let panels = sizes.padded_keys() / LANES;
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
        let (head_dim, padded_keys) = (sizes.head_dim, sizes.padded_keys());
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
        let rows = self.scores.chunks_exact_mut(sizes.padded_keys()).zip(&mut self.sums);
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
        let (keys, width) = (sizes.keys, sizes.width());
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
        let (padded_keys, width) = (sizes.padded_keys(), sizes.width());
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

    use super::super::reference::*;
    use super::super::Products;
    use crate::kernels::exp::reference::exp;
    use crate::test_support::{all_cpus, assert_bits, assert_close, best_cpu, Random};

    /// One query, in the order of operations of this file.
    fn reference(q: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32) -> Vec<f32> {
        let dot = |k: &[f32]| q.iter().zip(k).fold(0.0f32, |sum, (q, k)| q.mul_add(*k, sum));
        let scores: Vec<f32> = keys.iter().map(|k| dot(k) * scale).collect();
        let largest = scores.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s));
        let p: Vec<f32> = scores.iter().map(|s| exp(s - largest)).collect();
        let sum = lanes_and_tree(&p);
        let weighed =
            |i: usize| p.iter().zip(values).fold(0.0f32, |sum, (p, v)| p.mul_add(v[i], sum));
        (0..q.len()).map(|i| weighed(i) / sum).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_set_and_thread_count_gives_the_reference(
            tiles in 1usize..4,
            heads in 1usize..4,
            (tile_rows, head_dim) in prop::sample::select(SIZES.to_vec()),
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
            assert_everywhere(Products::Floats, qkv, (tile_rows, head_dim), scale, &expected);
        }
    }

    #[test]
    fn a_real_head_is_close_to_the_formula() {
        let random = &mut Random(4);
        let [q, k, v] = [(); 3].map(|()| random.tensor(577, 88));
        let (qkv, scale) = ([&q, &k, &v], 1.0 / 88f32.sqrt());
        let exact = each_query(qkv, 577, 88, |q, k, v| exactly(q, &k, &v, scale));
        let got = run(best_cpu(), Products::Floats, qkv, (577, 88), scale);
        assert_close("577 x 88", &exact, &got, 1e-5);
        for cpu in all_cpus() {
            let other = run(cpu, Products::Floats, qkv, (577, 88), scale);
            assert_bits(&cpu.description(), &got, &other);
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let random = &mut Random(5);
        let [q, k, v] = [(); 3].map(|()| random.tensor(37, 16));
        let got = run(best_cpu(), Products::Floats, [&q, &k, &v], (37, 16), 1e6);
        assert!(got.iter().all(|x| x.abs() <= 1.0), "{got:?}");
    }
}
