//! Two AVX2 registers per vector.

use std::arch::x86_64::*;

use super::pairs::{FACTOR_SCALE, LEAST_FACTOR, NAN};
use super::{int4_shift, Features, Kernel, Simd, LANES};
use crate::InstructionSet;

/// The token of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// The token, where the processor and the system know AVX2, FMA and F16C.
    pub fn detect() -> Option<Self> {
        Features::detect().have(InstructionSet::Avx2).then_some(Self(()))
    }
}

/// Compiles `kernel` with AVX2, FMA and F16C.
///
/// # Safety
/// The processor has the features: whoever holds the token knows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn enabled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// `f` of both halves.
macro_rules! halves {
    ($f:ident $(::<$c:literal>)?, $($argument:expr),+) => {
        // SAFETY: the token of the method proves the features.
        unsafe { ($f$(::<$c>)?($($argument.0),+), $f$(::<$c>)?($($argument.1),+)) }
    };
}

impl Simd for Avx2 {
    type F = (__m256, __m256);
    type W = (__m256i, __m256i);
    const TILE_ROWS: usize = 6;
    const MANY_REGISTERS: bool = false;
    const PAIR_WORDS: usize = 2;

    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the features.
        unsafe { enabled(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        // SAFETY: the token proves the features.
        let half = unsafe { _mm256_set1_ps(value) };
        (half, half)
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe { (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(self, value: Self::F, to: *mut f32) {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe {
            _mm256_storeu_ps(to, value.0);
            _mm256_storeu_ps(to.add(8), value.1);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> Self::F {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe {
            let half = |at: *const u8| {
                let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
            };
            (half(from), half(from.add(16)))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> Self::F {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe {
            let half = |at: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));
            (half(from), half(from.add(16)))
        }
    }
    #[inline(always)]
    unsafe fn line(self, from: *const u8) -> Self::W {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe { (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())) }
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, address: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        halves!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn pow2(self, n: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        let bias = unsafe { _mm256_set1_epi32(127) };
        let integers = halves!(_mm256_cvtps_epi32, n);
        let biased = halves!(_mm256_add_epi32, integers, (bias, bias));
        let bits = halves!(_mm256_slli_epi32::<23>, biased);
        halves!(_mm256_castsi256_ps, bits)
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        // SAFETY: the token proves the features.
        unsafe {
            let a = _mm256_add_ps(a.0, a.1);
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
        }
    }
    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        // SAFETY: the token proves the features.
        unsafe {
            let a = _mm256_max_ps(a.0, a.1);
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
        }
    }

    #[inline(always)]
    fn low_bytes(self, a: Self::F) -> [u32; LANES / 4] {
        // SAFETY: the token proves the features.
        unsafe {
            // Byte 0 of each word to the front of its half register.
            let first = _mm256_set1_epi32(0x0C08_0400);
            let half = |a: __m256| {
                let words = _mm256_shuffle_epi8(_mm256_castps_si256(a), first);
                [_mm256_extract_epi32::<0>(words) as u32, _mm256_extract_epi32::<4>(words) as u32]
            };
            let ([a, b], [c, d]) = (half(a.0), half(a.1));
            [a, b, c, d]
        }
    }

    #[inline(always)]
    fn low_halves(self, a: Self::F) -> [u32; LANES / 2] {
        // SAFETY: the token proves the features.
        let low = unsafe { _mm256_set1_epi32(0xFFFF) };
        let words = halves!(_mm256_castps_si256, a);
        let halves = halves!(_mm256_and_si256, words, (low, low));
        // SAFETY: the token proves the features.
        unsafe { pack_halves(halves) }
    }

    #[inline(always)]
    fn factors(self, a: Self::F) -> [u32; LANES / 2] {
        let halves = halves!(factors, a);
        // SAFETY: the token proves the features.
        unsafe { pack_halves(halves) }
    }
    #[inline(always)]
    fn normal_pairs(self, line: Self::W) -> Self::W {
        halves!(normal_pairs, line)
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, sum: Self::F, line: Self::W, x: *const u32, apart: usize) -> Self::F {
        // SAFETY: the caller's promise.
        let (low, high) = unsafe { (f32::from_bits(*x), f32::from_bits(*x.add(apart))) };
        let sum = self.fma(self.bf16_code::<1>(line), self.splat(high), sum);
        self.fma(self.bf16_code::<0>(line), self.splat(low), sum)
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const u8, stride: usize) -> [Self::W; LANES] {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe {
            // Four squares of eight words.
            let below = from.add(8 * stride);
            let left = (square(from, stride), square(below, stride));
            let right = (square(from.add(32), stride), square(below.add(32), stride));
            let mut lines = [(left.0[0], left.1[0]); LANES];
            for i in 0..8 {
                lines[i] = (left.0[i], left.1[i]);
                lines[8 + i] = (right.0[i], right.1[i]);
            }
            lines
        }
    }
    #[inline(always)]
    unsafe fn interleave(self, a: *const u8, b: *const u8) -> [Self::W; 2] {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe {
            let ((a, a2), (b, b2)) = (self.line(a), self.line(b));
            [zip_halves(a, b), zip_halves(a2, b2)]
        }
    }

    #[inline(always)]
    fn f32_code(self, line: Self::W) -> Self::F {
        halves!(_mm256_castsi256_ps, line)
    }
    #[inline(always)]
    fn bf16_code<const J: usize>(self, line: Self::W) -> Self::F {
        // SAFETY: the token proves the features.
        let mask = unsafe { _mm256_set1_epi32(0xFFFF_0000_u32 as i32) };
        let bits = match J {
            0 => halves!(_mm256_slli_epi32::<16>, line),
            _ => halves!(_mm256_and_si256, line, (mask, mask)),
        };
        halves!(_mm256_castsi256_ps, bits)
    }
    #[inline(always)]
    fn int8_code<const J: usize>(self, line: Self::W) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { (place(line.0, 8 * J as i64, 255, 128), place(line.1, 8 * J as i64, 255, 128)) }
    }
    #[inline(always)]
    fn int4_code<const J: usize>(self, line: Self::W) -> Self::F {
        let shift = int4_shift(J) as i64;
        // SAFETY: the token proves the features.
        unsafe { (place(line.0, shift, 15, 8), place(line.1, shift, 15, 8)) }
    }
}

/// The low halves of 16 words, whose high halves are zero, two to a word.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn pack_halves(words: (__m256i, __m256i)) -> [u32; LANES / 2] {
    // SAFETY: the caller's promise. Packed by quarters, of which the middle two change places.
    unsafe {
        let packed = _mm256_packus_epi32(words.0, words.1);
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
        std::mem::transmute::<__m256i, [u32; LANES / 2]>(packed)
    }
}

/// Eight words of eight rows: result `i` has word `i` of each.
///
/// # Safety
/// The processor has AVX2; 32 bytes of every row can be read.
#[inline(always)]
unsafe fn square(from: *const u8, stride: usize) -> [__m256i; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [_mm256_setzero_si256(); 8];
        for i in 0..8 {
            rows[i] = _mm256_loadu_si256(from.add(i * stride).cast());
        }
        let (mut twos, mut fours) = (rows, rows);
        for i in (0..8).step_by(2) {
            twos[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
            twos[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        // Word `j` of its half, of rows `i..i + 4`.
        for i in [0, 4] {
            fours[i] = _mm256_unpacklo_epi64(twos[i], twos[i + 2]);
            fours[i + 1] = _mm256_unpackhi_epi64(twos[i], twos[i + 2]);
            fours[i + 2] = _mm256_unpacklo_epi64(twos[i + 1], twos[i + 3]);
            fours[i + 3] = _mm256_unpackhi_epi64(twos[i + 1], twos[i + 3]);
        }
        for j in 0..4 {
            rows[j] = _mm256_permute2x128_si256::<0x20>(fours[j], fours[4 + j]);
            rows[4 + j] = _mm256_permute2x128_si256::<0x31>(fours[j], fours[4 + j]);
        }
        rows
    }
}

/// Pairs of 16 numbers of 16 bits each.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn zip_halves(a: __m256i, b: __m256i) -> (__m256i, __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
        let first = _mm256_permute2x128_si256::<0x20>(low, high);
        (first, _mm256_permute2x128_si256::<0x31>(low, high))
    }
}

/// One factor in the low half of each word.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn factors(a: __m256) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let a = _mm256_mul_ps(a, _mm256_set1_ps(FACTOR_SCALE));
        let bits = _mm256_castps_si256(a);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, up));
        let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        let small = _mm256_cmp_ps::<_CMP_LT_OQ>(size, _mm256_set1_ps(LEAST_FACTOR));
        let zeroed = _mm256_andnot_si256(_mm256_castps_si256(small), rounded);
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
        _mm256_blendv_epi8(zeroed, _mm256_set1_epi32(NAN), nan)
    }
}

/// Bf16 numbers, those with the smallest exponent as zero.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn normal_pairs(line: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let exponents = _mm256_and_si256(line, _mm256_set1_epi16(0x7F80));
        _mm256_andnot_si256(_mm256_cmpeq_epi16(exponents, _mm256_setzero_si256()), line)
    }
}

/// The bits of `mask` of each word shifted right by `shift`, minus `zero`, as floats.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn place(words: __m256i, shift: i64, mask: i32, zero: i32) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let shifted = _mm256_srl_epi32(words, _mm_cvtsi64_si128(shift));
        let code = _mm256_and_si256(shifted, _mm256_set1_epi32(mask));
        _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(zero)))
    }
}
