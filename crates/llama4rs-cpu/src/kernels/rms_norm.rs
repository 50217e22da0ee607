//! `out = x / sqrt(mean(x^2) + eps) * weight`, per row or per head.
//!
//! The order: squares are added with `fma`, input `i` in lane `i % 16`; the
//! lanes are added as a tree (8 apart, 4, 2, 1); `mean = sum / len`;
//! `factor = 1 / sqrt(mean + eps)`; `out = (x * factor) * weight`.

use super::norm_rows::{for_rows, sum_of, GRAIN};
use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, Kernel, Simd};

/// Normalises every row of `cols` values of `x` into `out` and multiplies by `weight`.
pub fn rms_norm(
    dispatch: Dispatch,
    threads: &Threads,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    for_rows(threads, x, weight.len(), out, |x, out| {
        dispatch.run(RmsNorm { x, weight, eps, out });
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
    let squares = sum_of(simd, x, 0.0, |sum, x| simd.fma(x, x, sum));
    1.0 / (squares / x.len() as f32 + eps).sqrt()
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

    use crate::simd::LANES;
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
