//! Integer dot products of AVX-512, with and without VNNI.

use std::arch::x86_64::*;

use super::{IntegerKernel, Integers};
use crate::simd::avx512::Avx512;
use crate::simd::Features;
use crate::InstructionSet;

/// The token of AVX-512 with VNNI, and with BF16 where that is true.
#[derive(Clone, Copy)]
pub struct Avx512Vnni<const BF16: bool>(Avx512<BF16>);

impl<const BF16: bool> Avx512Vnni<BF16> {
    /// The token, where the processor and the system know the instructions.
    pub fn detect() -> Option<Self> {
        let set = if BF16 { InstructionSet::Avx512Bf16 } else { InstructionSet::Avx512Vnni };
        Avx512::detect().filter(|_| Features::detect().have(set)).map(Self)
    }
}

/// Compiles `kernel` with AVX-512.
///
/// # Safety
/// The processor has the features: whoever holds the token knows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn enabled<K: IntegerKernel>(integers: Avx512<false>, kernel: K) {
    kernel.run(integers)
}

/// Compiles `kernel` with AVX-512 and VNNI.
///
/// # Safety
/// The processor has the features: whoever holds the token knows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn enabled_vnni<K: IntegerKernel, const BF16: bool>(integers: Avx512Vnni<BF16>, kernel: K) {
    kernel.run(integers)
}

/// Compiles `kernel` with AVX-512, VNNI and BF16.
///
/// # Safety
/// The processor has the features: whoever holds the token knows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")]
unsafe fn enabled_bf16<K: IntegerKernel, const BF16: bool>(integers: Avx512Vnni<BF16>, kernel: K) {
    kernel.run(integers)
}

/// `sum` and the products of four bytes, by way of 16 bits: two products must fit.
///
/// # Safety
/// The processor has AVX-512 BW.
#[inline(always)]
unsafe fn widen(sum: __m512i, weights: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let pairs = _mm512_maddubs_epi16(weights, x);
        _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
    }
}

macro_rules! common {
    () => {
        #[inline(always)]
        fn splat(self, word: u32) -> __m512i {
            // SAFETY: the token proves the features.
            unsafe { _mm512_set1_epi32(word as i32) }
        }
        #[inline(always)]
        fn low_nibbles(self, line: __m512i) -> __m512i {
            // SAFETY: the token proves the features.
            unsafe { _mm512_and_si512(line, _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        fn high_nibbles(self, line: __m512i) -> __m512i {
            // SAFETY: the token proves the features.
            unsafe { _mm512_and_si512(_mm512_srli_epi32::<4>(line), _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        fn to_floats(self, words: __m512i) -> __m512 {
            // SAFETY: the token proves the features.
            unsafe { _mm512_cvtepi32_ps(words) }
        }
    };
}

impl Integers for Avx512<false> {
    type Simd = Self;

    #[inline(always)]
    fn simd(self) -> Self {
        self
    }
    fn run_integers<K: IntegerKernel>(self, kernel: K) {
        // SAFETY: the token proves the features.
        unsafe { enabled(self, kernel) }
    }

    #[inline(always)]
    fn dot_nibbles(self, sum: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the token proves the features; 2 * 15 * 127 fits in 16 bits.
        unsafe { widen(sum, weights, x) }
    }
    #[inline(always)]
    fn dot_bytes(self, sum: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the token proves the features; 2 * 128 * 127 fits in 16 bits,
        // and both 127 and 128 are the most that is left of a byte.
        unsafe {
            let top = _mm512_set1_epi8(-128);
            let sum = widen(sum, _mm512_andnot_si512(top, weights), x);
            widen(sum, _mm512_and_si512(top, weights), x)
        }
    }
    #[inline(always)]
    fn dot_halves(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)) }
    }
    common!();
}

impl<const BF16: bool> Integers for Avx512Vnni<BF16> {
    type Simd = Avx512<BF16>;

    #[inline(always)]
    fn simd(self) -> Avx512<BF16> {
        self.0
    }
    fn run_integers<K: IntegerKernel>(self, kernel: K) {
        // SAFETY: the token proves the features.
        unsafe {
            if BF16 {
                enabled_bf16(self, kernel)
            } else {
                enabled_vnni(self, kernel)
            }
        }
    }

    #[inline(always)]
    fn dot_nibbles(self, sum: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        self.dot_bytes(sum, weights, x)
    }
    #[inline(always)]
    fn dot_bytes(self, sum: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_dpbusd_epi32(sum, weights, x) }
    }
    #[inline(always)]
    fn dot_halves(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_dpwssd_epi32(sum, a, b) }
    }
    common!();
}
