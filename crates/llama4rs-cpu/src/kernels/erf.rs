//! The tail of the normal distribution, `erfc(a / sqrt(2)) / 2` for `a >= 0`, the
//! same bits on every instruction set.
//!
//! `erf` and `erfc` follow from it: `erf(z) = 1 - 2 tail(z sqrt(2))` for `z >= 0`.
//!
//! `tail(a) = exp(-a^2/2) M(a)`, where `M` (the Mills ratio over `sqrt(2 pi)`)
//! falls smoothly from 1/2 to `1 / (a sqrt(2 pi))`. With `s = a / (a + 3)` it is
//! `M = (1 - s) P(s)` with a polynomial of degree 10: the one with `P(0) = 1/2` whose
//! largest relative error over `0 <= a <= 16` is smallest, 1e-9, found by Remez'
//! exchange. `s` has all its digits where `a` is small, so `tail(0) = 1/2` exactly and
//! the error of `erf` stays near 1e-7, the one of `erfc` below 5e-7 of itself.
//! `a^2` is taken as a rounded square plus its rounding error, or else the
//! exponential would magnify that error in the tail. Beyond 16 the tail is below
//! every float: zero. A NaN stays a NaN.

use super::exp::exp;
use crate::simd::Simd;

/// Beyond this the tail is zero.
const FAR: f32 = 16.0;
/// `P`, highest power first.
const P: [f32; 11] = [
    0.018_482_45,
    -0.070_060_89,
    0.086_497_04,
    -0.036_714_93,
    0.037_938_02,
    -0.046_022_19,
    -0.085_589_51,
    0.068_927_39,
    0.356_351_77,
    -0.696_826_93,
    0.5,
];

/// `erfc(a / sqrt(2)) / 2` of every lane; no lane is negative.
#[inline(always)]
pub fn normal_tail<S: Simd>(simd: S, a: S::F) -> S::F {
    // The constant comes first: a comparison with a NaN chooses the second.
    let a = simd.min(simd.splat(FAR), a);
    let s = simd.div(a, simd.add(a, simd.splat(3.0)));
    let mut sum = simd.splat(P[0]);
    for coefficient in &P[1..] {
        sum = simd.fma(sum, s, simd.splat(*coefficient));
    }
    let ratio = simd.fma(simd.sub(simd.splat(0.0), s), sum, sum);
    let half = simd.mul(a, simd.splat(-0.5));
    let exponent = simd.mul(half, a);
    let rest = simd.fma(half, a, simd.sub(simd.splat(0.0), exponent));
    // exp(exponent + rest) = exp(exponent) (1 + rest), as `rest` is tiny.
    simd.mul(exp(simd, exponent), simd.fma(ratio, rest, ratio))
}

/// The same of single floats, and once more in double precision.
#[cfg(test)]
pub mod reference {
    use super::{FAR, P};
    use crate::kernels::exp::reference::exp;

    /// In the order of operations of [`super::normal_tail`].
    pub fn normal_tail(a: f32) -> f32 {
        let a = if FAR < a { FAR } else { a };
        let s = a / (a + 3.0);
        let sum = P[1..].iter().fold(P[0], |sum, &c| sum.mul_add(s, c));
        let ratio = (0.0 - s).mul_add(sum, sum);
        let exponent = -0.5 * a * a;
        let rest = (-0.5 * a).mul_add(a, 0.0 - exponent);
        exp(exponent) * ratio.mul_add(rest, ratio)
    }

    /// `erf(z)`, from the series whose terms are all of one sign:
    /// `2/sqrt(pi) exp(-z^2) (z + 2 z^3 / 3 + 4 z^5 / 15 + ...)`.
    pub fn erf_exactly(z: f64) -> f64 {
        if z.abs() > 6.5 {
            return z.signum();
        }
        let (mut term, mut sum, mut n) = (z, z, 1.0);
        while term.abs() > 1e-20 * sum.abs() {
            n += 2.0;
            term *= 2.0 * z * z / n;
            sum += term;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-z * z).exp() * sum
    }

    /// `erfc(z)` for `z >= 0`; the continued fraction
    /// `exp(-z^2)/sqrt(pi) / (z + (1/2)/(z + (2/2)/(z + (3/2)/(z + ...))))` where it is small.
    pub fn erfc_exactly(z: f64) -> f64 {
        if z < 2.0 {
            return 1.0 - erf_exactly(z);
        }
        let fraction = (1..=200).rev().fold(z, |below, k| z + k as f64 / 2.0 / below);
        (-z * z).exp() * 0.5 * std::f64::consts::FRAC_2_SQRT_PI / fraction
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, LANES};
    use crate::test_support::all_dispatches;

    struct Tail<'a>(&'a mut [f32]);

    impl Kernel for Tail<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for a in self.0.chunks_exact_mut(LANES) {
                // SAFETY: 16 floats.
                unsafe { simd.store(normal_tail(simd, simd.load(a.as_ptr())), a.as_mut_ptr()) };
            }
        }
    }

    #[test]
    fn the_double_precision_references_agree_with_tables() {
        let known = [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
        ];
        for (z, expected) in known {
            assert!((reference::erf_exactly(z) - expected).abs() < 1e-14, "erf({z})");
            assert!((reference::erfc_exactly(z) - (1.0 - expected)).abs() < 1e-14, "erfc({z})");
        }
        let expected = 1.537_459_794_428_034_8e-12;
        assert!((reference::erfc_exactly(5.0) / expected - 1.0).abs() < 1e-12, "erfc(5)");
    }

    #[test]
    fn erf_and_its_tail_are_close_everywhere() {
        let plain: Vec<f32> = (0..1 << 18).map(|i| i as f32 / (1 << 18) as f32 * 12.9).collect();
        for (set, dispatch) in all_dispatches() {
            let (mut largest, mut relative) = (0f64, 0f64);
            let mut got = plain.clone();
            dispatch.run(Tail(&mut got));
            for (&a, &got) in plain.iter().zip(&got) {
                assert_eq!(reference::normal_tail(a).to_bits(), got.to_bits(), "{set}: {a}");
                let z = a as f64 * std::f64::consts::FRAC_1_SQRT_2;
                let erf = (1.0 - 2.0 * got) as f64;
                largest = largest.max((erf - reference::erf_exactly(z)).abs());
                let erfc = reference::erfc_exactly(z);
                relative = relative.max((2.0 * got as f64 / erfc - 1.0).abs());
            }
            println!("{set}: erf is off by {largest:.2e}, erfc by {relative:.2e} of itself");
            assert!(largest <= 1.5e-7, "{set}: erf is off by {largest:.2e}");
            assert!(relative <= 6e-7, "{set}: erfc is off by {relative:.2e} of itself");
        }
    }

    #[test]
    fn special_values() {
        for (set, dispatch) in all_dispatches() {
            let mut a = [0.0; LANES];
            a[1] = f32::INFINITY;
            a[2] = f32::MAX;
            a[3] = f32::NAN;
            dispatch.run(Tail(&mut a));
            assert_eq!(a[..3], [0.5, 0.0, 0.0], "{set}");
            assert!(a[3].is_nan(), "{set}");
        }
    }
}
