//! Products of pairs of bf16 numbers, as they are defined.
//!
//! A lane holds two bf16 numbers, of weights, keys or values; a pair of *factors*, which are
//! rounded activations, goes with all lanes. `vdpbf16ps` adds both products to a sum, the
//! high half first, each by a multiply-add that rounds once, but takes what is below `2^-126`
//! as zero, on its way in and out. So that this never shows, a factor is
//!
//! ```text
//! round(a * 2^64) to bf16, to nearest, ties to even; zero where |a * 2^64| < 2^14
//! ```
//!
//! and bf16 numbers below `2^-126` count as zero. The others are multiples of `2^-133`, and
//! factors of `2^7`: sums are multiples of `2^-126`. Whoever has a sum divides it by `2^64`.
//! What gets lost are activations below `2^-50`; sums above `2^64` overflow.

use super::{Simd, LANES};

/// What factors are multiplied by.
pub const FACTOR_SCALE: f32 = 18_446_744_073_709_551_616.0;
/// What sums are multiplied by in the end.
pub const SUM_SCALE: f32 = 1.0 / FACTOR_SCALE;
/// Smaller factors are zero.
pub const LEAST_FACTOR: f32 = 16384.0;
/// A factor that is not a number.
pub const NAN: i32 = 0x7FC0;

/// One factor.
pub fn factor(a: f32) -> half::bf16 {
    let a = a * FACTOR_SCALE;
    match a.abs() < LEAST_FACTOR {
        true => half::bf16::ZERO,
        false => half::bf16::from_f32(a),
    }
}

/// Writes 16 factors as [`Simd::dot_pairs`] reads them, the words of a pair one after the
/// other; gives them as floats.
#[inline(always)]
pub fn put_factors<S: Simd>(simd: S, a: S::F, to: &mut [u32]) -> S::F {
    let to = &mut to[..LANES / 2 * S::PAIR_WORDS];
    let words = simd.factors(a);
    // SAFETY: eight words are 16 bf16 numbers; two words for a pair are 16 floats, whose
    // bits may be anything.
    unsafe {
        let floats = simd.load_bf16(words.as_ptr().cast());
        if S::PAIR_WORDS == 1 {
            to.copy_from_slice(&words);
        } else {
            simd.store(floats, to.as_mut_ptr().cast());
        }
        floats
    }
}

/// Both numbers of a word, those below `2^-126` as zero.
#[cfg(any(test, target_arch = "x86_64"))]
fn normal(word: u32) -> [f32; 2] {
    [word << 16, word & 0xFFFF_0000].map(|bits| match bits & 0x7F80_0000 {
        0 => 0.0,
        _ => f32::from_bits(bits),
    })
}

/// `sum + line[1] * x[1] + line[0] * x[0]`
#[cfg(any(test, target_arch = "x86_64"))]
pub fn dot(sum: f32, line: u32, x: u32) -> f32 {
    let ([line_0, line_1], [x_0, x_1]) = (normal(line), normal(x));
    line_0.mul_add(x_0, line_1.mul_add(x_1, sum))
}

/// Sums, lines and factors that other orders and roundings give other sums.
#[cfg(target_arch = "x86_64")]
pub const CASES: [(f32, u32, u32); 5] = [
    // The high product is lost beside the sum, which the low product then takes away.
    (1.0, 0xBF80_3F80, 0x3F80_3300),
    (1.0, 0x3F80_BF80, 0x3300_3F80),
    // Both products together would be rounded up, one after the other they are lost.
    (1.0, 0x3380_3380, 0x3F00_3F00),
    // A product rounded by itself would end in a tie.
    (1.0, 0x3381_3F80, 0x3F81_0000),
    // Smaller than a normal number.
    (f32::MAX, 0x0001_0001, 0x7F00_7F00),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Kernel;
    use crate::test_support::{all_dispatches, Random};

    struct Factors<'a>(&'a [f32; LANES]);

    impl Kernel for Factors<'_> {
        type Output = [u32; LANES / 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            // SAFETY: 16 floats.
            simd.factors(unsafe { simd.load(self.0.as_ptr()) })
        }
    }

    /// The same pair of factors for 16 sums and pairs.
    struct Dots<'a>(&'a [f32; LANES], &'a [u32; LANES], u32);

    impl Kernel for Dots<'_> {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
            let Self(sums, line, x) = self;
            let pair = if S::PAIR_WORDS == 1 { [x, 0] } else { [x << 16, x & 0xFFFF_0000] };
            let mut out = [0.0; LANES];
            // SAFETY: all have 16 words, and a pair takes two at most.
            unsafe {
                let line = simd.normal_pairs(simd.line(line.as_ptr().cast()));
                let sum = simd.dot_pairs(simd.load(sums.as_ptr()), line, pair.as_ptr(), 1);
                simd.store(sum, out.as_mut_ptr());
            }
            out
        }
    }

    /// A bf16 number, special ones more often than by chance.
    fn any_half(random: &mut Random) -> u32 {
        let special = [
            0x0000, 0x8000, 0x0001, 0x807F, 0x0080, 0x8080, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0,
            0xFF81, 0x3F80, 0xBF80, 0x0085, 0x3300,
        ];
        match random.below(4) {
            0 => special[random.below(special.len())],
            1 => (random.bits() & 0xFFFF) as u32,
            _ => (random.bits() & 0x80FF) as u32 | (0x3C00 + 0x80 * random.below(8) as u32),
        }
    }

    #[test]
    fn every_set_rounds_factors_alike() {
        let mut random = Random(1);
        for i in 0..20_000 {
            let mut x = [0.0; LANES];
            for x in &mut x {
                *x = match i % 3 {
                    0 => f32::from_bits(random.bits() as u32),
                    // Halfway between two bf16 numbers, and around the smallest factor.
                    1 => f32::from_bits(random.bits() as u32 & 0xFFFF_0000 | 0x8000),
                    _ => random.value() * (LEAST_FACTOR * SUM_SCALE) * 2.0,
                };
            }
            let expected = x.map(|x| factor(x).to_bits());
            for (set, dispatch) in all_dispatches() {
                let words = dispatch.run(Factors(&x));
                let got = words.iter().flat_map(|word| [*word as u16, (*word >> 16) as u16]);
                for ((x, expected), got) in x.iter().zip(expected).zip(got) {
                    let nan = |half| half::bf16::from_bits(half).is_nan();
                    assert!(got == expected || nan(got) && nan(expected), "{set}: {x:e}: {got:x}");
                }
            }
        }
    }

    #[test]
    fn every_set_multiplies_pairs_alike() {
        let mut random = Random(2);
        for i in 0..60_000 {
            let mut half = || any_half(&mut random);
            // Factors as they are made, with infinities and what is not a number.
            let factor = |half: u32| match half & 0x7FFF {
                0..0x4680 => 0,
                _ => half,
            };
            let x = factor((half() + 0x2000) & 0xFFFF) | factor(half()) << 16;
            let line: [u32; LANES] = std::array::from_fn(|_| half() | half() << 16);
            let sums = std::array::from_fn(|lane| match (i + lane) % 4 {
                0 => 0.0,
                1 => f32::from_bits(half() << 16),
                // Sums that nearly cancel with the products.
                2 => -dot(0.0, line[lane], x),
                _ => f32::from_bits(half() | half() << 16),
            });
            // A sum of products is a normal number or zero, and that is never negative.
            let sums = sums.map(|sum: f32| if sum.is_subnormal() { 0.0 } else { sum + 0.0 });
            let expected: [f32; LANES] = std::array::from_fn(|lane| dot(sums[lane], line[lane], x));
            for (set, dispatch) in all_dispatches() {
                let got = dispatch.run(Dots(&sums, &line, x));
                for lane in 0..LANES {
                    let (expected, got) = (expected[lane], got[lane]);
                    // The sums here need not be multiples of 2^-126, as those of products are.
                    let alike = expected.to_bits() == got.to_bits()
                        || expected.is_nan() && got.is_nan()
                        || expected.is_subnormal();
                    let (sum, line) = (sums[lane], line[lane]);
                    assert!(alike, "{set}: {sum:e} {line:x} {x:x}: {got:e}, not {expected:e}");
                }
            }
        }
    }

    /// Lines of the words of 16 rows, and pairs of the first two of them.
    struct Rearrange<'a>(&'a [u8]);

    impl Kernel for Rearrange<'_> {
        type Output = Vec<u32>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<u32> {
            let mut out = vec![0u32; 18 * LANES];
            // SAFETY: 16 rows of 100 bytes; lines for 18 times 16 words.
            unsafe {
                let lines = simd.transpose(self.0.as_ptr(), 100);
                let pairs = simd.interleave(self.0.as_ptr(), self.0.as_ptr().add(100));
                for (to, line) in out.chunks_exact_mut(LANES).zip(lines.into_iter().chain(pairs)) {
                    simd.store(simd.f32_code(line), to.as_mut_ptr().cast());
                }
            }
            out
        }
    }

    #[test]
    fn every_set_rearranges_alike() {
        let mut random = Random(4);
        let bytes: Vec<u8> = (0..16 * 100).map(|_| random.bits() as u8).collect();
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]) as u32;
        let word = |at: usize| half(at) | half(at + 2) << 16;
        for (set, dispatch) in all_dispatches() {
            let got = dispatch.run(Rearrange(&bytes));
            for (i, got) in got.iter().enumerate() {
                let (line, lane) = (i / LANES, i % LANES);
                let expected = match line {
                    0..16 => word(lane * 100 + line * 4),
                    _ => {
                        let at = ((line - 16) * LANES + lane) * 2;
                        half(at) | half(at + 100) << 16
                    }
                };
                assert_eq!(*got, expected, "{set}: lane {lane} of line {line}");
            }
        }
    }

    #[test]
    fn sums_of_products_are_never_subnormal() {
        // The smallest numbers with the smallest factors, in sums that nearly cancel.
        let mut random = Random(3);
        let mut small = |least: u32| least + (random.bits() & 0x80FF) as u32;
        for _ in 0..1000 {
            let mut sum = 0.0;
            for _ in 0..20 {
                let (line, x) = (small(0x0080), small(0x4680));
                sum = dot(sum, line | small(0x0080) << 16, x | small(0x4680) << 16);
                assert!(!sum.is_subnormal(), "{sum:e}");
            }
        }
    }
}
