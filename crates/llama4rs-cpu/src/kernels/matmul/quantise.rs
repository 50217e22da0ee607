//! A group of activations as 8-bit integers.
//!
//! ```text
//! top = max |x[i]|;  scale = top / 127;  code[i] = round(x[i] * (127 / top))
//! ```
//!
//! rounded to the nearest integer, halves to the even one, so `-127..=127`. Two
//! exceptions: where `top` is below [`TINY`] the codes and the scale are zero,
//! and where some `x[i]` is not finite the codes are zero and the scale is not a
//! number, which makes every output of the row one, too.

use crate::simd::{Simd, LANES};

/// Most inputs in a group.
pub const MAX_GROUP: usize = 128;
/// Groups of smaller activations are taken as zeros: `127 / top` stays finite.
pub const TINY: f32 = 1e-30;
/// `1.5 * 2^23`: added to a small number it leaves the rounded integer in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// A quantised group.
pub struct Group {
    /// Four signed codes per word.
    pub words: [u32; MAX_GROUP / 4],
    /// Sum of all codes.
    pub sum: i32,
    /// What a code of one stands for.
    pub scale: f32,
}

/// Quantises `factor * x`, whose length is a multiple of 16 and at most
/// [`MAX_GROUP`]. Call it inside of a kernel.
#[inline(always)]
pub fn quantise<S: Simd>(simd: S, x: &[f32], factor: f32) -> Group {
    let vectors = x.chunks_exact(LANES);
    let (zero, factor) = (simd.splat(0.0), simd.splat(factor));
    let (mut top, mut low, mut zeros) = (zero, zero, zero);
    for x in vectors.clone() {
        // SAFETY: 16 floats.
        let x = simd.mul(factor, unsafe { simd.load(x.as_ptr()) });
        top = simd.max(x, top);
        low = simd.min(x, low);
        zeros = simd.fma(x, zero, zeros);
    }
    let top = simd.largest(simd.max(top, simd.sub(zero, low)));
    let mut group = Group { words: [0; MAX_GROUP / 4], sum: 0, scale: 0.0 };
    // Zero times a finite number is zero, times anything else not a number.
    if simd.sum(zeros) != 0.0 {
        group.scale = f32::NAN;
    } else if top >= TINY {
        group.scale = top / 127.0;
        let (inverse, magic) = (simd.splat(127.0 / top), simd.splat(MAGIC));
        let mut sum = zero;
        for (words, x) in group.words.chunks_exact_mut(LANES / 4).zip(vectors) {
            // SAFETY: 16 floats.
            let x = simd.mul(factor, unsafe { simd.load(x.as_ptr()) });
            let rounded = simd.add(simd.mul(x, inverse), magic);
            words.copy_from_slice(&simd.low_bytes(rounded));
            sum = simd.add(sum, simd.sub(rounded, magic));
        }
        group.sum = simd.sum(sum) as i32;
    }
    group
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Kernel;
    use crate::test_support::{all_dispatches, Random};

    struct Quantise<'a>(&'a [f32; MAX_GROUP], usize);

    impl Kernel for Quantise<'_> {
        type Output = Group;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Group {
            quantise(simd, &self.0[..self.1], 1.0)
        }
    }

    /// Codes, sum and scale, after a check that all instruction sets agree.
    fn codes(x: &[f32]) -> (Vec<i8>, i32, f32) {
        let mut padded = [0.0; MAX_GROUP];
        padded[..x.len()].copy_from_slice(x);
        let mut results = all_dispatches().into_iter().map(|(_, dispatch)| {
            let group = dispatch.run(Quantise(&padded, x.len().next_multiple_of(32)));
            let codes = group.words.iter().flat_map(|word| word.to_le_bytes());
            let codes: Vec<i8> = codes.map(|byte| byte as i8).collect();
            (codes, group.sum, group.scale)
        });
        let (mut codes, sum, scale) = results.next().unwrap();
        for other in results {
            assert_eq!((&codes, sum, scale.to_bits()), (&other.0, other.1, other.2.to_bits()));
        }
        assert!(codes.drain(x.len()..).all(|code| code == 0));
        (codes, sum, scale)
    }

    #[test]
    fn codes_are_the_nearest_ones() {
        let mut random = Random(1);
        for len in [1, 5, 32, 64, 100, 128] {
            for size in [1e-25, 1.0, 1e30] {
                let x: Vec<f32> = random.values(len).iter().map(|x| x * size).collect();
                let top = x.iter().fold(0.0f32, |top, x| top.max(x.abs()));
                let (codes, sum, scale) = codes(&x);
                assert_eq!(scale, top / 127.0);
                assert_eq!(sum, codes.iter().map(|&code| code as i32).sum::<i32>());
                for (&code, x) in codes.iter().zip(&x) {
                    assert_eq!(code as f32, (x * (127.0 / top)).round_ties_even());
                }
            }
        }
    }

    #[test]
    fn halves_go_to_the_even_code() {
        let (codes, _, scale) = codes(&[127.0, 0.5, 1.5, -0.5, -1.5, -2.5, -127.0]);
        assert_eq!((codes, scale), (vec![127, 0, 2, 0, -2, -2, -127], 1.0));
    }

    #[test]
    fn what_cannot_be_scaled() {
        assert_eq!(codes(&[0.0, -0.0]), (vec![0, 0], 0, 0.0));
        assert_eq!(codes(&[1e-31, f32::MIN_POSITIVE / 8.0]), (vec![0, 0], 0, 0.0));
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (codes, sum, scale) = codes(&[1.0, bad, f32::MAX]);
            assert_eq!((codes, sum), (vec![0, 0, 0], 0));
            assert!(scale.is_nan());
        }
    }
}
