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

/// Quantises the first `len` of `x`, a multiple of 32.
#[inline(always)]
pub fn quantise(x: &[f32; MAX_GROUP], len: usize) -> Group {
    let x = &x[..len];
    // As integers the magnitudes have the order of the floats; what is not
    // finite comes last.
    let top = x.iter().fold(0, |top, x| top.max(x.to_bits() & 0x7FFF_FFFF));
    let top = f32::from_bits(top);
    let mut group = Group { words: [0; MAX_GROUP / 4], sum: 0, scale: 0.0 };
    if !top.is_finite() {
        group.scale = f32::NAN;
    } else if top >= TINY {
        group.scale = top / 127.0;
        let inverse = 127.0 / top;
        for (word, x) in group.words.iter_mut().zip(x.chunks_exact(4)) {
            let mut bytes = [0; 4];
            for i in 0..4 {
                bytes[i] = (x[i] * inverse + MAGIC).to_bits() as u8;
                group.sum += bytes[i] as i8 as i32;
            }
            *word = u32::from_le_bytes(bytes);
        }
    }
    group
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::Random;

    fn codes(x: &[f32]) -> (Vec<i8>, i32, f32) {
        let mut padded = [0.0; MAX_GROUP];
        padded[..x.len()].copy_from_slice(x);
        let group = quantise(&padded, x.len().next_multiple_of(32));
        let codes = group.words.iter().flat_map(|word| word.to_le_bytes().map(|byte| byte as i8));
        (codes.take(x.len()).collect(), group.sum, group.scale)
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
