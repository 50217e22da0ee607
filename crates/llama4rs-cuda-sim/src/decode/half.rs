//! Instructions on f16 and bf16, single or in pairs.

use super::arithmetic::float_one;
use super::operands::Opcode;
use super::{Decoded, Decoder};
use crate::program::{Float1, Float2, Half, Op, Round, Slot, Width};
use crate::ptx::Operand;

/// The type of that name, and whether it is a pair.
pub(super) fn half_type(name: &str) -> Option<(Half, bool)> {
    match name {
        "f16" => Some((Half::F16, false)),
        "f16x2" => Some((Half::F16, true)),
        "bf16" => Some((Half::Bf16, false)),
        "bf16x2" => Some((Half::Bf16, true)),
        _ => None,
    }
}

fn half_width(pair: bool) -> Width {
    if pair {
        Width::W32
    } else {
        Width::W16
    }
}

impl Decoder<'_> {
    pub(super) fn half_two(
        &mut self,
        op: &mut Opcode,
        o: &[Operand],
        half: Half,
        pair: bool,
    ) -> Decoded<bool> {
        let mode = op.float_mode();
        let nan = op.take("NaN");
        let f = match op.base {
            "add" => Float2::Add,
            "sub" => Float2::Sub,
            "mul" => Float2::Mul,
            "min" if nan => Float2::MinNan,
            "max" if nan => Float2::MaxNan,
            "min" => Float2::Min,
            "max" => Float2::Max,
            _ => return Ok(false),
        };
        if mode.round != Round::Nearest {
            return Ok(false);
        }
        let width = half_width(pair);
        let (a, b) = (self.source(&o[1], width)?, self.source(&o[2], width)?);
        let d = self.target(&o[0], width)?;
        self.emit(Op::Half2 { f, half, pair, mode }, d, a, b, Slot::NONE);
        Ok(true)
    }

    pub(super) fn half_one(
        &mut self,
        op: &mut Opcode,
        o: &[Operand],
        half: Half,
        pair: bool,
    ) -> Decoded<bool> {
        let f = match float_one(op.base) {
            Some(f @ (Float1::Neg | Float1::Abs | Float1::Ex2 | Float1::Tanh)) => f,
            _ => return Ok(false),
        };
        // Approximations are computed exactly; a bf16 result is hardly ever subnormal.
        op.take("approx");
        op.take("ftz");
        let width = half_width(pair);
        let (a, d) = (self.source(&o[1], width)?, self.target(&o[0], width)?);
        self.emit(Op::Half1 { f, half, pair }, d, a, Slot::NONE, Slot::NONE);
        Ok(true)
    }

    pub(super) fn half_fma(
        &mut self,
        op: &mut Opcode,
        o: &[Operand],
        half: Half,
        pair: bool,
    ) -> Decoded<bool> {
        let mode = op.float_mode();
        if op.base != "fma" || mode.round != Round::Nearest {
            return Ok(false);
        }
        let width = half_width(pair);
        let a = self.source(&o[1], width)?;
        let (b, c) = (self.source(&o[2], width)?, self.source(&o[3], width)?);
        let d = self.target(&o[0], width)?;
        self.emit(Op::HalfFma { half, pair, mode }, d, a, b, c);
        Ok(true)
    }
}
