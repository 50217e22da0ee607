//! One AVX-512 register per vector.

use std::arch::x86_64::*;

use super::pairs::{FACTOR_SCALE, LEAST_FACTOR, NAN};
use super::{Features, Kernel, Simd, LANES};
use crate::InstructionSet;

/// The token of AVX-512 F, BW, DQ and VL, and of BF16 where that is true.
#[derive(Clone, Copy)]
pub struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// The token, where the processor and the system know the instructions.
    pub fn detect() -> Option<Self> {
        let set = if BF16 { InstructionSet::Avx512Bf16 } else { InstructionSet::Avx512 };
        Features::detect().have(set).then_some(Self(()))
    }
}

/// Compiles `kernel` with AVX-512.
///
/// # Safety
/// The processor has the features: whoever holds the token knows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn enabled<K: Kernel, const BF16: bool>(simd: Avx512<BF16>, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Compiles `kernel` with AVX-512 and BF16.
///
/// # Safety
/// The processor has the features: whoever holds the token knows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn enabled_bf16<K: Kernel, const BF16: bool>(simd: Avx512<BF16>, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// `vdpbf16ps` with the same pair of factors for every lane.
///
/// # Safety
/// The processor has AVX-512 F and BF16.
#[inline(always)]
unsafe fn dot_bf16(sum: __m512, line: __m512i, x: u32) -> __m512 {
    // SAFETY: the caller's promise; any bits are bf16 numbers.
    unsafe {
        let line = std::mem::transmute::<__m512i, __m512bh>(line);
        let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x as i32));
        _mm512_dpbf16_ps(sum, line, x)
    }
}

/// Whether `vdpbf16ps` computes what [`Simd::dot_pairs`] says: no processor but those of the
/// tests has been seen doing it. Call it where there is BF16.
pub fn bf16_is_exact() -> bool {
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn dot(sum: f32, line: u32, x: u32) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let line = _mm512_set1_epi32(line as i32);
            _mm512_cvtss_f32(dot_bf16(_mm512_set1_ps(sum), line, x))
        }
    }
    super::pairs::CASES.iter().all(|&(sum, line, x)| {
        // SAFETY: the caller knows of BF16, which implies AVX-512 F.
        let got = unsafe { dot(sum, line, x) };
        got.to_bits() == super::pairs::dot(sum, line, x).to_bits()
    })
}

/// One half of a butterfly: which 128-bit quarters or which lanes go together.
macro_rules! fold_pair {
    ($shuffle:ident, $low:literal, $high:literal, $a:expr, $b:expr) => {
        _mm512_add_ps($shuffle::<$low>($a, $b), $shuffle::<$high>($a, $b))
    };
}

/// Bits of the float `2^(23 - SHIFT) + code` whose code sits at bit `SHIFT`.
const fn magic(shift: u32) -> i32 {
    ((127 + 23 - shift) << 23) as i32
}

/// Where the numbers of pairs come from: `i` of the one vector and, from 32 on, of the other.
const ZIP: [[u16; 32]; 2] = {
    let mut zip = [[0; 32]; 2];
    let mut i = 0;
    while i < 32 {
        zip[i / 16][i % 16 * 2] = i as u16;
        zip[i / 16][i % 16 * 2 + 1] = 32 + i as u16;
        i += 1;
    }
    zip
};

/// The weights of the sixteen nibbles.
const INT4_VALUES: [f32; LANES] =
    [-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];

impl<const BF16: bool> Simd for Avx512<BF16> {
    type F = __m512;
    type W = __m512i;
    const TILE_ROWS: usize = 12;
    const MANY_REGISTERS: bool = true;
    const PAIR_WORDS: usize = if BF16 { 1 } else { 2 };

    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the features.
        unsafe {
            if BF16 {
                enabled_bf16(self, kernel)
            } else {
                enabled(self, kernel)
            }
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, value: Self::F, to: *mut f32) {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe { _mm512_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> Self::F {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> Self::F {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn line(self, from: *const u8) -> Self::W {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe { _mm512_loadu_si512(from.cast()) }
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
        // SAFETY: the token proves the features.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn pow2(self, n: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        // SAFETY: the token proves the features.
        unsafe {
            let a = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
        }
    }
    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        // SAFETY: the token proves the features.
        unsafe {
            let a = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
        }
    }
    #[inline(always)]
    fn sum_four(self, a: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: the token proves the features.
        unsafe {
            let low = fold_pair!(_mm512_shuffle_f32x4, 0x44, 0xEE, a[0], a[1]);
            let high = fold_pair!(_mm512_shuffle_f32x4, 0x44, 0xEE, a[2], a[3]);
            // Quarter `i` belongs to vector `i`.
            let quarters = fold_pair!(_mm512_shuffle_f32x4, 0x88, 0xDD, low, high);
            let pairs = _mm512_add_ps(quarters, _mm512_permute_ps::<0x4E>(quarters));
            let sums = _mm512_add_ps(pairs, _mm512_permute_ps::<0xB1>(pairs));
            let first = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
            let sums = _mm512_castps512_ps128(_mm512_permutexvar_ps(first, sums));
            std::mem::transmute::<__m128, [f32; 4]>(sums)
        }
    }

    #[inline(always)]
    fn low_bytes(self, a: Self::F) -> [u32; LANES / 4] {
        // SAFETY: the token proves the features.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_castps_si512(a));
            std::mem::transmute::<__m128i, [u32; LANES / 4]>(bytes)
        }
    }

    #[inline(always)]
    fn low_halves(self, a: Self::F) -> [u32; LANES / 2] {
        // SAFETY: the token proves the features.
        unsafe {
            let halves = _mm512_cvtepi32_epi16(_mm512_castps_si512(a));
            std::mem::transmute::<__m256i, [u32; LANES / 2]>(halves)
        }
    }

    #[inline(always)]
    fn factors(self, a: Self::F) -> [u32; LANES / 2] {
        // SAFETY: the token proves the features.
        unsafe {
            let a = _mm512_mul_ps(a, _mm512_set1_ps(FACTOR_SCALE));
            let bits = _mm512_castps_si512(a);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, up));
            let small =
                _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(a), _mm512_set1_ps(LEAST_FACTOR));
            let zeroed = _mm512_mask_mov_epi32(rounded, small, _mm512_setzero_si512());
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            let halves = _mm512_mask_mov_epi32(zeroed, nan, _mm512_set1_epi32(NAN));
            let packed = _mm512_cvtepi32_epi16(halves);
            std::mem::transmute::<__m256i, [u32; LANES / 2]>(packed)
        }
    }
    #[inline(always)]
    fn normal_pairs(self, line: Self::W) -> Self::W {
        if BF16 {
            return line; // the instruction takes them as zero
        }
        // SAFETY: the token proves the features.
        unsafe {
            let exponents = _mm512_set1_epi16(0x7F80);
            _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(line, exponents), line)
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, sum: Self::F, line: Self::W, x: *const u32, apart: usize) -> Self::F {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe {
            if BF16 {
                return dot_bf16(sum, line, *x);
            }
            let (low, high) = (f32::from_bits(*x), f32::from_bits(*x.add(apart)));
            let sum = self.fma(self.bf16_code::<1>(line), self.splat(high), sum);
            self.fma(self.bf16_code::<0>(line), self.splat(low), sum)
        }
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const u8, stride: usize) -> [Self::W; LANES] {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe {
            let mut rows = [self.line(from); LANES];
            for i in 1..LANES {
                rows[i] = self.line(from.add(i * stride));
            }
            let (mut twos, mut fours, mut eights) = (rows, rows, rows);
            for i in (0..LANES).step_by(2) {
                twos[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
                twos[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
            }
            // Word `j` of every quarter, of rows `i..i + 4`.
            for i in (0..LANES).step_by(4) {
                fours[i] = _mm512_unpacklo_epi64(twos[i], twos[i + 2]);
                fours[i + 1] = _mm512_unpackhi_epi64(twos[i], twos[i + 2]);
                fours[i + 2] = _mm512_unpacklo_epi64(twos[i + 1], twos[i + 3]);
                fours[i + 3] = _mm512_unpackhi_epi64(twos[i + 1], twos[i + 3]);
            }
            // Quarters 0 and 2, then 1 and 3, of rows `i..i + 8`.
            for j in 0..4 {
                for i in [0, 8] {
                    let (a, b) = (fours[i + j], fours[i + 4 + j]);
                    eights[i + j] = _mm512_shuffle_i32x4::<0x88>(a, b);
                    eights[i + 4 + j] = _mm512_shuffle_i32x4::<0xDD>(a, b);
                }
            }
            for j in 0..8 {
                let (a, b) = (eights[j], eights[8 + j]);
                rows[j] = _mm512_shuffle_i32x4::<0x88>(a, b);
                rows[8 + j] = _mm512_shuffle_i32x4::<0xDD>(a, b);
            }
            rows
        }
    }
    #[inline(always)]
    unsafe fn interleave(self, a: *const u8, b: *const u8) -> [Self::W; 2] {
        // SAFETY: the token proves the features, the caller the memory.
        unsafe {
            let (a, b) = (self.line(a), self.line(b));
            let [low, high] =
                [self.line(ZIP[0].as_ptr().cast()), self.line(ZIP[1].as_ptr().cast())];
            [_mm512_permutex2var_epi16(a, low, b), _mm512_permutex2var_epi16(a, high, b)]
        }
    }

    #[inline(always)]
    fn f32_code(self, line: Self::W) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_castsi512_ps(line) }
    }
    #[inline(always)]
    fn bf16_code<const J: usize>(self, line: Self::W) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe {
            _mm512_castsi512_ps(match J {
                0 => _mm512_slli_epi32::<16>(line),
                _ => _mm512_and_si512(line, _mm512_set1_epi32(0xFFFF_0000_u32 as i32)),
            })
        }
    }
    #[inline(always)]
    fn int8_code<const J: usize>(self, line: Self::W) -> Self::F {
        // Bytes 0 and 1 (of the word, or of its upper half) are put as they are
        // into the mantissa of a power of two, which a subtraction removes.
        // SAFETY: the token proves the features.
        unsafe {
            let half = if J < 2 { line } else { _mm512_srli_epi32::<16>(line) };
            let shift = (J % 2 * 8) as u32;
            place(half, 255, shift, 128)
        }
    }
    #[inline(always)]
    fn int4_code<const J: usize>(self, line: Self::W) -> Self::F {
        // As int8: nibbles at bits 0, 4, 8 and 12 need no shift of their own.
        // SAFETY: the token proves the features.
        unsafe {
            let upper = J % 4 >= 2;
            let half = if upper { _mm512_srli_epi32::<16>(line) } else { line };
            // Half of the nibbles look their floats up instead (an index has four
            // bits): lookups and additions keep different parts of a core busy.
            let values = _mm512_loadu_ps(INT4_VALUES.as_ptr());
            match super::int4_shift(J) % 16 {
                0 => _mm512_permutexvar_ps(half, values),
                8 => _mm512_permutexvar_ps(_mm512_srli_epi32::<8>(half), values),
                shift => place(half, 15, shift, 8),
            }
        }
    }
}

/// The bits `mask << shift` of each word as a float, minus `zero`, exactly.
///
/// # Safety
/// The processor has AVX-512 F; `mask << shift` is below `2^23`.
#[inline(always)]
unsafe fn place(words: __m512i, mask: i32, shift: u32, zero: i32) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let float = _mm512_ternarylogic_epi32::<0xF8>(
            _mm512_set1_epi32(magic(shift)),
            words,
            _mm512_set1_epi32(mask << shift),
        );
        let offset = _mm512_set1_epi32(magic(shift) | zero << shift);
        _mm512_sub_ps(_mm512_castsi512_ps(float), _mm512_castsi512_ps(offset))
    }
}
