//! 16 lanes in plain Rust: the meaning of the other sets, and the way on
//! processors that have none of them.

use super::pairs::factor;
use super::{int4_shift, Kernel, Simd, LANES};

/// The token of plain Rust, which every processor runs.
#[derive(Clone, Copy)]
pub struct Scalar;

#[inline(always)]
fn map(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut result = [0.0; LANES];
    for i in 0..LANES {
        result[i] = f(a[i], b[i]);
    }
    result
}

#[inline(always)]
fn fold(a: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = a;
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}

impl Simd for Scalar {
    type F = [f32; LANES];
    type W = [u32; LANES];
    const TILE_ROWS: usize = 4;
    const MANY_REGISTERS: bool = false;
    const PAIR_WORDS: usize = 2;

    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, value: Self::F, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> Self::F {
        // SAFETY: the caller's promise.
        let halves = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        halves.map(|half| f32::from_bits((u16::from_le(half) as u32) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> Self::F {
        // SAFETY: the caller's promise.
        let halves = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        halves.map(|half| half::f16::from_bits(u16::from_le(half)).to_f32())
    }
    #[inline(always)]
    unsafe fn line(self, from: *const u8) -> Self::W {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[u32; LANES]>().read_unaligned() }.map(u32::from_le)
    }
    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}
    #[inline(always)]
    fn prefetch_far(self, _address: *const u8) {}

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn pow2(self, n: Self::F) -> Self::F {
        n.map(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        fold(a, |a, b| a + b)
    }
    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        fold(a, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn low_bytes(self, a: Self::F) -> [u32; LANES / 4] {
        let byte = |i: usize| a[i].to_bits() as u8;
        std::array::from_fn(|i| {
            u32::from_le_bytes([byte(4 * i), byte(4 * i + 1), byte(4 * i + 2), byte(4 * i + 3)])
        })
    }

    #[inline(always)]
    fn low_halves(self, a: Self::F) -> [u32; LANES / 2] {
        std::array::from_fn(|i| a[2 * i].to_bits() & 0xFFFF | a[2 * i + 1].to_bits() << 16)
    }

    #[inline(always)]
    fn factors(self, a: Self::F) -> [u32; LANES / 2] {
        let half = |i: usize| factor(a[i]).to_bits() as u32;
        std::array::from_fn(|i| half(2 * i) | half(2 * i + 1) << 16)
    }
    #[inline(always)]
    fn normal_pairs(self, line: Self::W) -> Self::W {
        line.map(|word| {
            let keep = |half: u32| if word & half & 0x7F80_7F80 == 0 { 0 } else { word & half };
            keep(0xFFFF) | keep(0xFFFF_0000)
        })
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
        let mut lines = [[0; LANES]; LANES];
        for row in 0..LANES {
            // SAFETY: the caller's promise.
            let words = unsafe { self.line(from.add(row * stride)) };
            for (line, word) in lines.iter_mut().zip(words) {
                line[row] = word;
            }
        }
        lines
    }
    #[inline(always)]
    unsafe fn interleave(self, a: *const u8, b: *const u8) -> [Self::W; 2] {
        // SAFETY: the caller's promise.
        let (a, b) = unsafe { (self.line(a), self.line(b)) };
        let half = |words: &[u32; LANES], i: usize| words[i / 2] >> (i % 2 * 16) & 0xFFFF;
        let pair = |i: usize| half(&a, i) | half(&b, i) << 16;
        [std::array::from_fn(pair), std::array::from_fn(|i| pair(LANES + i))]
    }

    #[inline(always)]
    fn f32_code(self, line: Self::W) -> Self::F {
        line.map(f32::from_bits)
    }
    #[inline(always)]
    fn bf16_code<const J: usize>(self, line: Self::W) -> Self::F {
        line.map(|word| f32::from_bits((word >> (16 * J)) << 16))
    }
    #[inline(always)]
    fn int8_code<const J: usize>(self, line: Self::W) -> Self::F {
        line.map(|word| (word >> (8 * J) & 255) as f32 - 128.0)
    }
    #[inline(always)]
    fn int4_code<const J: usize>(self, line: Self::W) -> Self::F {
        line.map(|word| (word >> int4_shift(J) & 15) as f32 - 8.0)
    }
}
