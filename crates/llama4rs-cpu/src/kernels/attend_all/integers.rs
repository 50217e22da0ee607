//! The products in 16-bit integers, exact in every instruction set.
//!
//! A row `x` of a head (of `q`, `k` or `v`) is rounded to codes of at most `most`:
//!
//! ```text
//! top = max |x[i]|;  code[i] = round(x[i] * (most / top));  scale = top / most
//! ```
//!
//! rounded to the nearest integer, halves to the even one; codes and scale are zero where
//! `top` is below 1e-30, and the scale is not a number where some `x[i]` is not finite. The
//! order of operations, for one query and the `n` keys of its tile, with the codes
//! `cq`, `ck`, `cv` and the scales `sq`, `sk`, `sv`:
//!
//! ```text
//! s[t] = (cq · ck[t]) * ((sq * (scale * log2 e)) * sk[t])    the dot product is an integer
//! m = max s;  p[t] = 2^(s[t] - m)                            see below
//! sum = Σ p                                                  p[t] in lane t % 16, then a tree
//! c[t] = round(p[t] * (sv[t] * (16383 / top)))               with top = max sv
//! out = (Σ c[t] cv[t]) * ((top / 16383) / sum)               an integer for each 128 tokens, then floats
//! ```
//!
//! `2^x = 2^n 2^f` with an integer `n` and `|f| <= 1/2`; `2^f` is Taylor's polynomial of degree 5,
//! whose error of 2e-6 is small beside the rounding to 14 bits. Below `2^-126` it is zero.
//!
//! `most` is what 32 bits hold of a dot product: for `q` and `k` the root of `2^31 / head_dim`,
//! for 128 values 1023. So with heads of 88 the codes of `q` and `k` have 13 bits, those of
//! `v` 11 and those of the probabilities 14.

use std::ops::Range;

use super::{Sizes, Task, BLOCK, CHUNK, GROUP};
use crate::simd::{IntegerKernel, Integers, Simd, Words, LANES};

/// Rows whose largest value is smaller are taken as zeros: `most / top` stays finite.
const TINY: f32 = 1e-30;
/// `1.5 * 2^23`: added to a small number it leaves the rounded integer in the low bits.
const MAGIC: f32 = 12_582_912.0;
/// The largest code of a probability.
const MOST_P: f32 = 16383.0;
/// The largest code of a value: `CHUNK` products with probabilities fit in 32 bits.
const MOST_V: f32 = 1023.0;
const _: () = assert!(CHUNK as u64 * MOST_P as u64 * MOST_V as u64 <= i32::MAX as u64);

/// Where `2^x` becomes zero.
const LOWEST: f32 = -127.0;
/// `ln(2)^k / k!` for `k` from 5 to 0.
const TAYLOR: [f32; 6] =
    [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 0.240_226_5, std::f32::consts::LN_2, 1.0];

/// The largest code of `q` and `k`: `head_dim` products fit in 32 bits, a code in 16.
fn most_qk(head_dim: usize) -> f32 {
    (i32::MAX as usize / head_dim).isqrt().min(i16::MAX as usize) as f32
}

/// Working memory of a task. A word is two codes.
#[derive(Default)]
pub struct Scratch {
    /// `[panel of 16 keys][pair of inputs][key]`
    keys: Vec<u32>,
    /// `[padded key]`: the scales of the keys.
    key_scales: Vec<f32>,
    /// `[panel of 16 columns][pair of tokens][column]`
    values: Vec<u32>,
    /// `[padded key]`: the scales of the values, then what turns a probability into its code.
    weights: Vec<f32>,
    /// `[query][pair of inputs]`
    queries: Vec<u32>,
    /// `[query]`: the scales of the queries.
    query_scales: Vec<f32>,
    /// `[query][padded key]`
    scores: Vec<f32>,
    /// `[query][pair of padded keys]`
    probabilities: Vec<u32>,
    /// `[query]`: sums of the probabilities.
    sums: Vec<f32>,
    /// `[query][width]`: sums of the values, weighed.
    acc: Vec<f32>,
    /// Two rows of a head: `[width / 2]`.
    codes: [Vec<u32>; 2],
}

pub struct Attend<'a> {
    pub task: Task<'a>,
    pub scratch: &'a mut Scratch,
}

impl IntegerKernel for Attend<'_> {
    #[inline(always)]
    fn run<I: Integers>(self, integers: I) {
        let Self { task: Task { q, k, v, sizes, rows, scale, out }, scratch } = self;
        let simd = integers.simd();
        scratch.start(sizes);
        scratch.gather_keys(simd, sizes, k);
        let value_scale = scratch.gather_values(simd, sizes, v);
        let (words, score_scale) = (sizes.width() / 2, scale * std::f32::consts::LOG2_E);
        for first in rows.clone().step_by(BLOCK) {
            let count = BLOCK.min(rows.end - first);
            // Queries that nobody has are left from before, and their results stay here.
            let groups = count.div_ceil(GROUP);
            for row in 0..count {
                let codes = &mut scratch.queries[row * words..][..words];
                let scale = round(simd, &q[sizes.at(first + row)], most_qk(sizes.head_dim), codes);
                scratch.query_scales[row] = scale * score_scale;
            }
            scratch.score(integers, sizes, groups);
            scratch.soften(simd, sizes, groups);
            scratch.accumulate(integers, sizes, groups);
            for row in 0..count {
                // SAFETY: this task alone has these rows of this head.
                let out = unsafe { out.part(sizes.at(first + row)) };
                let acc = &scratch.acc[row * sizes.width()..];
                let factor = value_scale / scratch.sums[row];
                out.iter_mut().zip(acc).for_each(|(out, acc)| *out = acc * factor);
            }
        }
    }
}

impl Scratch {
    /// Makes room. What was there before may stay: all that is used is written first.
    fn start(&mut self, sizes: Sizes) {
        let (padded_keys, width) = (sizes.padded_keys(), sizes.width());
        self.keys.resize(padded_keys * width / 2, 0);
        self.key_scales.resize(padded_keys, 0.0);
        self.values.resize(padded_keys / 2 * width, 0);
        self.weights.resize(padded_keys, 0.0);
        self.queries.resize(BLOCK * width / 2, 0);
        self.query_scales.resize(BLOCK, 0.0);
        self.scores.resize(BLOCK * padded_keys, 0.0);
        self.probabilities.resize(BLOCK * padded_keys / 2, 0);
        self.sums.resize(BLOCK, 0.0);
        self.acc.resize(BLOCK * width, 0.0);
        self.codes.iter_mut().for_each(|codes| codes.resize(width / 2, 0));
    }

    /// Takes the keys of the head.
    #[inline(always)]
    fn gather_keys<S: Simd>(&mut self, simd: S, sizes: Sizes, k: &[f32]) {
        let (words, most) = (sizes.width() / 2, most_qk(sizes.head_dim));
        for row in 0..sizes.keys {
            let codes = &mut self.codes[0];
            self.key_scales[row] = round(simd, &k[sizes.at(row)], most, codes);
            let panel = &mut self.keys[row / LANES * LANES * words..][..LANES * words];
            let inputs = panel[row % LANES..].iter_mut().step_by(LANES);
            inputs.zip(codes).for_each(|(to, from)| *to = *from);
        }
    }

    /// Takes the values of the head; gives what a code of one stands for.
    #[inline(always)]
    fn gather_values<S: Simd>(&mut self, simd: S, sizes: Sizes, v: &[f32]) -> f32 {
        let pairs = sizes.padded_keys() / 2;
        self.weights[sizes.keys..].fill(0.0);
        for row in (0..sizes.keys).step_by(2) {
            let [first, second] = &mut self.codes;
            self.weights[row] = round(simd, &v[sizes.at(row)], MOST_V, first);
            if row + 1 < sizes.keys {
                self.weights[row + 1] = round(simd, &v[sizes.at(row + 1)], MOST_V, second);
            } else {
                second.fill(0);
            }
            let panels = first.chunks_exact(LANES / 2).zip(second.chunks_exact(LANES / 2));
            for (panel, (first, second)) in panels.enumerate() {
                let to = &mut self.values[(panel * pairs + row / 2) * LANES..][..LANES];
                for (to, (a, b)) in to.chunks_exact_mut(2).zip(first.iter().zip(second)) {
                    to[0] = a & 0xFFFF | b << 16;
                    to[1] = a >> 16 | b & 0xFFFF_0000;
                }
            }
        }
        let finite = self.weights.iter().all(|scale| !scale.is_nan());
        let top = self.weights.iter().fold(0.0, |top: f32, &scale| top.max(scale));
        let factor = if top > 0.0 { MOST_P / top } else { 0.0 };
        self.weights.iter_mut().for_each(|scale| *scale *= factor);
        if finite {
            top / MOST_P
        } else {
            f32::NAN
        }
    }

    /// Scores of all queries with all keys.
    #[inline(always)]
    fn score<I: Integers>(&mut self, integers: I, sizes: Sizes, groups: usize) {
        let panels = sizes.padded_keys() / LANES;
        let mut panel = 0;
        while panel < panels {
            let many = I::Simd::MANY_REGISTERS && panel + 4 <= panels;
            for group in 0..groups {
                if many {
                    self.score_tile::<I, 4>(integers, sizes, group, panel);
                } else {
                    self.score_tile::<I, 1>(integers, sizes, group, panel);
                }
            }
            panel += if many { 4 } else { 1 };
        }
    }

    /// Scores of one group of queries with `P` panels of keys.
    #[inline(always)]
    fn score_tile<I: Integers, const P: usize>(
        &mut self,
        integers: I,
        sizes: Sizes,
        group: usize,
        panel: usize,
    ) {
        let (simd, words, padded_keys) = (integers.simd(), sizes.width() / 2, sizes.padded_keys());
        let queries = &self.queries[group * GROUP * words..][..GROUP * words];
        let keys = &self.keys[panel * LANES * words..][..P * LANES * words];
        let pairs = 0..sizes.head_dim.div_ceil(2);
        let dots = dots::<I, P>(integers, (queries, words), (keys, words), pairs);
        for p in 0..P {
            let first = (panel + p) * LANES;
            // SAFETY: 16 floats.
            let key_scale = unsafe { simd.load(self.key_scales[first..][..LANES].as_ptr()) };
            for r in 0..GROUP {
                let row = group * GROUP + r;
                let scale = simd.mul(simd.splat(self.query_scales[row]), key_scale);
                let score = simd.mul(integers.to_floats(dots[r][p]), scale);
                let to = &mut self.scores[row * padded_keys + first..][..LANES];
                // SAFETY: 16 floats.
                unsafe { simd.store(score, to.as_mut_ptr()) };
            }
        }
    }

    /// Scores to the codes of probabilities that are not divided by their sum yet.
    #[inline(always)]
    fn soften<S: Simd>(&mut self, simd: S, sizes: Sizes, groups: usize) {
        let padded_keys = sizes.padded_keys();
        let magic = simd.splat(MAGIC);
        for row in 0..groups * GROUP {
            let scores = &mut self.scores[row * padded_keys..][..padded_keys];
            scores[sizes.keys..].fill(f32::NEG_INFINITY);
            let mut largest = simd.splat(f32::NEG_INFINITY);
            for chunk in scores.chunks_exact(LANES) {
                // SAFETY: 16 floats.
                largest = simd.max(largest, unsafe { simd.load(chunk.as_ptr()) });
            }
            let largest = simd.splat(simd.largest(largest));
            let mut lanes = simd.splat(0.0);
            let codes = &mut self.probabilities[row * padded_keys / 2..][..padded_keys / 2];
            let weights = self.weights.chunks_exact(LANES);
            let chunks = scores.chunks_exact(LANES).zip(weights);
            for (codes, (scores, weights)) in codes.chunks_exact_mut(LANES / 2).zip(chunks) {
                // SAFETY: 16 floats each.
                let (score, weight) =
                    unsafe { (simd.load(scores.as_ptr()), simd.load(weights.as_ptr())) };
                let p = power_of_two(simd, simd.sub(score, largest));
                lanes = simd.add(lanes, p);
                let rounded = simd.add(simd.mul(p, weight), magic);
                codes.copy_from_slice(&simd.low_halves(rounded));
            }
            self.sums[row] = simd.sum(lanes);
        }
    }

    /// Sums of the values, weighed by the probabilities.
    #[inline(always)]
    fn accumulate<I: Integers>(&mut self, integers: I, sizes: Sizes, groups: usize) {
        let panels = sizes.width() / LANES;
        let pairs = sizes.keys.div_ceil(2);
        let mut panel = 0;
        while panel < panels {
            let many = match panels - panel {
                4.. if I::Simd::MANY_REGISTERS => 4,
                2.. if I::Simd::MANY_REGISTERS => 2,
                _ => 1,
            };
            for pair in (0..pairs).step_by(CHUNK / 2) {
                let chunk = pair..pairs.min(pair + CHUNK / 2);
                for group in 0..groups {
                    let (at, chunk) = ((group, panel), chunk.clone());
                    match many {
                        4 => self.add_tile::<I, 4>(integers, sizes, at, chunk),
                        2 => self.add_tile::<I, 2>(integers, sizes, at, chunk),
                        _ => self.add_tile::<I, 1>(integers, sizes, at, chunk),
                    }
                }
            }
            panel += many;
        }
    }

    /// Adds a chunk of the values to a group of queries, in `P` panels of columns.
    #[inline(always)]
    fn add_tile<I: Integers, const P: usize>(
        &mut self,
        integers: I,
        sizes: Sizes,
        (group, panel): (usize, usize),
        chunk: Range<usize>,
    ) {
        let (simd, width, pairs) = (integers.simd(), sizes.width(), sizes.padded_keys() / 2);
        let codes = &self.probabilities[group * GROUP * pairs..][..GROUP * pairs];
        let values = &self.values[panel * pairs * LANES..][..P * pairs * LANES];
        let begins = chunk.start == 0;
        let dots = dots::<I, P>(integers, (codes, pairs), (values, pairs), chunk);
        for r in 0..GROUP {
            for p in 0..P {
                let at = (group * GROUP + r) * width + (panel + p) * LANES;
                let acc = &mut self.acc[at..][..LANES];
                let mut sum = integers.to_floats(dots[r][p]);
                // SAFETY: 16 floats.
                unsafe {
                    if !begins {
                        sum = simd.add(simd.load(acc.as_ptr()), sum);
                    }
                    simd.store(sum, acc.as_mut_ptr());
                }
            }
        }
    }
}

/// Sixteen values of `x` from `first` on; what is missing is zero.
#[inline(always)]
fn sixteen<S: Simd>(simd: S, x: &[f32], first: usize) -> S::F {
    let x = &x[first..];
    if x.len() >= LANES {
        // SAFETY: 16 floats.
        return unsafe { simd.load(x.as_ptr()) };
    }
    let mut padded = [0.0; LANES];
    for (to, x) in padded.iter_mut().zip(x) {
        *to = *x;
    }
    // SAFETY: 16 floats.
    unsafe { simd.load(padded.as_ptr()) }
}

/// Rounds `x` to codes, two to a word and zeros at the end; gives their scale.
#[inline(always)]
fn round<S: Simd>(simd: S, x: &[f32], most: f32, codes: &mut [u32]) -> f32 {
    let zero = simd.splat(0.0);
    let (mut top, mut low, mut zeros) = (zero, zero, zero);
    for first in (0..x.len()).step_by(LANES) {
        let x = sixteen(simd, x, first);
        top = simd.max(x, top);
        low = simd.min(x, low);
        zeros = simd.fma(x, zero, zeros);
    }
    let top = simd.largest(simd.max(top, simd.sub(zero, low)));
    // Zero times a finite number is zero, times anything else not a number.
    let finite = simd.sum(zeros) == 0.0;
    if !finite || top < TINY {
        codes.fill(0);
        return if finite { 0.0 } else { f32::NAN };
    }
    let (inverse, magic) = (simd.splat(most / top), simd.splat(MAGIC));
    for (i, words) in codes.chunks_exact_mut(LANES / 2).enumerate() {
        let rounded = simd.add(simd.mul(sixteen(simd, x, i * LANES), inverse), magic);
        words.copy_from_slice(&simd.low_halves(rounded));
    }
    top / most
}

/// `2^x` of every lane; no lane is above zero.
#[inline(always)]
fn power_of_two<S: Simd>(simd: S, x: S::F) -> S::F {
    // The constant comes first: a comparison with a NaN chooses the second.
    let x = simd.max(simd.splat(LOWEST), x);
    let magic = simd.splat(MAGIC);
    let n = simd.sub(simd.add(x, magic), magic);
    let f = simd.sub(x, n);
    let mut sum = simd.splat(TAYLOR[0]);
    for coefficient in &TAYLOR[1..] {
        sum = simd.fma(sum, f, simd.splat(*coefficient));
    }
    simd.mul(sum, simd.pow2(n))
}

/// `[r][p] = Σ rows[r][i] · panels[p][i]` over some words `i`: both are given with
/// the number of words (lines of 16 words) from one to the next.
#[inline(always)]
fn dots<I: Integers, const P: usize>(
    integers: I,
    (rows, row_words): (&[u32], usize),
    (panels, panel_lines): (&[u32], usize),
    words: Range<usize>,
) -> [[Words<I>; P]; GROUP] {
    assert!(words.end <= row_words && rows.len() >= GROUP * row_words);
    assert!(words.end <= panel_lines && panels.len() >= P * panel_lines * LANES);
    let simd = integers.simd();
    let mut sums = [[integers.splat(0); P]; GROUP];
    for i in words {
        let mut lines = [integers.splat(0); P];
        for p in 0..P {
            // SAFETY: every panel has lines for all `words`.
            lines[p] =
                unsafe { simd.line(panels.as_ptr().add((p * panel_lines + i) * LANES).cast()) };
        }
        for r in 0..GROUP {
            // SAFETY: every row has all `words`.
            let x = integers.splat(unsafe { *rows.as_ptr().add(r * row_words + i) });
            for p in 0..P {
                sums[r][p] = integers.dot_halves(sums[r][p], lines[p], x);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::Backend;
    use proptest::prelude::*;

    use super::super::reference::*;
    use super::super::Products;
    use super::{most_qk, TAYLOR};
    use crate::test_support::{all_cpus, best_cpu, Random};
    use crate::Tensor;

    /// The codes of a row and their scale.
    fn round(x: &[f32], most: f32) -> (Vec<i32>, f32) {
        let top = x.iter().fold(0.0f32, |top, x| top.max(x.abs()));
        match x.iter().all(|x| x.is_finite()) {
            false => (vec![0; x.len()], f32::NAN),
            true if top < 1e-30 => (vec![0; x.len()], 0.0),
            true => {
                let code = |x: &f32| (x * (most / top)).round_ties_even() as i32;
                (x.iter().map(code).collect(), top / most)
            }
        }
    }

    fn power_of_two(x: f32) -> f32 {
        let n = x.max(-127.0).round_ties_even();
        let sum = |f: f32| TAYLOR[1..].iter().fold(TAYLOR[0], |sum, &c| sum.mul_add(f, c));
        match x.is_nan() {
            true => x,
            false if n == -127.0 => 0.0,
            false => sum(x - n) * n.exp2(),
        }
    }

    /// One query, in the order of operations of this file.
    fn reference(q: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32) -> Vec<f32> {
        let most = most_qk(q.len());
        let (cq, sq) = round(q, most);
        let score = |k: &&[f32]| {
            let (ck, sk) = round(k, most);
            let dot: i32 = cq.iter().zip(&ck).map(|(q, k)| q * k).sum();
            dot as f32 * ((sq * (scale * std::f32::consts::LOG2_E)) * sk)
        };
        let scores: Vec<f32> = keys.iter().map(score).collect();
        let largest = scores.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s));
        let p: Vec<f32> = scores.iter().map(|s| power_of_two(s - largest)).collect();
        let sum = lanes_and_tree(&p);

        let (cv, sv): (Vec<Vec<i32>>, Vec<f32>) = values.iter().map(|v| round(v, 1023.0)).unzip();
        let top = match sv.iter().any(|s| s.is_nan()) {
            true => f32::NAN,
            false => sv.iter().fold(0.0f32, |top, &s| top.max(s)),
        };
        let weight = |s: f32| if top > 0.0 { s * (16383.0 / top) } else { 0.0 };
        let codes: Vec<i32> =
            p.iter().zip(&sv).map(|(p, &s)| (p * weight(s)).round_ties_even() as i32).collect();
        let out = |i: usize| {
            let chunks = codes.chunks(128).zip(cv.chunks(128));
            let dots = chunks.map(|(c, v)| c.iter().zip(v).map(|(c, v)| c * v[i]).sum::<i32>());
            dots.map(|dot| dot as f32).reduce(|a, b| a + b).unwrap() * ((top / 16383.0) / sum)
        };
        (0..q.len()).map(out).collect()
    }

    fn rms(values: impl Iterator<Item = f64>) -> f64 {
        values.map(|x| x * x).sum::<f64>().sqrt()
    }

    /// The root of the mean square of the error, beside that of the values.
    fn error(exact: &[f64], got: &[f32]) -> f64 {
        rms(exact.iter().zip(got).map(|(e, &g)| e - g as f64)) / rms(exact.iter().copied())
    }

    /// Sums of twelve values: nearly normally distributed, deviation 1.
    fn normal(random: &mut Random, rows: usize, cols: usize) -> Tensor {
        let value = |_| random.values(12).iter().sum::<f32>() / 2.0;
        Tensor::from_values(&(0..rows * cols).map(value).collect::<Vec<_>>(), cols).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_set_and_thread_count_gives_the_reference(
            tiles in 1usize..4,
            heads in 1usize..4,
            (tile_rows, head_dim) in prop::sample::select(SIZES.to_vec()),
            scale in 0.1f32..4.0,
            size in prop::sample::select(vec![0.0f32, 1e-33, 1e-15, 1.0, 1e15]),
            seed in any::<u64>(),
        ) {
            let random = &mut Random(seed);
            let [q, k, mut v] =
                [(); 3].map(|()| random.tensor(tiles * tile_rows, heads * head_dim));
            // Some rows of values are much larger than the others.
            for (i, x) in v.values_mut().iter_mut().enumerate() {
                *x *= if i / (heads * head_dim) % 11 == 3 { size * 50.0 } else { size };
            }
            let qkv = [&q, &k, &v];
            let expected =
                each_query(qkv, tile_rows, head_dim, |q, k, v| reference(q, &k, &v, scale));
            assert_everywhere(Products::Integers, qkv, (tile_rows, head_dim), scale, &expected);
        }
    }

    /// The price of integers, for flat and for peaked probabilities.
    #[test]
    fn a_real_head_is_close_to_the_formula() {
        let random = &mut Random(4);
        let [q, k, v] = [(); 3].map(|()| normal(random, 577, 88));
        let qkv = [&q, &k, &v];
        for (sharpness, most) in [(0.3, 1.5e-3), (1.0, 1.5e-3), (3.0, 1.5e-3), (10.0, 3e-3)] {
            let scale = sharpness / 88f32.sqrt();
            let exact = each_query(qkv, 577, 88, |q, k, v| exactly(q, &k, &v, scale));
            let got = run(best_cpu(), Products::Integers, qkv, (577, 88), scale);
            let error = error(&exact, &got);
            println!("scores with a deviation of {sharpness}: error {:.3} %", 100.0 * error);
            assert!(error < most, "{sharpness}: {error}");
        }
    }

    #[test]
    fn codes_fill_their_bits_without_overflow() {
        // Everything as large as can be, all of one sign: the sums are the largest ones.
        let ones = Tensor::from_values(&vec![1.0; 300 * 88], 88).unwrap();
        for cpu in all_cpus() {
            let got = run(cpu, Products::Integers, [&ones; 3], (300, 88), 1.0);
            assert!(got.iter().all(|x| (x - 1.0).abs() < 1e-6), "{}", cpu.description());
        }
    }

    #[test]
    fn what_is_not_finite_spoils_only_its_tile_and_head() {
        let random = &mut Random(6);
        let plain = [(); 3].map(|()| random.tensor(2 * 37, 2 * 16));
        let expected = run(best_cpu(), Products::Integers, plain.each_ref(), (37, 16), 1.0);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for which in 0..3 {
                let mut qkv = plain.clone();
                qkv[which].values_mut()[5 * 32 + 20] = bad; // tile 0, row 5, head 1
                for cpu in all_cpus() {
                    let got = run(cpu, Products::Integers, qkv.each_ref(), (37, 16), 1.0);
                    for (i, (&got, &expected)) in got.iter().zip(&expected).enumerate() {
                        let (row, head) = (i / 32, i % 32 / 16);
                        let spoilt = row < 37 && head == 1 && (which > 0 || row == 5);
                        let what = format!("{}: {bad} in {which}, value {i}", cpu.description());
                        assert!(
                            if spoilt { got.is_nan() } else { got == expected },
                            "{what}: {got}"
                        );
                    }
                }
            }
        }
    }
}
