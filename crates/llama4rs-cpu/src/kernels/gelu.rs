//! `x = x/2 (1 + erf(x / sqrt(2)))`, the exact GELU.
//!
//! A bias is added first. The order: `a = max(x, -x)`; `x = max(x, 0) - a tail(a)`, with the
//! [`normal_tail`] of [`super::erf`]. For negative `x` this is a product alone, so
//! the left tail keeps its digits; for positive `x` it is `x` less a small part.

use super::erf::normal_tail;
use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, Kernel, Simd, LANES};
use crate::Tensor;

/// Values that one thread does by itself.
const GRAIN: usize = 16 << 10;

/// Tails beyond this are zero; it keeps infinity times zero away.
const FAR: f32 = 16.0;

/// GELU of every lane.
#[inline(always)]
pub fn gelu_lanes<S: Simd>(simd: S, x: S::F) -> S::F {
    let zero = simd.splat(0.0);
    // The constants come first: a comparison with a NaN chooses the second.
    let a = simd.min(simd.splat(FAR), simd.max(x, simd.sub(zero, x)));
    simd.sub(simd.max(zero, x), simd.mul(a, normal_tail(simd, a)))
}

/// GELU in place, of `x + bias` if there is one, which is as long as a row.
pub fn gelu(dispatch: Dispatch, threads: &Threads, x: &mut Tensor, bias: Option<&[f32]>) {
    let (rows, cols) = (x.rows(), x.cols());
    let x = Shared::new(x.values_mut());
    threads.for_ranges(rows, GRAIN / cols.max(1) + 1, |rows| {
        // SAFETY: ranges do not overlap.
        let x = unsafe { x.part(rows.start * cols..rows.end * cols) };
        dispatch.run(Gelu { x, cols, bias });
    });
}

/// Some rows.
struct Gelu<'a> {
    x: &'a mut [f32],
    cols: usize,
    bias: Option<&'a [f32]>,
}

impl Kernel for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, cols, bias } = self;
        let whole = cols / LANES * LANES;
        for row in x.chunks_exact_mut(cols) {
            for first in (0..whole).step_by(LANES) {
                let bias = bias.map(|bias| &bias[first..first + LANES]);
                gelu_sixteen(simd, &mut row[first..first + LANES], bias);
            }
            if whole < cols {
                let (mut tail, mut tail_bias) = ([0.0; LANES], [0.0; LANES]);
                tail[..cols - whole].copy_from_slice(&row[whole..]);
                if let Some(bias) = bias {
                    tail_bias[..cols - whole].copy_from_slice(&bias[whole..]);
                }
                gelu_sixteen(simd, &mut tail, bias.map(|_| &tail_bias[..]));
                row[whole..].copy_from_slice(&tail[..cols - whole]);
            }
        }
    }
}

/// GELU of sixteen values, with as many of the bias.
#[inline(always)]
fn gelu_sixteen<S: Simd>(simd: S, x: &mut [f32], bias: Option<&[f32]>) {
    assert!(x.len() == LANES && bias.is_none_or(|bias| bias.len() == LANES));
    // SAFETY: 16 floats each.
    unsafe {
        let mut sum = simd.load(x.as_ptr());
        if let Some(bias) = bias {
            sum = simd.add(sum, simd.load(bias.as_ptr()));
        }
        simd.store(gelu_lanes(simd, sum), x.as_mut_ptr());
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::Backend;
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::erf::reference::{erfc_exactly, normal_tail};
    use crate::test_support::{all_cpus, assert_bits, Random};

    fn reference(x: f32) -> f32 {
        let a = x.abs().min(FAR);
        x.max(0.0) - a * normal_tail(a)
    }

    fn exactly(x: f32) -> f64 {
        let (x, z) = (x as f64, x.abs() as f64 * std::f64::consts::FRAC_1_SQRT_2);
        x.max(0.0) - x.abs() * 0.5 * erfc_exactly(z)
    }

    #[test]
    fn error_is_a_few_units_and_the_tails_are_right() {
        let plain: Vec<f32> =
            (0..1 << 18).map(|i| (i as f32 / (1 << 18) as f32 - 0.5) * 36.0).collect();
        for cpu in all_cpus() {
            let mut got = Tensor::from_values(&plain, 64).unwrap();
            gelu(cpu.dispatch, &cpu.threads, &mut got, None);
            for (&x, &got) in plain.iter().zip(got.values()) {
                let expected = exactly(x);
                let error = (got as f64 - expected).abs();
                let what = cpu.description();
                // Below the normal numbers an absolute error is all that can be asked.
                let bound = (expected.abs() * 6e-7).max(1e-40);
                assert!(error <= bound, "{what}: gelu({x}) = {got}, not {expected}");
                assert!(error <= 5e-7 * x.abs().max(1.0) as f64, "{what}: gelu({x}) = {got}");
            }
        }
    }

    #[test]
    fn special_values() {
        for cpu in all_cpus() {
            let x = [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX, 0.0, f32::NAN];
            let mut x = Tensor::from_values(&x, 6).unwrap();
            gelu(cpu.dispatch, &cpu.threads, &mut x, None);
            let x = x.values();
            assert_eq!(x[..5], [f32::INFINITY, 0.0, f32::MAX, 0.0, 0.0], "{}", cpu.description());
            assert!(x[5].is_nan(), "{}", cpu.description());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn every_set_and_thread_count_gives_the_reference(
            (rows, cols) in prop::sample::select(vec![
                (0, 5), (1, 1), (3, 15), (5, 16), (2, 17), (1000, 33), (2, 2 * GRAIN + 5),
            ]),
            size in 0.1f32..20.0,
            seed in any::<u64>(),
        ) {
            let random = &mut Random(seed);
            let values: Vec<f32> = random.values(rows * cols).iter().map(|x| x * size).collect();
            let plain = Tensor::from_values(&values, cols).unwrap();
            let bias = random.values(cols);
            for bias in [None, Some(&bias[..])] {
                let sum = |i: usize, x: f32| bias.map_or(x, |bias| x + bias[i % cols]);
                let sums = values.iter().enumerate().map(|(i, &x)| sum(i, x));
                let expected: Vec<f32> = sums.map(reference).collect();
                for cpu in all_cpus() {
                    let mut got = plain.clone();
                    gelu(cpu.dispatch, &cpu.threads, &mut got, bias);
                    assert_bits(&cpu.description(), &expected, got.values());
                }
            }
        }
    }
}
