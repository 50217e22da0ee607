//! Integer and bit instructions.

use super::lanes::{map1, map2, map3, Lane};
use super::warp::Exec;
use crate::program::{Inst, Int1, Int2};

/// An unsigned register value that is also read as signed.
pub trait Int: Lane {
    /// Its bits.
    const BITS: u32;
    /// Sign-extended.
    fn signed(self) -> i64;
    /// High half of the unsigned product.
    fn high(self, other: Self) -> Self;
    /// High half of the signed product.
    fn high_signed(self, other: Self) -> Self;
}

macro_rules! int {
    ($t:ty, $s:ty, $wide:ty, $wide_signed:ty) => {
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            #[inline(always)]
            fn signed(self) -> i64 {
                self as $s as i64
            }
            #[inline(always)]
            fn high(self, other: Self) -> Self {
                ((self as $wide * other as $wide) >> Self::BITS) as $t
            }
            #[inline(always)]
            fn high_signed(self, other: Self) -> Self {
                ((self as $s as $wide_signed * other as $s as $wide_signed) >> Self::BITS) as $t
            }
        }
    };
}
int!(u16, i16, u32, i32);
int!(u32, i32, u64, i64);
int!(u64, i64, u128, i128);

/// A scalar form of a two-operand instruction (not of the shifts).
#[inline(always)]
pub fn int2<T: Int>(f: Int2, x: T, y: T) -> T {
    let (u, v) = (x.wide(), y.wide());
    let (s, t) = (x.signed(), y.signed());
    let clamp = |v: i64| {
        let most = (1i64 << (T::BITS.min(63) - 1)) - 1;
        T::narrow(v.clamp(-most - 1, most) as u64)
    };
    T::narrow(match f {
        Int2::Add => u.wrapping_add(v),
        Int2::Sub => u.wrapping_sub(v),
        Int2::Mul => u.wrapping_mul(v),
        Int2::MulHiU => return x.high(y),
        Int2::MulHiS => return x.high_signed(y),
        // Division by zero gives all ones, as on the device.
        Int2::DivU => u.checked_div(v).unwrap_or(u64::MAX),
        Int2::DivS if t == 0 => u64::MAX,
        Int2::DivS => s.wrapping_div(t) as u64,
        Int2::RemU => u.checked_rem(v).unwrap_or(u),
        Int2::RemS if t == 0 => u,
        Int2::RemS => s.wrapping_rem(t) as u64,
        Int2::MinU => u.min(v),
        Int2::MaxU => u.max(v),
        Int2::MinS => s.min(t) as u64,
        Int2::MaxS => s.max(t) as u64,
        Int2::And => u & v,
        Int2::Or => u | v,
        Int2::Xor => u ^ v,
        Int2::AddSat => return clamp(s.saturating_add(t)),
        Int2::SubSat => return clamp(s.saturating_sub(t)),
        Int2::Shl | Int2::ShrS | Int2::ShrU => unreachable!("shifts take a 32-bit amount"),
    })
}

/// A scalar form of the shifts: amounts beyond the width are clamped to it.
#[inline(always)]
pub fn shift<T: Int>(f: Int2, x: T, by: u32) -> T {
    let far = by >= T::BITS;
    let by = by.min(T::BITS - 1);
    match f {
        Int2::Shl => T::narrow(if far { 0 } else { x.wide() << by }),
        Int2::ShrU => T::narrow(if far { 0 } else { x.wide() >> by }),
        _ => T::narrow((x.signed() >> by) as u64),
    }
}

/// A scalar form of the one-operand instructions whose result has the operand's width.
#[inline(always)]
pub fn int1<T: Int>(f: Int1, x: T) -> T {
    T::narrow(match f {
        Int1::Neg => x.wide().wrapping_neg(),
        Int1::Not => !x.wide(),
        Int1::Cnot => u64::from(x.wide() == 0),
        Int1::Abs => x.signed().wrapping_abs() as u64,
        Int1::Brev => x.wide().reverse_bits() >> (64 - T::BITS),
        _ => unreachable!("counts are 32 bits wide"),
    })
}

/// A scalar form of the instructions that count or find bits.
#[inline(always)]
pub fn count<T: Int>(f: Int1, x: T) -> u32 {
    let find = |v: u64| if v == 0 { u32::MAX } else { 63 - v.leading_zeros() };
    let shift = |at: u32| if at == u32::MAX { at } else { T::BITS - 1 - at };
    // Of a negative number, the highest zero bit counts.
    let magnitude = T::narrow((x.signed() ^ (x.signed() >> 63)) as u64).wide();
    match f {
        Int1::Popc => x.wide().count_ones(),
        Int1::Clz => x.wide().leading_zeros() - (64 - T::BITS),
        Int1::FindU => find(x.wide()),
        Int1::ShiftU => shift(find(x.wide())),
        Int1::FindS => find(magnitude),
        _ => shift(find(magnitude)),
    }
}

/// `bfe`: `length` bits of `x` from `from` on.
#[inline(always)]
pub fn extract<T: Int>(signed: bool, x: T, from: u32, length: u32) -> T {
    let (from, length) = (from & 0xff, length & 0xff);
    let top = (from + length).wrapping_sub(1).min(T::BITS - 1);
    let fill = signed && length > 0 && x.wide() >> top & 1 == 1;
    let value = if from >= T::BITS { 0 } else { x.wide() >> from };
    let have = length.min(T::BITS.saturating_sub(from));
    let keep = if have >= 64 { u64::MAX } else { (1u64 << have) - 1 };
    T::narrow(value & keep | if fill { !keep } else { 0 })
}

/// `bfi`: `length` bits of `x` put into `y` at `at`.
#[inline(always)]
pub fn insert<T: Int>(x: T, y: T, at: u32, length: u32) -> T {
    let (at, length) = (at & 0xff, length & 0xff);
    if at >= T::BITS || length == 0 {
        return y;
    }
    let keep = if length >= 64 { u64::MAX } else { (1u64 << length) - 1 } << at;
    T::narrow(y.wide() & !keep | (x.wide() << at) & keep)
}

/// `prmt`: four bytes of the eight in `y:x`, chosen by the nibbles of `selector`.
#[inline(always)]
pub fn permute(mode: u8, x: u32, y: u32, selector: u32) -> u32 {
    let bytes = u64::from(y) << 32 | u64::from(x);
    let s = selector & 3;
    let pick = |i: u32| match mode {
        0 => selector >> (4 * i) & 15,
        1 => s + i,
        2 => s.wrapping_sub(i) & 7,
        3 => s,
        4 => s.max(i),
        5 => s.min(i),
        _ => (s & 1) * 2 + (i & 1),
    };
    let mut out = 0;
    for i in 0..4 {
        let n = pick(i);
        let byte = (bytes >> (8 * (n & 7))) as u8;
        // The high bit of a nibble asks for the byte's sign.
        let byte = if mode == 0 && n & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        out |= u32::from(byte) << (8 * i);
    }
    out
}

/// `dp4a`, and `dp2a` on two of the four bytes of `y`.
#[inline(always)]
pub fn dot4(x: u32, y: u32, sum: u32, x_signed: bool, y_signed: bool) -> u32 {
    let byte = |v: u32, i: u32, signed: bool| {
        let b = (v >> (8 * i)) as u8;
        if signed {
            i32::from(b as i8)
        } else {
            i32::from(b)
        }
    };
    let mut sum = sum as i32;
    for i in 0..4 {
        sum = sum.wrapping_add(byte(x, i, x_signed).wrapping_mul(byte(y, i, y_signed)));
    }
    sum as u32
}

/// `dp2a`: two halves of `x` times two bytes of `y`.
#[inline(always)]
pub fn dot2(x: u32, y: u32, sum: u32, x_signed: bool, y_signed: bool, high: bool) -> u32 {
    let mut sum = sum as i32;
    for i in 0..2 {
        let h = (x >> (16 * i)) as u16;
        let b = (y >> (8 * (i + if high { 2 } else { 0 }))) as u8;
        let h = if x_signed { i32::from(h as i16) } else { i32::from(h) };
        let b = if y_signed { i32::from(b as i8) } else { i32::from(b) };
        sum = sum.wrapping_add(h.wrapping_mul(b));
    }
    sum as u32
}

impl Exec<'_, '_> {
    #[inline(always)]
    pub(super) fn int2_at<T: Int>(&mut self, f: Int2, inst: &Inst, mask: u32) {
        macro_rules! arms {
            ($($f:ident)*) => {
                match f {
                    Int2::Shl | Int2::ShrS | Int2::ShrU => {
                        let (a, b) = (self.get::<T>(inst.a), self.get::<u32>(inst.b));
                        match f {
                            Int2::Shl => map2(a, b, |x, y| shift(Int2::Shl, x, y)),
                            Int2::ShrU => map2(a, b, |x, y| shift(Int2::ShrU, x, y)),
                            _ => map2(a, b, |x, y| shift(Int2::ShrS, x, y)),
                        }
                    }
                    $(Int2::$f => {
                        let (a, b) = (self.get::<T>(inst.a), self.get::<T>(inst.b));
                        map2(a, b, |x, y| int2(Int2::$f, x, y))
                    })*
                }
            };
        }
        let out = arms!(Add Sub Mul MulHiS MulHiU DivS DivU RemS RemU MinS MinU MaxS MaxU And Or
            Xor AddSat SubSat);
        self.set(inst.d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn int1_at<T: Int>(&mut self, f: Int1, inst: &Inst, mask: u32) {
        let a = self.get::<T>(inst.a);
        match f {
            Int1::Neg | Int1::Not | Int1::Cnot | Int1::Abs | Int1::Brev => {
                let out = map1(a, |x| int1(f, x));
                self.set(inst.d, &out, mask);
            }
            _ => {
                let out = map1(a, |x| count(f, x));
                self.set(inst.d, &out, mask);
            }
        }
    }

    #[inline(always)]
    pub(super) fn mad_at<T: Int>(&mut self, high: Option<bool>, inst: &Inst, mask: u32) {
        let (a, b, c) = (self.get::<T>(inst.a), self.get::<T>(inst.b), self.get::<T>(inst.c));
        let add = |p: T, z: T| T::narrow(p.wide().wrapping_add(z.wide()));
        let out = match high {
            None => map3(a, b, c, |x, y, z| add(int2(Int2::Mul, x, y), z)),
            Some(true) => map3(a, b, c, |x, y, z| add(x.high_signed(y), z)),
            Some(false) => map3(a, b, c, |x, y, z| add(x.high(y), z)),
        };
        self.set(inst.d, &out, mask);
    }

    /// Products of twice the width, from 16 or 32 bits, with or without a sum.
    #[inline(always)]
    pub(super) fn wide_at<T: Int, W: Int>(&mut self, signed: bool, inst: &Inst, mask: u32) {
        let (a, b) = (self.get::<T>(inst.a), self.get::<T>(inst.b));
        let mut out = if signed {
            map2(a, b, |x, y| W::narrow(x.signed().wrapping_mul(y.signed()) as u64))
        } else {
            map2(a, b, |x, y| W::narrow(x.wide().wrapping_mul(y.wide())))
        };
        if inst.c.is_some() {
            let c = self.get::<W>(inst.c);
            out = map2(&out, c, |p, z| W::narrow(p.wide().wrapping_add(z.wide())));
        }
        self.set(inst.d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn sad_at<T: Int>(&mut self, signed: bool, inst: &Inst, mask: u32) {
        let (a, b, c) = (self.get::<T>(inst.a), self.get::<T>(inst.b), self.get::<T>(inst.c));
        let out = map3(a, b, c, |x, y, z| {
            let larger = if signed { x.signed() > y.signed() } else { x.wide() > y.wide() };
            let (x, y) = if larger { (x, y) } else { (y, x) };
            T::narrow(x.wide().wrapping_sub(y.wide()).wrapping_add(z.wide()))
        });
        self.set(inst.d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn extract_at<T: Int>(&mut self, signed: bool, inst: &Inst, mask: u32) {
        let (a, b, c) = (self.get::<T>(inst.a), self.get::<u32>(inst.b), self.get::<u32>(inst.c));
        let out = map3(a, b, c, |x, from, length| extract(signed, x, from, length));
        self.set(inst.d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn insert_at<T: Int>(&mut self, inst: &Inst, mask: u32) {
        let (a, b) = (self.get::<T>(inst.a), self.get::<T>(inst.b));
        let (at, length) = (self.get::<u32>(inst.c), self.get::<u32>(inst.e));
        let mut out = *b;
        for l in 0..out.len() {
            out[l] = insert(a[l], b[l], at[l], length[l]);
        }
        self.set(inst.d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn lop3(&mut self, table: u8, inst: &Inst, mask: u32) {
        let (a, b, c) = (self.get::<u32>(inst.a), self.get::<u32>(inst.b), self.get::<u32>(inst.c));
        // Each minterm of the table, all ones or all zeros.
        let term: [u32; 8] = std::array::from_fn(|i| (u32::from(table) >> i & 1).wrapping_neg());
        let out = map3(a, b, c, |x, y, z| {
            let low = |n: usize| term[n] & !z | term[n + 1] & z;
            let no_x = low(0) & !y | low(2) & y;
            let with_x = low(4) & !y | low(6) & y;
            no_x & !x | with_x & x
        });
        self.set(inst.d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn funnel(&mut self, left: bool, wrap: bool, inst: &Inst, mask: u32) {
        let (a, b, c) = (self.get::<u32>(inst.a), self.get::<u32>(inst.b), self.get::<u32>(inst.c));
        let out = map3(a, b, c, |low, high, by| {
            let by = if wrap { by & 31 } else { by.min(32) };
            let both = u64::from(high) << 32 | u64::from(low);
            if left {
                ((both << by) >> 32) as u32
            } else {
                (both >> by) as u32
            }
        });
        self.set(inst.d, &out, mask);
    }

    /// A function of three words.
    #[inline(always)]
    pub(super) fn words(&mut self, inst: &Inst, mask: u32, f: impl Fn(u32, u32, u32) -> u32) {
        let (a, b, c) = (self.get::<u32>(inst.a), self.get::<u32>(inst.b), self.get::<u32>(inst.c));
        let out = map3(a, b, c, f);
        self.set(inst.d, &out, mask);
    }
}

/// Runs a generic method at the width of the instruction.
macro_rules! at_width {
    ($self:ident, $width:expr, $method:ident($($arg:expr),*)) => {
        match $width {
            crate::program::Width::W16 => $self.$method::<u16>($($arg),*),
            crate::program::Width::W32 => $self.$method::<u32>($($arg),*),
            crate::program::Width::W64 => $self.$method::<u64>($($arg),*),
        }
    };
}
pub(super) use at_width;
