//! f16 and bf16, single or in pairs, each result rounded once.

use half::f16;

use super::float::{extreme, finish, odd, two_sum};
use super::lanes::{map1, map2, map3, Lanes};
use super::warp::Exec;
use crate::program::{Float1, Float2, FloatMode, Half, Inst, LANES};

/// The f32 of a 16-bit value.
#[inline(always)]
pub fn widen(half: Half, bits: u16) -> f32 {
    match half {
        Half::Bf16 => f32::from_bits(u32::from(bits) << 16),
        Half::F16 => f16::from_bits(bits).to_f32(),
    }
}

/// The 16-bit value nearest to `x`, ties to even.
#[inline(always)]
pub fn narrow(half: Half, x: f32) -> u16 {
    match half {
        Half::Bf16 => {
            let bits = x.to_bits();
            if x.is_nan() {
                0x7fff
            } else {
                ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
            }
        }
        Half::F16 if x.is_nan() => 0x7fff,
        Half::F16 => f16::from_f32(x).to_bits(),
    }
}

/// A scalar two-operand instruction in f16 or bf16.
#[inline(always)]
pub fn half2(f: Float2, half: Half, mode: FloatMode, x: u16, y: u16) -> u16 {
    let (x, y) = (widen(half, x), widen(half, y));
    let value = match f {
        // Sums of f32 round to odd first, as 24 bits do not hold every exact sum.
        Float2::Add => {
            let (sum, rest) = two_sum(x.into(), y.into());
            odd(sum, rest)
        }
        Float2::Sub => {
            let (sum, rest) = two_sum(x.into(), -f64::from(y));
            odd(sum, rest)
        }
        Float2::Mul => odd(f64::from(x) * f64::from(y), 0.0),
        Float2::Div => odd(f64::from(x) / f64::from(y), 0.0),
        _ => extreme(f, x, y),
    };
    narrow(half, finish(value, mode))
}

/// A scalar fma in f16 or bf16.
#[inline(always)]
pub fn half_fma(half: Half, mode: FloatMode, x: u16, y: u16, z: u16) -> u16 {
    let product = f64::from(widen(half, x)) * f64::from(widen(half, y));
    let (sum, rest) = two_sum(product, widen(half, z).into());
    narrow(half, finish(odd(sum, rest), mode))
}

/// The bf16 fma of the high halves of all lanes, in the high halves of the result, in
/// single precision: with operands of moderate size the product is exact, and what the
/// sum loses is known. False if an operand is not.
#[inline(always)]
fn fma_bf16(a: &Lanes<u32>, b: &Lanes<u32>, c: &Lanes<u32>) -> (Lanes<u32>, bool) {
    /// 2^-90 to 2^90, without the sign.
    const MODERATE: std::ops::Range<u32> = (127 - 90) << 23..(127 + 90) << 23;
    let moderate = |bits: u32| {
        let size = bits & 0x7fff_ffff;
        (size == 0) | (size.wrapping_sub(MODERATE.start) < MODERATE.end - MODERATE.start)
    };
    let (mut out, mut strange) = ([0; LANES], 0);
    for l in 0..LANES {
        let high = |x: u32| f32::from_bits(x & 0xffff_0000);
        let (x, y, z) = (high(a[l]), high(b[l]), high(c[l]));
        let product = x * y;
        let sum = product + z;
        let back = sum - product;
        let rest = (product - (sum - back)) + (z - back);
        // An odd last bit tells that something was lost; the next rounding sees it.
        let towards = if (rest > 0.0) == (sum > 0.0) { 1 } else { u32::MAX };
        let bits = sum.to_bits();
        let step = if (rest != 0.0) & (bits & 1 == 0) { towards } else { 0 };
        let odd = bits.wrapping_add(step);
        out[l] = odd.wrapping_add(0x7fff + (odd >> 16 & 1));
        // Zero times anything finite is an exact zero.
        let zero = (x == 0.0) | (y == 0.0);
        let fine = moderate(x.to_bits()) & moderate(y.to_bits()) & moderate(z.to_bits());
        let exact = zero | moderate(product.to_bits());
        strange |= u32::from(!(fine & exact));
    }
    (out, strange == 0)
}

/// A scalar one-operand instruction in f16 or bf16.
#[inline(always)]
pub fn half1(f: Float1, half: Half, x: u16) -> u16 {
    match f {
        Float1::Neg => x ^ 0x8000,
        Float1::Abs => x & 0x7fff,
        Float1::Ex2 => narrow(half, odd(f64::from(widen(half, x)).exp2(), 0.0)),
        _ => narrow(half, odd(f64::from(widen(half, x)).tanh(), 0.0)),
    }
}

#[inline(always)]
fn both1(x: u32, f: impl Fn(u16) -> u16) -> u32 {
    u32::from(f(x as u16)) | u32::from(f((x >> 16) as u16)) << 16
}

#[inline(always)]
fn both2(x: u32, y: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(x as u16, y as u16)) | u32::from(f((x >> 16) as u16, (y >> 16) as u16)) << 16
}
impl Exec<'_, '_> {
    #[inline(always)]
    pub(super) fn half2_at(
        &mut self,
        f: Float2,
        half: Half,
        pair: bool,
        mode: FloatMode,
        inst: &Inst,
        mask: u32,
    ) {
        if pair {
            let (a, b) = (self.get::<u32>(inst.a), self.get::<u32>(inst.b));
            let out = map2(a, b, |x, y| both2(x, y, |x, y| half2(f, half, mode, x, y)));
            self.set(inst.d, &out, mask);
        } else {
            let (a, b) = (self.get::<u16>(inst.a), self.get::<u16>(inst.b));
            let out = map2(a, b, |x, y| half2(f, half, mode, x, y));
            self.set(inst.d, &out, mask);
        }
    }

    #[inline(always)]
    pub(super) fn half1_at(&mut self, f: Float1, half: Half, pair: bool, inst: &Inst, mask: u32) {
        if pair {
            let out = map1(self.get::<u32>(inst.a), |x| both1(x, |x| half1(f, half, x)));
            self.set(inst.d, &out, mask);
        } else {
            let out = map1(self.get::<u16>(inst.a), |x| half1(f, half, x));
            self.set(inst.d, &out, mask);
        }
    }

    #[inline(always)]
    pub(super) fn half_fma_at(
        &mut self,
        half: Half,
        pair: bool,
        mode: FloatMode,
        inst: &Inst,
        mask: u32,
    ) {
        if !pair {
            let (a, b) = (self.get::<u16>(inst.a), self.get::<u16>(inst.b));
            let c = self.get::<u16>(inst.c);
            let out = map3(a, b, c, |x, y, z| half_fma(half, mode, x, y, z));
            return self.set(inst.d, &out, mask);
        }
        let (a, b, c) = (self.get::<u32>(inst.a), self.get::<u32>(inst.b), self.get::<u32>(inst.c));
        if half == Half::Bf16 && mode == FloatMode::PLAIN {
            let (low, plain) =
                fma_bf16(&map1(a, |x| x << 16), &map1(b, |x| x << 16), &map1(c, |x| x << 16));
            let (high, also) = fma_bf16(a, b, c);
            if plain && also {
                let out = map2(&low, &high, |x, y| x >> 16 | y & 0xffff_0000);
                return self.set(inst.d, &out, mask);
            }
        }
        let out = map3(a, b, c, |x, y, z| {
            let low = half_fma(half, mode, x as u16, y as u16, z as u16);
            let high = half_fma(half, mode, (x >> 16) as u16, (y >> 16) as u16, (z >> 16) as u16);
            u32::from(low) | u32::from(high) << 16
        });
        self.set(inst.d, &out, mask);
    }
}
