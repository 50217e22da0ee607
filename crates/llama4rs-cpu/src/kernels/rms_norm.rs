//! `out = x / sqrt(mean(x^2) + eps) * weight`, per row or per head.
//!
//! The order: squares are added with `fma`, input `i` in lane `i % 16`; the
//! lanes are added as a tree (8 apart, 4, 2, 1); `mean = sum / len`;
//! `factor = 1 / sqrt(mean + eps)`; `out = (x * factor) * weight`.

use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, Kernel, Simd, LANES};

/// Values that one thread does by itself.
const GRAIN: usize = 32 << 10;

/// Normalises every row of `cols` values of `x` into `out` and multiplies by `weight`.
pub fn rms_norm(
    dispatch: Dispatch,
    threads: &Threads,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let cols = weight.len();
    let out = Shared::new(out);
    threads.for_ranges(x.len() / cols, GRAIN / cols + 1, |rows| {
        let range = rows.start * cols..rows.end * cols;
        // SAFETY: ranges do not overlap.
        let out = unsafe { out.part(range.clone()) };
        dispatch.run(RmsNorm { x: &x[range], weight, eps, out });
    });
}

/// Normalises every `head_dim` values of `x` in place.
pub fn head_norm(dispatch: Dispatch, threads: &Threads, x: &mut [f32], head_dim: usize, eps: f32) {
    let heads = x.len() / head_dim;
    let x = Shared::new(x);
    threads.for_ranges(heads, GRAIN / head_dim + 1, |heads| {
        // SAFETY: ranges do not overlap.
        let x = unsafe { x.part(heads.start * head_dim..heads.end * head_dim) };
        dispatch.run(HeadNorm { x, head_dim, eps });
    });
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
fn factor<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let mut sum = simd.splat(0.0);
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        // SAFETY: 16 floats.
        let lanes = unsafe { simd.load(chunk.as_ptr()) };
        sum = simd.fma(lanes, lanes, sum);
    }
    let mut tail = [0.0; LANES];
    tail[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    // SAFETY: 16 floats.
    let lanes = unsafe { simd.load(tail.as_ptr()) };
    sum = simd.fma(lanes, lanes, sum);
    1.0 / (simd.sum(sum) / x.len() as f32 + eps).sqrt()
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cols = self.weight.len();
        for (x, out) in self.x.chunks_exact(cols).zip(self.out.chunks_exact_mut(cols)) {
            let factor = factor(simd, x, self.eps);
            for ((out, &x), &weight) in out.iter_mut().zip(x).zip(self.weight) {
                *out = (x * factor) * weight;
            }
        }
    }
}

struct HeadNorm<'a> {
    x: &'a mut [f32],
    head_dim: usize,
    eps: f32,
}

impl Kernel for HeadNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let factor = factor(simd, head, self.eps);
            head.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::Backend;
    use proptest::prelude::*;

    use super::*;
    use crate::test_support::{all_cpus, any_size, assert_bits, assert_close, Random};

    /// The order of operations of this file, one value at a time.
    fn reference(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
        let mut lanes = [0.0f32; LANES];
        x.iter().enumerate().for_each(|(i, x)| lanes[i % LANES] = x.mul_add(*x, lanes[i % LANES]));
        for width in [8, 4, 2, 1] {
            (0..width).for_each(|i| lanes[i] += lanes[i + width]);
        }
        let factor = 1.0 / (lanes[0] / x.len() as f32 + eps).sqrt();
        x.iter().zip(weight).map(|(x, weight)| (x * factor) * weight).collect()
    }

    fn exactly(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
        let mean = x.iter().map(|&x| x as f64 * x as f64).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean + eps as f64).sqrt();
        x.iter().zip(weight).map(|(&x, &weight)| x as f64 * factor * weight as f64).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_set_and_thread_count_gives_the_reference(
            rows in 1usize..20,
            heads in 1usize..4,
            size in any_size(),
            seed in any::<u64>(),
        ) {
            let random = &mut Random(seed);
            let cols = heads * size;
            let x = random.tensor(rows, cols);
            let (weight, ones) = (random.values(cols), vec![1.0; size]);
            let normed: Vec<f32> =
                x.values().chunks(cols).flat_map(|x| reference(x, &weight, 1e-5)).collect();
            let exact: Vec<f64> =
                x.values().chunks(cols).flat_map(|x| exactly(x, &weight, 1e-5)).collect();
            assert_close("reference", &exact, &normed, 1e-6);
            let head_normed: Vec<f32> =
                x.values().chunks(size).flat_map(|x| reference(x, &ones, 1e-6)).collect();
            for cpu in all_cpus() {
                let mut out = cpu.empty();
                cpu.rms_norm(&x, &weight, 1e-5, &mut out).unwrap();
                assert_bits(&cpu.description(), &normed, out.values());
                let mut out = x.clone();
                cpu.head_norm(&mut out, size, 1e-6).unwrap();
                assert_bits(&cpu.description(), &head_normed, out.values());
            }
        }
    }

    #[test]
    fn many_rows_are_shared_between_threads() {
        let random = &mut Random(8);
        let (x, weight) = (random.tensor(70, 5120), random.values(5120));
        let expected: Vec<f32> =
            x.values().chunks(5120).flat_map(|x| reference(x, &weight, 1e-5)).collect();
        for cpu in all_cpus() {
            let mut out = cpu.empty();
            cpu.rms_norm(&x, &weight, 1e-5, &mut out).unwrap();
            assert_bits(&cpu.description(), &expected, out.values());
        }
    }
}
