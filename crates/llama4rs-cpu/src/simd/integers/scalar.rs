//! Integer dot products in plain Rust.

use super::{IntegerKernel, Integers};
use crate::simd::scalar::Scalar;
use crate::simd::LANES;

type Words = [u32; LANES];

impl Integers for Scalar {
    type Simd = Self;

    fn simd(self) -> Self {
        self
    }
    fn run_integers<K: IntegerKernel>(self, kernel: K) {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, word: u32) -> Words {
        [word; LANES]
    }
    #[inline(always)]
    fn low_nibbles(self, line: Words) -> Words {
        line.map(|word| word & 0x0F0F_0F0F)
    }
    #[inline(always)]
    fn high_nibbles(self, line: Words) -> Words {
        line.map(|word| word >> 4 & 0x0F0F_0F0F)
    }
    #[inline(always)]
    fn dot_nibbles(self, sum: Words, weights: Words, x: Words) -> Words {
        self.dot_bytes(sum, weights, x)
    }
    #[inline(always)]
    fn dot_bytes(self, mut sum: Words, weights: Words, x: Words) -> Words {
        for byte in 0..4 {
            for lane in 0..LANES {
                let weight = (weights[lane] >> (8 * byte)) as u8 as i32;
                let x = (x[lane] >> (8 * byte)) as i8 as i32;
                sum[lane] = sum[lane].wrapping_add((weight * x) as u32);
            }
        }
        sum
    }
    #[inline(always)]
    fn dot_halves(self, mut sum: Words, a: Words, b: Words) -> Words {
        for lane in 0..LANES {
            let half = |word: u32, h: usize| (word >> (16 * h)) as i16 as i32;
            for h in 0..2 {
                let product = half(a[lane], h) * half(b[lane], h);
                sum[lane] = sum[lane].wrapping_add(product as u32);
            }
        }
        sum
    }
    #[inline(always)]
    fn to_floats(self, words: Words) -> [f32; LANES] {
        words.map(|word| word as i32 as f32)
    }
}
