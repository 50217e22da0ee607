//! Integer dot products on 16 lanes, exact in every instruction set.
//!
//! A lane holds four unsigned bytes of weights; a word of activations holds four
//! signed bytes. `vpdpbusd` adds the four products of every lane to a 32-bit sum;
//! processors without it multiply into 16 bits and widen, split so that nothing
//! saturates. Where more digits are needed, a lane holds two signed halves on
//! either side. Integers have no rounding: the order of additions does not matter.

mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
pub use {avx2::Avx2Vnni, avx512::Avx512Vnni};

use super::Simd;

/// Work that is compiled once per set of integer instructions; what
/// [`super::Kernel`] says about inlining holds here, too.
pub trait IntegerKernel {
    /// Does the work with the given instructions.
    fn run<I: Integers>(self, integers: I);
}

/// A vector of 32-bit words of `I`.
pub type Words<I> = <<I as Integers>::Simd as Simd>::W;

/// Integer operations on 16 lanes, next to those of a [`Simd`].
pub trait Integers: Copy + Send + Sync + 'static {
    /// The floating-point side.
    type Simd: Simd;

    /// The token of the floating-point side.
    fn simd(self) -> Self::Simd;
    /// Runs `kernel` with these instructions enabled.
    fn run_integers<K: IntegerKernel>(self, kernel: K);

    /// The same word in every lane.
    fn splat(self, word: u32) -> Words<Self>;
    /// The low four bits of every byte.
    fn low_nibbles(self, line: Words<Self>) -> Words<Self>;
    /// The high four bits of every byte.
    fn high_nibbles(self, line: Words<Self>) -> Words<Self>;
    /// `sum + Σ weights[b] * x[b]` over the four bytes of every lane: `weights`
    /// unsigned and below 16, `x` signed and not -128.
    fn dot_nibbles(self, sum: Words<Self>, weights: Words<Self>, x: Words<Self>) -> Words<Self>;
    /// The same with any unsigned bytes as weights.
    fn dot_bytes(self, sum: Words<Self>, weights: Words<Self>, x: Words<Self>) -> Words<Self>;
    /// `sum + Σ a[h] * b[h]` over the two signed 16-bit halves of every lane.
    fn dot_halves(self, sum: Words<Self>, a: Words<Self>, b: Words<Self>) -> Words<Self>;
    /// Signed words as floats, rounded to nearest.
    fn to_floats(self, words: Words<Self>) -> <Self::Simd as Simd>::F;
}
