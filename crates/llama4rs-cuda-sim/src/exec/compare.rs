//! Comparisons.

use super::half::widen;
use super::lanes::{mask2, Lane, Lanes};
use super::warp::Exec;
use crate::program::{Compare, Half, Inst, Logic, Slot, Type, LANES};

/// Whether `x compare y` for ordered or unordered operands.
#[inline(always)]
fn holds<T: PartialOrd>(compare: Compare, x: T, y: T, nan: bool) -> bool {
    match compare {
        Compare::Eq => x == y,
        Compare::Ne => x != y && !nan,
        Compare::Lt => x < y,
        Compare::Le => x <= y,
        Compare::Gt => x > y,
        Compare::Ge => x >= y,
        Compare::Equ => x == y || nan,
        Compare::Neu => x != y,
        Compare::Ltu => x < y || nan,
        Compare::Leu => x <= y || nan,
        Compare::Gtu => x > y || nan,
        Compare::Geu => x >= y || nan,
        Compare::Num => !nan,
        Compare::Nan => nan,
    }
}

#[inline(always)]
fn masks<T: Lane, V: PartialOrd>(
    compare: Compare,
    a: &Lanes<T>,
    b: &Lanes<T>,
    value: impl Fn(T) -> V + Copy,
    nan: impl Fn(&V) -> bool + Copy,
) -> u32 {
    macro_rules! arms {
        ($($c:ident)*) => {
            match compare {
                $(Compare::$c => mask2(a, b, |x, y| {
                    let (x, y) = (value(x), value(y));
                    let either = nan(&x) || nan(&y);
                    holds(Compare::$c, x, y, either)
                }),)*
            }
        };
    }
    arms!(Eq Ne Lt Le Gt Ge Equ Neu Ltu Leu Gtu Geu Num Nan)
}
impl Exec<'_, '_> {
    #[inline(always)]
    pub(super) fn compare(&self, compare: Compare, kind: Type, inst: &Inst) -> u32 {
        let (a, b) = (inst.a, inst.b);
        let whole = |_: &_| false;
        match kind {
            Type::U32 => {
                masks(compare, self.get::<u32>(a), self.get::<u32>(b), |x| x, |_: &u32| false)
            }
            Type::S32 => masks(
                compare,
                self.get::<u32>(a),
                self.get::<u32>(b),
                |x| x as i32,
                |_: &i32| false,
            ),
            Type::F32 => {
                masks(compare, self.get::<u32>(a), self.get::<u32>(b), f32::from_bits, |x: &f32| {
                    x.is_nan()
                })
            }
            Type::U64 => masks(compare, self.get::<u64>(a), self.get::<u64>(b), |x| x, whole),
            Type::S64 => masks(
                compare,
                self.get::<u64>(a),
                self.get::<u64>(b),
                |x| x as i64,
                |_: &i64| false,
            ),
            Type::F64 => {
                masks(compare, self.get::<u64>(a), self.get::<u64>(b), f64::from_bits, |x: &f64| {
                    x.is_nan()
                })
            }
            Type::S16 | Type::S8 => masks(
                compare,
                self.get::<u16>(a),
                self.get::<u16>(b),
                |x| x as i16,
                |_: &i16| false,
            ),
            Type::U16 | Type::U8 => {
                masks(compare, self.get::<u16>(a), self.get::<u16>(b), |x| x, |_: &u16| false)
            }
            Type::F16 | Type::Bf16 => {
                let half = if kind == Type::F16 { Half::F16 } else { Half::Bf16 };
                let value = |x| widen(half, x);
                let nan = |x: &f32| x.is_nan();
                masks(compare, self.get::<u16>(a), self.get::<u16>(b), value, nan)
            }
        }
    }

    #[inline(always)]
    pub(super) fn setp(
        &mut self,
        compare: Compare,
        kind: Type,
        logic: Option<Logic>,
        negated: bool,
        other: Slot,
        inst: &Inst,
        mask: u32,
    ) {
        let holds = self.compare(compare, kind, inst);
        let (mut p, mut q) = (holds, !holds);
        if let Some(logic) = logic {
            let with = self.predicate(inst.c, negated);
            let combine = |x: u32| match logic {
                Logic::And => x & with,
                Logic::Or => x | with,
                Logic::Xor => x ^ with,
            };
            (p, q) = (combine(p), combine(q));
        }
        self.set_predicate(inst.d, p, mask);
        self.set_predicate(other, q, mask);
    }

    pub(super) fn set_compare(
        &mut self,
        compare: Compare,
        kind: Type,
        float: bool,
        inst: &Inst,
        mask: u32,
    ) {
        let holds = self.compare(compare, kind, inst);
        let yes = if float { 1f32.to_bits() } else { u32::MAX };
        let mut out = [0u32; LANES];
        for l in 0..LANES {
            out[l] = if holds >> l & 1 == 1 { yes } else { 0 };
        }
        self.set(inst.d, &out, mask);
    }
}
