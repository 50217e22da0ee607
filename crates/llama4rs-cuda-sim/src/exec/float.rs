//! Single and double precision.
//!
//! Everything is rounded once, to nearest even unless the instruction says
//! otherwise. The approximate instructions (`ex2`, `rsqrt`, ...) are computed in
//! double precision and rounded: within the error that PTX allows, but not bit
//! for bit what a device gives.

use super::lanes::{map1, map2, map3};
use super::warp::Exec;
use crate::program::{Float1, Float2, FloatMode, Inst, Round, Width};

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
pub(super) fn finish(x: f32, mode: FloatMode) -> f32 {
    let x = if mode.flush { flush(x) } else { x };
    // A NaN saturates to zero.
    let x = if mode.saturate { x.max(0.0).clamp(0.0, 1.0) } else { x };
    // `max` with a NaN gives the other operand.
    let x = if mode.relu { x.max(0.0) } else { x };
    canonical(x)
}

/// `fmin` and `fmax` of PTX: a NaN loses, or wins in the `.NaN` forms; -0 < +0.
#[inline(always)]
pub(super) fn extreme(f: Float2, x: f32, y: f32) -> f32 {
    let (min, nan) = match f {
        Float2::Min => (true, false),
        Float2::MinNan => (true, true),
        Float2::Max => (false, false),
        _ => (false, true),
    };
    // Bits in an order that agrees with that of numbers, so that -0 < +0.
    let key = |v: f32| {
        let bits = v.to_bits() as i32;
        bits ^ (((bits >> 31) as u32) >> 1) as i32
    };
    let chosen = if (key(x) < key(y)) == min { x } else { y };
    let (x_nan, y_nan) = (x.is_nan(), y.is_nan());
    let other = if x_nan { y } else { x };
    match (nan, x_nan | y_nan) {
        (_, false) => chosen,
        (true, true) => NAN32,
        (false, true) => other,
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
pub(super) fn two_sum(p: f64, c: f64) -> (f64, f64) {
    let sum = p + c;
    let back = sum - p;
    (sum, (p - (sum - back)) + (c - back))
}

/// The f32 of the exact value `sum + rest`, with the last bit set if anything
/// was lost; rounding that once more, to fewer bits, is rounding once.
#[inline(always)]
pub(super) fn odd(sum: f64, rest: f64) -> f32 {
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
        // A closure of its own for each common case, so that each becomes a loop of its own.
        macro_rules! two {
            ($f:expr, $mode:expr) => {
                map2(a, b, |x, y| float2($f, $mode, f32::from_bits(x), f32::from_bits(y)).to_bits())
            };
        }
        macro_rules! arms {
            ($($f:ident)*) => {
                match (f, mode == FloatMode::PLAIN) {
                    $((Float2::$f, true) => two!(Float2::$f, FloatMode::PLAIN),)*
                    _ => two!(f, mode),
                }
            };
        }
        let out = arms!(Add Sub Mul Div Min Max);
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
        macro_rules! one {
            ($f:expr) => {
                map1(a, |x| float1($f, mode, f32::from_bits(x)).to_bits())
            };
        }
        let out = match f {
            Float1::Neg => one!(Float1::Neg),
            Float1::Abs => one!(Float1::Abs),
            Float1::Ex2 => one!(Float1::Ex2),
            _ => one!(f),
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
        macro_rules! three {
            ($mode:expr) => {
                map3(a, b, c, |x, y, z| {
                    fma($mode, f32::from_bits(x), f32::from_bits(y), f32::from_bits(z)).to_bits()
                })
            };
        }
        let out = if mode == FloatMode::PLAIN { three!(FloatMode::PLAIN) } else { three!(mode) };
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
