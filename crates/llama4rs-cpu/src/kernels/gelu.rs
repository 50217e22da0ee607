//! `x = x/2 (1 + erf(x / sqrt(2)))`, the exact GELU.
//!
//! The order: `a = max(x, -x)`; `x = max(x, 0) - a tail(a)`, with the
//! [`normal_tail`] of [`super::erf`]. For negative `x` this is a product alone, so
//! the left tail keeps its digits; for positive `x` it is `x` less a small part.

use super::erf::normal_tail;
use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, Kernel, Simd, LANES};

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

/// GELU in place.
pub fn gelu(dispatch: Dispatch, threads: &Threads, x: &mut [f32]) {
    let len = x.len();
    let x = Shared::new(x);
    threads.for_ranges(len, GRAIN, |range| {
        // SAFETY: ranges do not overlap.
        let x = unsafe { x.part(range) };
        dispatch.run(Gelu(x));
    });
}

struct Gelu<'a>(&'a mut [f32]);

impl Kernel for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut chunks = self.0.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            // SAFETY: 16 floats.
            unsafe {
                let x = simd.load(chunk.as_ptr());
                simd.store(gelu_lanes(simd, x), chunk.as_mut_ptr());
            }
        }
        let rest = chunks.into_remainder();
        let mut tail = [0.0; LANES];
        tail[..rest.len()].copy_from_slice(rest);
        // SAFETY: 16 floats.
        unsafe {
            let x = simd.load(tail.as_ptr());
            simd.store(gelu_lanes(simd, x), tail.as_mut_ptr());
        }
        rest.copy_from_slice(&tail[..rest.len()]);
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
            let mut got = plain.clone();
            gelu(cpu.dispatch, &cpu.threads, &mut got);
            for (&x, &got) in plain.iter().zip(&got) {
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
            let mut x = [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX, 0.0, f32::NAN];
            gelu(cpu.dispatch, &cpu.threads, &mut x);
            assert_eq!(x[..5], [f32::INFINITY, 0.0, f32::MAX, 0.0, 0.0], "{}", cpu.description());
            assert!(x[5].is_nan(), "{}", cpu.description());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn every_set_and_thread_count_gives_the_reference(
            len in prop::sample::select(vec![0, 1, 15, 16, 17, 1000, 2 * GRAIN + 5]),
            size in 0.1f32..20.0,
            seed in any::<u64>(),
        ) {
            let plain: Vec<f32> = Random(seed).values(len).iter().map(|x| x * size).collect();
            let expected: Vec<f32> = plain.iter().map(|&x| reference(x)).collect();
            for cpu in all_cpus() {
                let mut got = plain.clone();
                gelu(cpu.dispatch, &cpu.threads, &mut got);
                assert_bits(&cpu.description(), &expected, &got);
            }
        }
    }
}
