//! Conversions.

use super::half::{narrow, widen};
use super::lanes::{map1, map2, Lanes};
use super::warp::Exec;
use crate::program::{Conversion, FloatMode, Half, Inst, Round, Slot, SlotKind, Type, Width};

/// The bits of one converted value; `x` are the operand's bits, widened with zeros.
pub fn convert(c: Conversion, x: u64) -> u64 {
    match (c.from.float(), c.to.float()) {
        (false, false) => int_to_int(c, x),
        (false, true) => int_to_float(c, x),
        (true, false) => float_to_int(c, x),
        (true, true) => float_to_float(c, x),
    }
}

/// The integer that the low bits of `x` stand for.
fn integer(kind: Type, x: u64) -> i128 {
    let shift = 64 - 8 * kind.bytes() as u32;
    if kind.signed() {
        i128::from(((x << shift) as i64) >> shift)
    } else {
        i128::from((x << shift) >> shift)
    }
}

fn range(kind: Type) -> (i128, i128) {
    let bits = 8 * kind.bytes() as u32;
    if kind.signed() {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

fn int_to_int(c: Conversion, x: u64) -> u64 {
    let value = integer(c.from, x);
    let value = if c.mode.saturate {
        let (low, high) = range(c.to);
        value.clamp(low, high)
    } else {
        value
    };
    // A register wider than the type gets the type's extension.
    integer(c.to, value as u64) as u64
}

fn whole(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

fn read_float(kind: Type, x: u64) -> f64 {
    match kind {
        Type::F16 => widen(Half::F16, x as u16).into(),
        Type::Bf16 => widen(Half::Bf16, x as u16).into(),
        Type::F32 => f32::from_bits(x as u32).into(),
        _ => f64::from_bits(x),
    }
}

fn flush(mode: FloatMode, kind: Type, x: f64) -> f64 {
    if mode.flush && kind == Type::F32 && x.abs() < f64::from(f32::MIN_POSITIVE) {
        0f64.copysign(x)
    } else {
        x
    }
}

fn float_to_int(c: Conversion, x: u64) -> u64 {
    let value = flush(c.mode, c.from, read_float(c.from, x));
    let (low, high) = range(c.to);
    if value.is_nan() {
        // A 32-bit NaN becomes zero; wider integers get the sign bit.
        return if c.to.bytes() == 8 || c.from == Type::F64 {
            1 << (8 * c.to.bytes() - 1)
        } else {
            0
        };
    }
    let value = whole(value, c.mode.round);
    let value = (value as i128).clamp(low, high);
    integer(c.to, value as u64) as u64
}

fn int_to_float(c: Conversion, x: u64) -> u64 {
    let value = integer(c.from, x);
    match c.to {
        Type::F64 => round_integer(value, 53, c.mode.round).to_bits(),
        Type::F32 => u64::from((round_integer(value, 24, c.mode.round) as f32).to_bits()),
        Type::F16 => {
            let near = round_integer(value, 11, c.mode.round);
            narrow(Half::F16, near as f32).into()
        }
        _ => narrow(Half::Bf16, round_integer(value, 8, c.mode.round) as f32).into(),
    }
}

/// `value` with at most `bits` significant bits.
fn round_integer(value: i128, bits: u32, round: Round) -> f64 {
    let magnitude = value.unsigned_abs();
    let length = 128 - magnitude.leading_zeros();
    if length <= bits {
        return value as f64;
    }
    let shift = length - bits;
    let (kept, lost) = (magnitude >> shift, magnitude & ((1 << shift) - 1));
    let half = 1u128 << (shift - 1);
    let up = match round {
        Round::Nearest => lost > half || lost == half && kept & 1 == 1,
        Round::Zero => false,
        Round::Down => value < 0 && lost > 0,
        Round::Up => value > 0 && lost > 0,
    };
    let rounded = ((kept + u128::from(up)) << shift) as f64;
    if value < 0 {
        -rounded
    } else {
        rounded
    }
}

fn float_to_float(c: Conversion, x: u64) -> u64 {
    let mut value = flush(c.mode, c.from, read_float(c.from, x));
    if c.whole {
        value = whole(value, c.mode.round);
    }
    if c.mode.saturate {
        value = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) };
    }
    if c.mode.relu {
        value = value.max(0.0);
    }
    let (most, round) = (c.finite, if c.whole { Round::Nearest } else { c.mode.round });
    match c.to {
        Type::F64 => value.to_bits(),
        Type::F32 => {
            let near = to_f32(value, round);
            let near = flush(c.mode, Type::F32, near.into()) as f32;
            u64::from(if near.is_nan() { 0x7fff_ffff } else { near.to_bits() })
        }
        Type::F16 => to_half(Half::F16, value, round, most).into(),
        _ => to_half(Half::Bf16, value, round, most).into(),
    }
}

/// `value` as f32, rounded once in the given direction.
fn to_f32(value: f64, round: Round) -> f32 {
    let near = value as f32;
    if near.is_nan() || f64::from(near) == value || round == Round::Nearest {
        return near;
    }
    let larger = f64::from(near) > value;
    match round {
        Round::Zero if f64::from(near).abs() > value.abs() => towards_zero(near),
        Round::Down if larger => next_down(near),
        Round::Up if !larger => -next_down(-near),
        _ => near,
    }
}

fn towards_zero(x: f32) -> f32 {
    f32::from_bits(x.to_bits() - 1)
}

fn next_down(x: f32) -> f32 {
    if x == 0.0 {
        f32::from_bits(0x8000_0001)
    } else if x > 0.0 {
        f32::from_bits(x.to_bits() - 1)
    } else {
        f32::from_bits(x.to_bits() + 1)
    }
}

/// `value` as f16 or bf16: to nearest even, or towards zero.
pub fn to_half(half: Half, value: f64, round: Round, finite: bool) -> u16 {
    // With the last bit set if anything is lost, the second rounding is the only one.
    let cut = to_f32(value, Round::Zero);
    let sticky = f64::from(cut) != value && !value.is_nan();
    let odd = f32::from_bits(cut.to_bits() | u32::from(sticky));
    let mut bits = narrow(half, odd);
    if round == Round::Zero && f64::from(widen(half, bits)).abs() > value.abs() {
        bits -= 1;
    }
    let infinite = if half == Half::F16 { 0x7c00 } else { 0x7f80 };
    if finite && bits & 0x7fff == infinite {
        bits -= 1;
    }
    bits
}

impl Exec<'_, '_> {
    /// The operand's lanes as 64 bits, whatever its width.
    #[inline(always)]
    pub(super) fn get_wide(&self, slot: Slot) -> Lanes<u64> {
        match slot.kind() {
            SlotKind::Register(Width::W16) | SlotKind::Constant(Width::W16) => {
                map1(self.get::<u16>(slot), u64::from)
            }
            SlotKind::Register(Width::W32) | SlotKind::Constant(Width::W32) => {
                map1(self.get::<u32>(slot), u64::from)
            }
            _ => *self.get::<u64>(slot),
        }
    }

    /// Writes the low bits of each lane, whatever the register's width.
    #[inline(always)]
    pub(super) fn set_wide(&mut self, slot: Slot, value: &Lanes<u64>, mask: u32) {
        match slot.kind() {
            SlotKind::Register(Width::W16) => {
                let out = map1(value, |x| x as u16);
                self.set(slot, &out, mask);
            }
            SlotKind::Register(Width::W32) => {
                let out = map1(value, |x| x as u32);
                self.set(slot, &out, mask);
            }
            _ => self.set(slot, value, mask),
        }
    }

    #[inline(always)]
    pub(super) fn convert(&mut self, c: Conversion, inst: &Inst, mask: u32) {
        let a = self.get_wide(inst.a);
        let out = match (c.from, c.to, c.mode == FloatMode::PLAIN) {
            (Type::U32, Type::U64 | Type::S64, true) | (Type::U64 | Type::S64, Type::U32, true) => {
                map1(&a, |x| x & 0xffff_ffff)
            }
            (Type::S32, Type::S64 | Type::U64, true) => map1(&a, |x| x as i32 as i64 as u64),
            (Type::S32, Type::F32, true) => map1(&a, |x| u64::from((x as i32 as f32).to_bits())),
            (Type::U32, Type::F32, true) => map1(&a, |x| u64::from((x as u32 as f32).to_bits())),
            (Type::U8, Type::F32, true) => map1(&a, |x| u64::from((x as u8 as f32).to_bits())),
            (Type::S8, Type::F32, true) => map1(&a, |x| u64::from((x as i8 as f32).to_bits())),
            (Type::U16, Type::F32, true) => map1(&a, |x| u64::from((x as u16 as f32).to_bits())),
            (Type::S16, Type::F32, true) => map1(&a, |x| u64::from((x as i16 as f32).to_bits())),
            (Type::F16, Type::F32, true) => {
                map1(&a, |x| u64::from(widen(Half::F16, x as u16).to_bits()))
            }
            (Type::F32, Type::F16, true) if !c.finite => {
                map1(&a, |x| narrow(Half::F16, f32::from_bits(x as u32)).into())
            }
            (Type::F32, Type::Bf16, true) if !c.finite => {
                map1(&a, |x| narrow(Half::Bf16, f32::from_bits(x as u32)).into())
            }
            _ if !c.from.float() && !c.to.float() && !c.mode.saturate => {
                int_lanes(c.from, c.to, &a)
            }
            _ => map1(&a, |x| convert(c, x)),
        };
        self.set_wide(inst.d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn convert_pair(&mut self, half: Half, mode: FloatMode, inst: &Inst, mask: u32) {
        let (a, b) = (self.get::<u32>(inst.a), self.get::<u32>(inst.b));
        let join = |high: u16, low: u16| u32::from(high) << 16 | u32::from(low);
        let out = if mode == FloatMode::PLAIN {
            map2(a, b, |x, y| {
                join(narrow(half, f32::from_bits(x)), narrow(half, f32::from_bits(y)))
            })
        } else {
            let one = |x: u32| {
                let x = f32::from_bits(x);
                let x = if mode.relu { x.max(0.0) } else { x };
                to_half(half, x.into(), mode.round, false)
            };
            map2(a, b, |x, y| join(one(x), one(y)))
        };
        self.set(inst.d, &out, mask);
    }
}

/// Integer conversions without clamping, for all lanes at once.
#[inline(always)]
fn int_lanes(from: Type, to: Type, a: &Lanes<u64>) -> Lanes<u64> {
    let extend = |kind: Type, x: u64| {
        let shift = 64 - 8 * kind.bytes() as u32;
        if kind.signed() {
            (((x << shift) as i64) >> shift) as u64
        } else {
            (x << shift) >> shift
        }
    };
    map1(a, |x| extend(to, extend(from, x)))
}
