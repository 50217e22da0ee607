//! `out = (x - mean) / sqrt(var + eps) * weight + bias`, per row, with the biased variance.
//!
//! The order: input `i` is added in lane `i % 16`; the lanes are added as a tree
//! (8 apart, 4, 2, 1); `mean = sum / len`. A second pass adds the squares of
//! `x - mean` with `fma` in the same lanes and the same tree;
//! `factor = 1 / sqrt(squares / len + eps)`;
//! `out = ((x - mean) * factor) * weight + bias`, each step rounded.

use super::norm_rows::{for_rows, sum_of};
use crate::parallel::Threads;
use crate::simd::{Dispatch, Kernel, Simd};

/// Normalises every row of `x` into `out`; rows have as many values as `weight`
/// and `bias`, and that is not zero.
pub fn layer_norm(
    dispatch: Dispatch,
    threads: &Threads,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    for_rows(threads, x, weight.len(), out, |x, out| {
        dispatch.run(LayerNorm { x, weight, bias, eps, out });
    });
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { weight, bias, .. } = self;
        let cols = weight.len();
        for (x, out) in self.x.chunks_exact(cols).zip(self.out.chunks_exact_mut(cols)) {
            let mean = sum_of(simd, x, 0.0, |sum, x| simd.add(sum, x)) / cols as f32;
            let means = simd.splat(mean);
            // A padding of `mean` adds nothing.
            let squares = sum_of(simd, x, mean, |sum, x| {
                let apart = simd.sub(x, means);
                simd.fma(apart, apart, sum)
            });
            let factor = 1.0 / (squares / cols as f32 + self.eps).sqrt();
            for (((out, &x), &weight), &bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = ((x - mean) * factor) * weight + bias;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::Backend;
    use proptest::prelude::*;

    use super::*;
    use crate::simd::LANES;
    use crate::test_support::{all_cpus, any_size, assert_bits, assert_close, Random};

    /// A sum in 16 lanes, then a tree.
    fn lanes_and_tree(x: impl Iterator<Item = f32>, add: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        x.enumerate().for_each(|(i, x)| lanes[i % LANES] = add(lanes[i % LANES], x));
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }

    fn reference(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
        let len = x.len() as f32;
        let mean = lanes_and_tree(x.iter().copied(), |sum, x| sum + x) / len;
        let squares = lanes_and_tree(x.iter().map(|x| x - mean), |sum, x| x.mul_add(x, sum));
        let factor = 1.0 / (squares / len + eps).sqrt();
        let affine = weight.iter().zip(bias);
        x.iter().zip(affine).map(|(x, (w, b))| ((x - mean) * factor) * w + b).collect()
    }

    fn exactly(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f64> {
        let len = x.len() as f64;
        let mean = x.iter().map(|&x| x as f64).sum::<f64>() / len;
        let var = x.iter().map(|&x| (x as f64 - mean).powi(2)).sum::<f64>() / len;
        let factor = 1.0 / (var + eps as f64).sqrt();
        let affine = weight.iter().zip(bias);
        let out = x.iter().zip(affine);
        out.map(|(&x, (&w, &b))| (x as f64 - mean) * factor * w as f64 + b as f64).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn every_set_and_thread_count_gives_the_reference(
            rows in prop::sample::select(vec![1usize, 2, 5, 400]),
            cols in any_size(),
            offset in -3.0f32..3.0,
            seed in any::<u64>(),
        ) {
            let random = &mut Random(seed);
            let x: Vec<f32> = random.values(rows * cols).iter().map(|x| x + offset).collect();
            let (weight, bias) = (random.values(cols), random.values(cols));
            let eps = 1e-5;
            let rows = x.chunks_exact(cols);
            let expected: Vec<f32> =
                rows.clone().flat_map(|x| reference(x, &weight, &bias, eps)).collect();
            // The mean's own rounding is divided by the deviation: few columns may be alike.
            if cols > 2 {
                let exact: Vec<f64> = rows.flat_map(|x| exactly(x, &weight, &bias, eps)).collect();
                assert_close("reference", &exact, &expected, 1e-5);
            }
            for cpu in all_cpus() {
                let mut got = vec![f32::NAN; x.len()];
                layer_norm(cpu.dispatch, &cpu.threads, &x, &weight, &bias, eps, &mut got);
                assert_bits(&cpu.description(), &expected, &got);
            }
        }
    }

    #[test]
    fn a_row_of_equal_values_becomes_the_bias() {
        for cpu in all_cpus() {
            let (weight, bias) = ([2.0; 32], [0.25; 32]);
            let mut got = vec![f32::NAN; 32];
            layer_norm(cpu.dispatch, &cpu.threads, &[3.0; 32], &weight, &bias, 1e-5, &mut got);
            assert_bits(&cpu.description(), &bias, &got);
        }
    }
}
