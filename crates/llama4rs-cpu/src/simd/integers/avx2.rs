//! Integer dot products of AVX2, with and without VNNI.

use std::arch::x86_64::*;

use super::{IntegerKernel, Integers};
use crate::simd::avx2::Avx2;
use crate::simd::Features;
use crate::InstructionSet;

/// The token of AVX2 with AVX-VNNI.
#[derive(Clone, Copy)]
pub struct Avx2Vnni(Avx2);

impl Avx2Vnni {
    /// The token, where the processor and the system know the instructions.
    pub fn detect() -> Option<Self> {
        Avx2::detect().filter(|_| Features::detect().have(InstructionSet::Avx2Vnni)).map(Self)
    }
}

/// Compiles `kernel` with AVX2, FMA and F16C.
///
/// # Safety
/// The processor has the features: whoever holds the token knows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn enabled<K: IntegerKernel>(integers: Avx2, kernel: K) {
    kernel.run(integers)
}

/// Compiles `kernel` with AVX2, FMA, F16C and AVX-VNNI.
///
/// # Safety
/// The processor has the features: whoever holds the token knows.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn enabled_vnni<K: IntegerKernel>(integers: Avx2Vnni, kernel: K) {
    kernel.run(integers)
}

/// 16 words.
type Words = (__m256i, __m256i);

/// `sum` and the products of four bytes, by way of 16 bits: two products must fit.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn widen(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let pairs = _mm256_maddubs_epi16(weights, x);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

macro_rules! common {
    () => {
        #[inline(always)]
        fn splat(self, word: u32) -> Words {
            // SAFETY: the token proves the features.
            let half = unsafe { _mm256_set1_epi32(word as i32) };
            (half, half)
        }
        #[inline(always)]
        fn low_nibbles(self, line: Words) -> Words {
            // SAFETY: the token proves the features.
            unsafe {
                let mask = _mm256_set1_epi8(15);
                (_mm256_and_si256(line.0, mask), _mm256_and_si256(line.1, mask))
            }
        }
        #[inline(always)]
        fn high_nibbles(self, line: Words) -> Words {
            // SAFETY: the token proves the features.
            unsafe {
                let shifted = (_mm256_srli_epi32::<4>(line.0), _mm256_srli_epi32::<4>(line.1));
                self.low_nibbles(shifted)
            }
        }
        #[inline(always)]
        fn to_floats(self, words: Words) -> (__m256, __m256) {
            // SAFETY: the token proves the features.
            unsafe { (_mm256_cvtepi32_ps(words.0), _mm256_cvtepi32_ps(words.1)) }
        }
    };
}

impl Integers for Avx2 {
    type Simd = Avx2;

    #[inline(always)]
    fn simd(self) -> Avx2 {
        self
    }
    fn run_integers<K: IntegerKernel>(self, kernel: K) {
        // SAFETY: the token proves the features.
        unsafe { enabled(self, kernel) }
    }

    #[inline(always)]
    fn dot_nibbles(self, sum: Words, weights: Words, x: Words) -> Words {
        // SAFETY: the token proves the features; 2 * 15 * 127 fits in 16 bits.
        unsafe { (widen(sum.0, weights.0, x.0), widen(sum.1, weights.1, x.1)) }
    }
    #[inline(always)]
    fn dot_bytes(self, sum: Words, weights: Words, x: Words) -> Words {
        // SAFETY: the token proves the features; 2 * 128 * 127 fits in 16 bits,
        // and both 127 and 128 are the most that is left of a byte.
        unsafe {
            let top = _mm256_set1_epi8(-128);
            let low = (_mm256_andnot_si256(top, weights.0), _mm256_andnot_si256(top, weights.1));
            let high = (_mm256_and_si256(top, weights.0), _mm256_and_si256(top, weights.1));
            let sum = (widen(sum.0, low.0, x.0), widen(sum.1, low.1, x.1));
            (widen(sum.0, high.0, x.0), widen(sum.1, high.1, x.1))
        }
    }
    #[inline(always)]
    fn dot_halves(self, sum: Words, a: Words, b: Words) -> Words {
        // SAFETY: the token proves the features.
        unsafe {
            (
                _mm256_add_epi32(sum.0, _mm256_madd_epi16(a.0, b.0)),
                _mm256_add_epi32(sum.1, _mm256_madd_epi16(a.1, b.1)),
            )
        }
    }
    common!();
}

impl Integers for Avx2Vnni {
    type Simd = Avx2;

    #[inline(always)]
    fn simd(self) -> Avx2 {
        self.0
    }
    fn run_integers<K: IntegerKernel>(self, kernel: K) {
        // SAFETY: the token proves the features.
        unsafe { enabled_vnni(self, kernel) }
    }

    #[inline(always)]
    fn dot_nibbles(self, sum: Words, weights: Words, x: Words) -> Words {
        self.dot_bytes(sum, weights, x)
    }
    #[inline(always)]
    fn dot_bytes(self, sum: Words, weights: Words, x: Words) -> Words {
        // SAFETY: the token proves the features.
        unsafe {
            (
                _mm256_dpbusd_avx_epi32(sum.0, weights.0, x.0),
                _mm256_dpbusd_avx_epi32(sum.1, weights.1, x.1),
            )
        }
    }
    #[inline(always)]
    fn dot_halves(self, sum: Words, a: Words, b: Words) -> Words {
        // SAFETY: the token proves the features.
        unsafe {
            (_mm256_dpwssd_avx_epi32(sum.0, a.0, b.0), _mm256_dpwssd_avx_epi32(sum.1, a.1, b.1))
        }
    }
    common!();
}
