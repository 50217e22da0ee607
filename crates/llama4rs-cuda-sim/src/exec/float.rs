//! Single, double and half precision.
//!
//! Everything is rounded once, to nearest even unless the instruction says
//! otherwise. The approximate instructions (`ex2`, `rsqrt`, ...) are computed in
//! double precision and rounded: within the error that PTX allows, but not bit
//! for bit what a device gives.

use half::f16;

use super::lanes::{map1, map2, map3, Lanes};
use super::warp::Exec;
use crate::program::{Float1, Float2, FloatMode, Half, Inst, Round, Width, LANES};

/// The NaN that single-precision instructions give.
const NAN32: f32 = f32::from_bits(0x7fff_ffff);

#[inline(always)]
fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE {
        f32::from_bits(x.to_bits() & 0x8000_0000)
    } else {
        x
    }
}

#[inline(always)]
fn canonical(x: f32) -> f32 {
    if x.is_nan() {
        NAN32
    } else {
        x
    }
}

#[inline(always)]
fn finish(x: f32, mode: FloatMode) -> f32 {
    let x = if mode.flush { flush(x) } else { x };
    // A NaN saturates to zero.
    let x = if mode.saturate { x.max(0.0).clamp(0.0, 1.0) } else { x };
    // `max` with a NaN gives the other operand.
    let x = if mode.relu { x.max(0.0) } else { x };
    canonical(x)
}

/// `fmin` and `fmax` of PTX: a NaN loses, or wins in the `.NaN` forms; -0 < +0.
#[inline(always)]
fn extreme(f: Float2, x: f32, y: f32) -> f32 {
    let (min, nan) = match f {
        Float2::Min => (true, false),
        Float2::MinNan => (true, true),
        Float2::Max => (false, false),
        _ => (false, true),
    };
    if x.is_nan() || y.is_nan() {
        return match (nan, x.is_nan(), y.is_nan()) {
            (false, true, false) => y,
            (false, false, true) => x,
            _ => NAN32,
        };
    }
    let first = if x == y { x.is_sign_negative() } else { x < y };
    if first == min {
        x
    } else {
        y
    }
}

/// The neighbour of `x` that lies towards plus or minus infinity.
#[inline(always)]
fn step(x: f32, up: bool) -> f32 {
    let bits = x.to_bits();
    if x == 0.0 {
        return f32::from_bits(if up { 1 } else { 0x8000_0001 });
    }
    let away = (x > 0.0) == up;
    f32::from_bits(if away { bits.wrapping_add(1) } else { bits.wrapping_sub(1) })
}

/// `p + c` in double precision and what rounding lost.
#[inline(always)]
fn two_sum(p: f64, c: f64) -> (f64, f64) {
    let sum = p + c;
    let back = sum - p;
    (sum, (p - (sum - back)) + (c - back))
}

/// The f32 of the exact value `sum + rest`, with the last bit set if anything
/// was lost; rounding that once more, to fewer bits, is rounding once.
#[inline(always)]
fn odd(sum: f64, rest: f64) -> f32 {
    let near = sum as f32;
    let away = sum - f64::from(near);
    let lost = if away != 0.0 { away } else { rest };
    // Not for infinities and NaN, where the difference is NaN or infinite.
    if lost != 0.0 && lost.abs() < f64::INFINITY && near.to_bits() & 1 == 0 && near.is_finite() {
        step(near, lost > 0.0)
    } else {
        near
    }
}

/// `p + c` rounded in a given direction; `p` is an exact product or operand.
fn directed(p: f64, c: f64, round: Round) -> f32 {
    let (sum, rest) = two_sum(p, c);
    let near = sum as f32;
    let lost = if sum - f64::from(near) != 0.0 { sum - f64::from(near) } else { rest };
    if !near.is_finite() || lost == 0.0 || lost.is_nan() {
        // A finite sum that overflowed only by rounding away.
        if near.is_infinite() && sum.is_finite() {
            let stay = match round {
                Round::Zero => true,
                Round::Down => near > 0.0,
                Round::Up => near < 0.0,
                Round::Nearest => false,
            };
            return if stay { f32::MAX.copysign(near) } else { near };
        }
        if near == 0.0 && round == Round::Down && p != 0.0 {
            return -0.0;
        }
        return near;
    }
    match round {
        Round::Nearest => near,
        Round::Up if lost > 0.0 => step(near, true),
        Round::Down if lost < 0.0 => step(near, false),
        Round::Zero if near > 0.0 && lost < 0.0 => step(near, false),
        Round::Zero if near < 0.0 && lost > 0.0 => step(near, true),
        _ => near,
    }
}

/// A scalar two-operand instruction in f32.
#[inline(always)]
pub fn float2(f: Float2, mode: FloatMode, x: f32, y: f32) -> f32 {
    let (x, y) = if mode.flush { (flush(x), flush(y)) } else { (x, y) };
    let value = match (f, mode.round) {
        (Float2::Add, Round::Nearest) => x + y,
        (Float2::Sub, Round::Nearest) => x - y,
        (Float2::Mul, Round::Nearest) => x * y,
        (Float2::Add, round) => directed(f64::from(x), f64::from(y), round),
        (Float2::Sub, round) => directed(f64::from(x), -f64::from(y), round),
        (Float2::Mul, round) => directed(f64::from(x) * f64::from(y), 0.0, round),
        (Float2::Div, _) => x / y,
        (Float2::CopySign, _) => return x.copysign(y),
        _ => extreme(f, x, y),
    };
    finish(value, mode)
}

/// A scalar fma in f32.
#[inline(always)]
pub fn fma(mode: FloatMode, x: f32, y: f32, z: f32) -> f32 {
    let (x, y, z) = if mode.flush { (flush(x), flush(y), flush(z)) } else { (x, y, z) };
    let value = match mode.round {
        Round::Nearest => x.mul_add(y, z),
        round => directed(f64::from(x) * f64::from(y), f64::from(z), round),
    };
    finish(value, mode)
}

/// A scalar one-operand instruction in f32.
#[inline(always)]
pub fn float1(f: Float1, mode: FloatMode, x: f32) -> f32 {
    match f {
        Float1::Neg => return finish_sign(-x, mode),
        Float1::Abs => return finish_sign(x.abs(), mode),
        _ => {}
    }
    let x = if mode.flush { flush(x) } else { x };
    let wide = f64::from(x);
    let value = match f {
        Float1::Sqrt => x.sqrt(),
        Float1::Rcp => 1.0 / x,
        Float1::Rsqrt => (1.0 / wide.sqrt()) as f32,
        Float1::Ex2 => wide.exp2() as f32,
        Float1::Lg2 => wide.log2() as f32,
        Float1::Sin => wide.sin() as f32,
        Float1::Cos => wide.cos() as f32,
        _ => wide.tanh() as f32,
    };
    finish(value, mode)
}

#[inline(always)]
fn finish_sign(x: f32, mode: FloatMode) -> f32 {
    if mode.flush {
        flush(x)
    } else {
        x
    }
}

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
    pub(super) fn float2(
        &mut self,
        f: Float2,
        width: Width,
        mode: FloatMode,
        inst: &Inst,
        mask: u32,
    ) {
        if width == Width::W64 {
            return self.double2(f, inst, mask);
        }
        let (a, b) = (self.get::<u32>(inst.a), self.get::<u32>(inst.b));
        let two = |f: Float2, mode: FloatMode| {
            map2(a, b, |x, y| float2(f, mode, f32::from_bits(x), f32::from_bits(y)).to_bits())
        };
        let out = match (f, mode == FloatMode::PLAIN) {
            (Float2::Add, true) => two(Float2::Add, FloatMode::PLAIN),
            (Float2::Sub, true) => two(Float2::Sub, FloatMode::PLAIN),
            (Float2::Mul, true) => two(Float2::Mul, FloatMode::PLAIN),
            (Float2::Div, true) => two(Float2::Div, FloatMode::PLAIN),
            (Float2::Min, true) => two(Float2::Min, FloatMode::PLAIN),
            (Float2::Max, true) => two(Float2::Max, FloatMode::PLAIN),
            _ => two(f, mode),
        };
        self.set(inst.d, &out, mask);
    }

    fn double2(&mut self, f: Float2, inst: &Inst, mask: u32) {
        let (a, b) = (self.get::<u64>(inst.a), self.get::<u64>(inst.b));
        let out = map2(a, b, |x, y| {
            let (x, y) = (f64::from_bits(x), f64::from_bits(y));
            let value = match f {
                Float2::Add => x + y,
                Float2::Sub => x - y,
                Float2::Mul => x * y,
                Float2::Div => x / y,
                Float2::Min | Float2::MinNan => x.min(y),
                Float2::Max | Float2::MaxNan => x.max(y),
                Float2::CopySign => x.copysign(y),
            };
            value.to_bits()
        });
        self.set(inst.d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn float1(
        &mut self,
        f: Float1,
        width: Width,
        mode: FloatMode,
        inst: &Inst,
        mask: u32,
    ) {
        if width == Width::W64 {
            let out = map1(self.get::<u64>(inst.a), |x| double1(f, f64::from_bits(x)).to_bits());
            return self.set(inst.d, &out, mask);
        }
        let a = self.get::<u32>(inst.a);
        let one = |f: Float1| map1(a, |x| float1(f, mode, f32::from_bits(x)).to_bits());
        let out = match f {
            Float1::Neg => one(Float1::Neg),
            Float1::Abs => one(Float1::Abs),
            Float1::Ex2 => one(Float1::Ex2),
            _ => one(f),
        };
        self.set(inst.d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn fma_at(&mut self, width: Width, mode: FloatMode, inst: &Inst, mask: u32) {
        if width == Width::W64 {
            let (a, b) = (self.get::<u64>(inst.a), self.get::<u64>(inst.b));
            let out = map3(a, b, self.get::<u64>(inst.c), |x, y, z| {
                f64::from_bits(x).mul_add(f64::from_bits(y), f64::from_bits(z)).to_bits()
            });
            return self.set(inst.d, &out, mask);
        }
        let (a, b, c) = (self.get::<u32>(inst.a), self.get::<u32>(inst.b), self.get::<u32>(inst.c));
        let three = |mode: FloatMode| {
            map3(a, b, c, |x, y, z| {
                fma(mode, f32::from_bits(x), f32::from_bits(y), f32::from_bits(z)).to_bits()
            })
        };
        let out = if mode == FloatMode::PLAIN { three(FloatMode::PLAIN) } else { three(mode) };
        self.set(inst.d, &out, mask);
    }

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

fn double1(f: Float1, x: f64) -> f64 {
    match f {
        Float1::Neg => -x,
        Float1::Abs => x.abs(),
        Float1::Rcp => 1.0 / x,
        Float1::Sqrt => x.sqrt(),
        Float1::Rsqrt => 1.0 / x.sqrt(),
        Float1::Ex2 => x.exp2(),
        Float1::Lg2 => x.log2(),
        Float1::Sin => x.sin(),
        Float1::Cos => x.cos(),
        Float1::Tanh => x.tanh(),
    }
}
