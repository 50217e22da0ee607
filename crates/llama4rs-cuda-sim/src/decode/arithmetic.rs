//! Integer, bit, single- and double-precision instructions.

use super::operands::{integer, Opcode};
use super::{Decoded, Decoder};
use crate::program::{Float1, Float2, FloatMode, Int1, Int2, Op, Round, Slot, SlotKind, Width};
use crate::ptx::Operand;

impl Decoder<'_> {
    /// Decodes the instruction if it is one of these.
    pub(super) fn arithmetic(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        match op.base {
            "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor"
            | "shl" | "shr" | "copysign" => self.two_operands(op, o),
            "neg" | "abs" | "not" | "cnot" | "popc" | "clz" | "brev" | "bfind" | "rcp" | "sqrt"
            | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => self.one_operand(op, o),
            "fma" | "mad" => self.multiply_add(op, o),
            "sad" | "bfe" | "bfi" | "lop3" | "prmt" | "shf" | "dp4a" | "dp2a" => self.bits(op, o),
            _ => Ok(false),
        }
    }

    fn two_operands(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 3, 3)?;
        let kind = op.last();
        if let Some((half, pair)) = super::half::half_type(kind) {
            return self.half_two(op, o, half, pair);
        }
        match kind {
            "pred" => return self.predicate_two(op, o),
            "f32" => return self.float_two(op, o, Width::W32),
            "f64" => return self.float_two(op, o, Width::W64),
            _ => {}
        }
        let Some((width, signed)) = integer(kind) else { return Ok(false) };
        let pick = |s, u| if signed { s } else { u };
        let base = op.base;
        let f = match base {
            "add" if op.take("sat") => Int2::AddSat,
            "sub" if op.take("sat") => Int2::SubSat,
            "add" => Int2::Add,
            "sub" => Int2::Sub,
            "mul" if op.take("wide") => {
                let to = match width {
                    Width::W16 => Width::W32,
                    Width::W32 => Width::W64,
                    Width::W64 => return Ok(false),
                };
                let (a, b) = (self.source(&o[1], width)?, self.source(&o[2], width)?);
                let d = self.target(&o[0], to)?;
                self.emit(Op::MulWide { signed, from: width }, d, a, b, Slot::NONE);
                return Ok(true);
            }
            "mul" if op.take("hi") => pick(Int2::MulHiS, Int2::MulHiU),
            "mul" if op.take("lo") => Int2::Mul,
            "div" => pick(Int2::DivS, Int2::DivU),
            "rem" => pick(Int2::RemS, Int2::RemU),
            "min" => pick(Int2::MinS, Int2::MinU),
            "max" => pick(Int2::MaxS, Int2::MaxU),
            "and" => Int2::And,
            "or" => Int2::Or,
            "xor" => Int2::Xor,
            "shl" => Int2::Shl,
            "shr" => pick(Int2::ShrS, Int2::ShrU),
            _ => return Ok(false),
        };
        let shift = matches!(f, Int2::Shl | Int2::ShrS | Int2::ShrU);
        let a = self.source(&o[1], width)?;
        let b = self.source(&o[2], if shift { Width::W32 } else { width })?;
        let d = self.target(&o[0], width)?;
        self.emit(Op::Int2(f, width), d, a, b, Slot::NONE);
        Ok(true)
    }

    fn float_two(&mut self, op: &mut Opcode, o: &[Operand], width: Width) -> Decoded<bool> {
        let mode = op.float_mode();
        let nan = op.take("NaN");
        let f = match op.base {
            "add" => Float2::Add,
            "sub" => Float2::Sub,
            "mul" => Float2::Mul,
            "div" => {
                // The approximate forms are computed exactly.
                let _ = op.take("approx") || op.take("full");
                Float2::Div
            }
            "min" if nan => Float2::MinNan,
            "max" if nan => Float2::MaxNan,
            "min" => Float2::Min,
            "max" => Float2::Max,
            "copysign" => Float2::CopySign,
            _ => return Ok(false),
        };
        let (a, b) = (self.source(&o[1], width)?, self.source(&o[2], width)?);
        let d = self.target(&o[0], width)?;
        if !self.supported_rounding(f, width, mode) {
            return Ok(false);
        }
        // copysign(a, b) is the magnitude of b with the sign of a.
        let (a, b) = if f == Float2::CopySign { (b, a) } else { (a, b) };
        self.emit(Op::Float2(f, width, mode), d, a, b, Slot::NONE);
        Ok(true)
    }

    fn supported_rounding(&self, f: Float2, width: Width, mode: FloatMode) -> bool {
        let directed = matches!(f, Float2::Add | Float2::Sub | Float2::Mul);
        mode.round == Round::Nearest || directed && width == Width::W32
    }

    fn predicate_two(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        use crate::program::Logic::*;
        let logic = match op.base {
            "and" => And,
            "or" => Or,
            "xor" => Xor,
            _ => return Ok(false),
        };
        let (a, b) = (self.predicate(&o[1])?, self.predicate(&o[2])?);
        if a.1 || b.1 {
            return Ok(false);
        }
        let d = self.predicate_target(&o[0])?;
        self.emit(Op::PredicateLogic(logic), d, a.0, b.0, Slot::NONE);
        Ok(true)
    }

    fn one_operand(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 2, 2)?;
        let kind = op.last();
        if let Some((half, pair)) = super::half::half_type(kind) {
            return self.half_one(op, o, half, pair);
        }
        if kind == "pred" {
            if op.base != "not" {
                return Ok(false);
            }
            let (a, d) = (self.predicate(&o[1])?, self.predicate_target(&o[0])?);
            let op = if a.1 { Op::PredicateMove } else { Op::PredicateNot };
            self.emit(op, d, a.0, Slot::NONE, Slot::NONE);
            return Ok(true);
        }
        if kind == "f32" || kind == "f64" {
            let width = if kind == "f32" { Width::W32 } else { Width::W64 };
            let Some(f) = float_one(op.base) else { return Ok(false) };
            // Approximations are computed exactly.
            op.take("approx");
            let mode = op.float_mode();
            if mode.round != Round::Nearest {
                return Ok(false);
            }
            let (a, d) = (self.source(&o[1], width)?, self.target(&o[0], width)?);
            self.emit(Op::Float1(f, width, mode), d, a, Slot::NONE, Slot::NONE);
            return Ok(true);
        }
        let Some((width, signed)) = integer(kind) else { return Ok(false) };
        let amount = op.take("shiftamt");
        let (f, narrow) = match op.base {
            "neg" => (Int1::Neg, false),
            "abs" => (Int1::Abs, false),
            "not" => (Int1::Not, false),
            "cnot" => (Int1::Cnot, false),
            "brev" => (Int1::Brev, false),
            "popc" => (Int1::Popc, true),
            "clz" => (Int1::Clz, true),
            "bfind" => match (signed, amount) {
                (false, false) => (Int1::FindU, true),
                (false, true) => (Int1::ShiftU, true),
                (true, false) => (Int1::FindS, true),
                (true, true) => (Int1::ShiftS, true),
            },
            _ => return Ok(false),
        };
        if amount && op.base != "bfind" {
            return Ok(false);
        }
        let a = self.source(&o[1], width)?;
        let d = self.target(&o[0], if narrow { Width::W32 } else { width })?;
        self.emit(Op::Int1(f, width), d, a, Slot::NONE, Slot::NONE);
        Ok(true)
    }

    fn multiply_add(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 4, 4)?;
        let kind = op.last();
        if let Some((half, pair)) = super::half::half_type(kind) {
            return self.half_fma(op, o, half, pair);
        }
        if kind == "f32" || kind == "f64" {
            let width = if kind == "f32" { Width::W32 } else { Width::W64 };
            let mode = op.float_mode();
            if width == Width::W64 && mode.round != Round::Nearest {
                return Ok(false);
            }
            let a = self.source(&o[1], width)?;
            let (b, c) = (self.source(&o[2], width)?, self.source(&o[3], width)?);
            let d = self.target(&o[0], width)?;
            self.emit(Op::Fma(width, mode), d, a, b, c);
            return Ok(true);
        }
        let Some((width, signed)) = integer(kind) else { return Ok(false) };
        let (a, b) = (self.source(&o[1], width)?, self.source(&o[2], width)?);
        let (op, result) = if op.take("lo") {
            (Op::MadLo(width), width)
        } else if op.take("hi") {
            (Op::MadHi { signed, width }, width)
        } else if op.take("wide") && width != Width::W64 {
            let to = if width == Width::W16 { Width::W32 } else { Width::W64 };
            (Op::MadWide { signed, from: width }, to)
        } else {
            return Ok(false);
        };
        let (c, d) = (self.source(&o[3], result)?, self.target(&o[0], result)?);
        self.emit(op, d, a, b, c);
        Ok(true)
    }

    fn bits(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 4, 5)?;
        match op.base {
            "lop3" => {
                let Some(Operand::Int(table)) = o.get(4) else { return Ok(false) };
                if op.last() != "b32" {
                    return Ok(false);
                }
                self.bits_emit(Op::Lop3(*table as u8), o, [Width::W32; 3])
            }
            "prmt" => {
                let modes = ["", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];
                let mode = modes.iter().skip(1).position(|m| op.take(m)).map_or(0, |i| i + 1);
                if op.last() != "b32" {
                    return Ok(false);
                }
                self.bits_emit(Op::Prmt(mode as u8), o, [Width::W32; 3])
            }
            "shf" => {
                let left = op.take("l");
                let wrap = op.take("wrap");
                if op.last() != "b32" || !left && !op.take("r") || !wrap && !op.take("clamp") {
                    return Ok(false);
                }
                self.bits_emit(Op::Shf { left, wrap }, o, [Width::W32; 3])
            }
            "dp4a" | "dp2a" => {
                let (b, a) = (op.last(), op.last());
                if !matches!((a, b), ("u32" | "s32", "u32" | "s32")) {
                    return Ok(false);
                }
                let (a_signed, b_signed) = (a == "s32", b == "s32");
                let f = if op.base == "dp4a" {
                    Op::Dp4a { a_signed, b_signed }
                } else {
                    let high = op.take("hi");
                    if !high && !op.take("lo") {
                        return Ok(false);
                    }
                    Op::Dp2a { a_signed, b_signed, high }
                };
                self.bits_emit(f, o, [Width::W32; 3])
            }
            _ => {
                let Some((width, signed)) = integer(op.last()) else { return Ok(false) };
                match op.base {
                    "sad" => self.bits_emit(Op::Sad { signed, width }, o, [width; 3]),
                    "bfe" => {
                        let widths = [width, Width::W32, Width::W32];
                        self.bits_emit(Op::Bfe { signed, width }, o, widths)
                    }
                    _ => {
                        self.arity(o, 5, 5)?;
                        let d = self.target(&o[0], width)?;
                        let (a, b) = (self.source(&o[1], width)?, self.source(&o[2], width)?);
                        let c = self.source(&o[3], Width::W32)?;
                        let e = self.source(&o[4], Width::W32)?;
                        self.emit5(Op::Bfi(width), d, a, b, c, e);
                        Ok(true)
                    }
                }
            }
        }
    }

    fn bits_emit(&mut self, op: Op, o: &[Operand], widths: [Width; 3]) -> Decoded<bool> {
        let a = self.source(&o[1], widths[0])?;
        let (b, c) = (self.source(&o[2], widths[1])?, self.source(&o[3], widths[2])?);
        let d = self.target(&o[0], widths[0])?;
        debug_assert!(matches!(d.kind(), SlotKind::Register(_)));
        self.emit(op, d, a, b, c);
        Ok(true)
    }
}

/// The operation of that name.
pub(super) fn float_one(base: &str) -> Option<Float1> {
    Some(match base {
        "neg" => Float1::Neg,
        "abs" => Float1::Abs,
        "rcp" => Float1::Rcp,
        "sqrt" => Float1::Sqrt,
        "rsqrt" => Float1::Rsqrt,
        "ex2" => Float1::Ex2,
        "lg2" => Float1::Lg2,
        "sin" => Float1::Sin,
        "cos" => Float1::Cos,
        "tanh" => Float1::Tanh,
        _ => return None,
    })
}
