//! Sixteen single-precision lanes, whatever the processor calls them.
//!
//! Kernels are written once, against [`Simd`], and instantiated per instruction
//! set. Every operation here is either exact or rounded once as IEEE 754 says,
//! so the sets give the same bits: a kernel's result is defined by its order of
//! operations, never by the width of a register.
//!
//! A value of a [`Simd`] type is a *token*: it exists only where the
//! processor has the instructions, which is what makes its methods safe to call.

mod features;
mod integers;
pub mod pairs;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub use features::Features;
pub use integers::{IntegerKernel, Integers, Words};

use llama4rs_tensor::{Error, Result};

use crate::InstructionSet;
use scalar::Scalar;

#[cfg(target_arch = "x86_64")]
use {
    avx2::Avx2,
    avx512::Avx512,
    integers::{Avx2Vnni, Avx512Vnni},
};

/// Lanes of a vector: the rows of a weight panel.
pub const LANES: usize = llama4rs_tensor::format::PANEL_ROWS;

/// Work that is compiled once per instruction set.
///
/// `run` must be `#[inline(always)]`, and so must everything that it calls with
/// the token: only then does the code end up inside the function that enables
/// the instructions. So hot loops fill arrays with `for`, not with closures
/// (`array::from_fn`, `map`), which the compiler may leave outside.
pub trait Kernel {
    /// What the work gives back.
    type Output;
    /// Does the work with the given instructions.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The operations of one instruction set on 16 lanes.
pub trait Simd: Copy + Send + Sync + 'static {
    /// 16 floats.
    type F: Copy;
    /// 16 words of 32 bits: one line of a weight panel.
    type W: Copy;

    /// Most rows of activations that a matrix tile keeps in registers.
    const TILE_ROWS: usize;
    /// Whether the registers hold 16 accumulators at once.
    const MANY_REGISTERS: bool;

    /// Runs `kernel` with these instructions enabled.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    /// The same value in every lane.
    fn splat(self, value: f32) -> Self::F;
    /// 16 consecutive floats.
    ///
    /// # Safety
    /// 16 floats can be read at `from`; no alignment is needed.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// Writes 16 consecutive floats.
    ///
    /// # Safety
    /// 16 floats can be written at `to`; no alignment is needed.
    unsafe fn store(self, value: Self::F, to: *mut f32);
    /// 16 consecutive bf16 numbers.
    ///
    /// # Safety
    /// 32 bytes can be read at `from`; no alignment is needed.
    unsafe fn load_bf16(self, from: *const u8) -> Self::F;
    /// 16 consecutive f16 numbers.
    ///
    /// # Safety
    /// 32 bytes can be read at `from`; no alignment is needed.
    unsafe fn load_f16(self, from: *const u8) -> Self::F;
    /// One line of a panel.
    ///
    /// # Safety
    /// 64 bytes can be read at `from`; no alignment is needed.
    unsafe fn line(self, from: *const u8) -> Self::W;
    /// Asks for the cache line at `address`, which need not be valid.
    fn prefetch(self, address: *const u8);
    /// The same, not closer than the second cache.
    fn prefetch_far(self, address: *const u8);

    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `2^n` for integers `n` in `-126..=127`, zero for -127; anything for other values.
    fn pow2(self, n: Self::F) -> Self::F;

    /// Sum of the lanes as a fixed tree: lanes 8 apart first, then 4, 2 and 1.
    fn sum(self, a: Self::F) -> f32;
    /// Largest lane, in the order of [`Simd::sum`].
    fn largest(self, a: Self::F) -> f32;
    /// The sum of each of four vectors, as [`Simd::sum`] adds them.
    #[inline(always)]
    fn sum_four(self, a: [Self::F; 4]) -> [f32; 4] {
        [self.sum(a[0]), self.sum(a[1]), self.sum(a[2]), self.sum(a[3])]
    }

    /// The low byte of every lane's bits, four to a word.
    fn low_bytes(self, a: Self::F) -> [u32; LANES / 4];
    /// The low 16 bits of every lane's bits, two to a word.
    fn low_halves(self, a: Self::F) -> [u32; LANES / 2];

    /// The line as 16 floats.
    fn f32_code(self, line: Self::W) -> Self::F;
    /// Words that a pair of factors takes: two floats, or two bf16 numbers in one word.
    const PAIR_WORDS: usize;
    /// Factors for [`Simd::dot_pairs`] out of 16 numbers, as [`pairs::factor`] says:
    /// eight words, the first number of a pair in the low half.
    fn factors(self, a: Self::F) -> [u32; LANES / 2];
    /// A line of bf16 numbers in which those below `2^-126` are zero.
    fn normal_pairs(self, line: Self::W) -> Self::W;
    /// `sum + line[1] * x[1] + line[0] * x[0]` for the pair of bf16 numbers in every
    /// lane of a line of [`Simd::normal_pairs`]; each step is one [`Simd::fma`].
    ///
    /// # Safety
    /// A pair of factors can be read at `x`: [`Simd::PAIR_WORDS`] words, `apart` from each other.
    unsafe fn dot_pairs(self, sum: Self::F, line: Self::W, x: *const u32, apart: usize) -> Self::F;

    /// The words of 16 rows, `stride` bytes from one to the next: line `i` has word `i` of each.
    ///
    /// # Safety
    /// 64 bytes of every row can be read.
    unsafe fn transpose(self, from: *const u8, stride: usize) -> [Self::W; LANES];
    /// Pairs of 32 numbers of 16 bits at `a`, in the low halves, and at `b`.
    ///
    /// # Safety
    /// 64 bytes can be read at both.
    unsafe fn interleave(self, a: *const u8, b: *const u8) -> [Self::W; 2];

    /// Input `J` (0 or 1) of a bf16 line.
    fn bf16_code<const J: usize>(self, line: Self::W) -> Self::F;
    /// Input `J` (0 to 3) of an int8 line: byte `J`, minus 128.
    fn int8_code<const J: usize>(self, line: Self::W) -> Self::F;
    /// Input `J` (0 to 7) of an int4 line: byte `J % 4`, low or high nibble, minus 8.
    fn int4_code<const J: usize>(self, line: Self::W) -> Self::F;
}

/// The low bit of input `j` in a word of an int4 line.
pub const fn int4_shift(j: usize) -> u32 {
    (j % 4 * 8 + j / 4 * 4) as u32
}

/// The instruction set in use, as a token.
#[derive(Clone, Copy)]
pub enum Dispatch {
    /// Plain Rust.
    Scalar(Scalar),
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX2, FMA and AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni(Avx2Vnni),
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni<false>),
    /// AVX-512 with VNNI and BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Vnni<true>),
}

impl Dispatch {
    /// The token of `set`, where this processor has it.
    pub fn new(set: InstructionSet) -> Option<Self> {
        match set {
            InstructionSet::Scalar => Some(Dispatch::Scalar(Scalar)),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => Avx2::detect().map(Dispatch::Avx2),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2Vnni => Avx2Vnni::detect().map(Dispatch::Avx2Vnni),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => Avx512::detect().map(Dispatch::Avx512),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni => Avx512Vnni::detect().map(Dispatch::Avx512Vnni),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Bf16 => Avx512Vnni::detect().map(Dispatch::Avx512Bf16),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }

    /// The same; an error says which sets there are.
    pub fn checked(set: InstructionSet) -> Result<Self> {
        Self::new(set).ok_or_else(|| {
            let available: Vec<_> =
                InstructionSet::available().iter().map(ToString::to_string).collect();
            Error::shape("instruction set", available.join(" or "), set)
        })
    }

    /// Runs `kernel` with the chosen instructions.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Dispatch::Scalar(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx2(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx2Vnni(integers) => integers.simd().run(kernel),
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx512(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx512Vnni(integers) => integers.simd().run(kernel),
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx512Bf16(integers) => integers.simd().run(kernel),
        }
    }

    /// Runs a kernel of integers with the chosen instructions.
    #[inline]
    pub fn run_integers<K: IntegerKernel>(self, kernel: K) {
        match self {
            Dispatch::Scalar(integers) => integers.run_integers(kernel),
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx2(integers) => integers.run_integers(kernel),
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx2Vnni(integers) => integers.run_integers(kernel),
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx512(integers) => integers.run_integers(kernel),
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx512Vnni(integers) => integers.run_integers(kernel),
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx512Bf16(integers) => integers.run_integers(kernel),
        }
    }

    /// [`Simd::TILE_ROWS`] of the chosen instructions.
    pub fn tile_rows(self) -> usize {
        match self {
            Dispatch::Scalar(_) => Scalar::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx2(_) | Dispatch::Avx2Vnni(_) => Avx2::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx512(_) | Dispatch::Avx512Vnni(_) => Avx512::<false>::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Dispatch::Avx512Bf16(_) => Avx512::<true>::TILE_ROWS,
        }
    }
}
