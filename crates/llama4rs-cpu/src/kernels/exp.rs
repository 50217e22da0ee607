//! `exp(x)`, the same bits on every instruction set.
//!
//! `x = n ln 2 + r` with an integer `n` and `|r| <= ln 2 / 2`, so that
//! `exp(x) = 2^n exp(r)`. `exp(r)` is a polynomial of degree 7 (Taylor: its
//! remainder `|r|^8 / 8!` is 5e-9 relative, a twelfth of a rounding), `2^n` is
//! multiplied on in two halves, which gives infinities and subnormal numbers
//! their place. The error is below one unit in the last place; `exp(0) = 1`
//! exactly; `exp(-inf) = 0`; a NaN stays a NaN.

use crate::simd::Simd;

/// Adding this to a float below 2^22 leaves no bits for a fraction.
const ROUND: f32 = 12_582_912.0;
/// `exp` of anything below is zero.
const LOWEST: f32 = -104.5;
/// `exp` of anything above is infinite.
const HIGHEST: f32 = 89.0;
/// The upper bits of ln 2: multiples up to 2^8 are exact.
const LN2_HIGH: f32 = 0.693_359_4;
/// ln 2 minus [`LN2_HIGH`].
const LN2_LOW: f32 = -2.121_944_4e-4;
/// 1/7!, 1/6!, ..., 1/1!, 1/0!.
const TAYLOR: [f32; 8] =
    [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// `exp` of every lane.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    // The constant comes first: a comparison with a NaN chooses the second.
    let x = simd.min(simd.splat(HIGHEST), simd.max(simd.splat(LOWEST), x));
    let round = simd.splat(ROUND);
    let n = simd.sub(simd.fma(x, simd.splat(std::f32::consts::LOG2_E), round), round);
    let r = simd.fma(n, simd.splat(-LN2_HIGH), x);
    let r = simd.fma(n, simd.splat(-LN2_LOW), r);
    let mut sum = simd.splat(TAYLOR[0]);
    for coefficient in &TAYLOR[1..] {
        sum = simd.fma(sum, r, simd.splat(*coefficient));
    }
    let half = simd.sub(simd.fma(n, simd.splat(0.5), round), round);
    let rest = simd.sub(n, half);
    simd.mul(simd.mul(sum, simd.pow2(half)), simd.pow2(rest))
}

/// `exp` of one float, in the same order of operations.
#[cfg(test)]
pub mod reference {
    use super::{HIGHEST, LN2_HIGH, LN2_LOW, LOWEST, TAYLOR};

    pub fn exp(x: f32) -> f32 {
        if x.is_nan() {
            return x;
        }
        let x = x.clamp(LOWEST, HIGHEST);
        let n = (x as f64 * std::f32::consts::LOG2_E as f64).round_ties_even();
        let r = (n as f32).mul_add(-LN2_LOW, (n as f32).mul_add(-LN2_HIGH, x));
        let sum = TAYLOR[1..].iter().fold(TAYLOR[0], |sum, &c| sum.mul_add(r, c));
        let half = (n / 2.0).round_ties_even();
        sum * (half.exp2() as f32) * ((n - half).exp2() as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, LANES};
    use crate::test_support::{all_dispatches, distance};

    struct Exp<'a>(&'a mut [f32]);

    impl Kernel for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for x in self.0.chunks_exact_mut(LANES) {
                // SAFETY: 16 floats.
                unsafe { simd.store(exp(simd, simd.load(x.as_ptr())), x.as_mut_ptr()) };
            }
        }
    }

    #[test]
    fn error_is_below_one_unit_everywhere() {
        let plain: Vec<f32> = (0..1 << 20)
            .map(|i| (i as f32 / (1 << 20) as f32 - 0.5) * 230.0)
            .chain((0..1 << 12).map(|i| (i as f32 - 2048.0) * 1e-5))
            .collect();
        for (set, dispatch) in all_dispatches() {
            let mut got = plain.clone();
            dispatch.run(Exp(&mut got));
            for (&x, &got) in plain.iter().zip(&got) {
                let expected = (x as f64).exp();
                let rounded = expected as f32;
                assert!(distance(rounded, got) <= 1, "{set}: exp({x}) = {got}, not {rounded}");
                assert_eq!(reference::exp(x).to_bits(), got.to_bits(), "{set}: exp({x})");
            }
        }
    }

    #[test]
    fn special_values() {
        for (set, dispatch) in all_dispatches() {
            let mut x = [0.0; LANES];
            x[1] = f32::NEG_INFINITY;
            x[2] = f32::INFINITY;
            x[3] = f32::NAN;
            x[4] = -0.0;
            x[5] = -f32::MAX;
            dispatch.run(Exp(&mut x));
            assert_eq!(
                [x[0], x[1], x[2], x[4], x[5]],
                [1.0, 0.0, f32::INFINITY, 1.0, 0.0],
                "{set}"
            );
            assert!(x[3].is_nan(), "{set}");
        }
    }
}
