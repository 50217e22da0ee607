//! Instructions of a whole warp, and barriers.

use super::operands::{integer, Opcode};
use super::{Binding, Decoded, Decoder};
use crate::program::{Barrier, Half, Int2, Mma, Op, Shuffle, Slot, SlotKind, Vote, Width};
use crate::ptx::Operand;

impl Decoder<'_> {
    /// Decodes the instruction if it is one of these.
    pub(super) fn warp(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        let none = Slot::NONE;
        match op.base {
            "shfl" => self.shuffle(op, o),
            "vote" => self.vote(op, o),
            "match" => self.matching(op, o),
            "redux" => self.redux(op, o),
            "activemask" => {
                self.arity(o, 1, 1)?;
                let d = self.target(&o[0], Width::W32)?;
                self.emit(Op::ActiveMask, d, none, none, none);
                Ok(op.last() == "b32")
            }
            "elect" => {
                self.arity(o, 2, 2)?;
                let Operand::Pair(lane, leader) = &o[0] else { return Ok(false) };
                let d = self.target_any(lane, Width::W32)?;
                let leader = self.predicate_target(leader)?;
                let a = self.source(&o[1], Width::W32)?;
                self.emit(Op::Elect { leader }, d, a, none, none);
                Ok(op.take("sync"))
            }
            "ldmatrix" | "stmatrix" => self.matrix(op, o),
            "movmatrix" => {
                self.arity(o, 2, 2)?;
                for name in ["sync", "aligned", "m8n8", "trans", "b16"] {
                    if !op.take(name) {
                        return Ok(false);
                    }
                }
                let (a, d) = (self.source(&o[1], Width::W32)?, self.target(&o[0], Width::W32)?);
                self.emit(Op::Movmatrix, d, a, none, none);
                Ok(true)
            }
            "mma" => self.mma(op, o),
            "bar" | "barrier" => self.barrier(op, o),
            _ => Ok(false),
        }
    }

    pub(super) fn is_predicate(&self, name: &str) -> bool {
        matches!(self.find(name), Some(Binding::Register(s)) if s.kind() == SlotKind::Predicate)
    }

    fn shuffle(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 5, 5)?;
        if !op.take("sync") || op.last() != "b32" {
            return Ok(false);
        }
        let kinds = [
            ("up", Shuffle::Up),
            ("down", Shuffle::Down),
            ("bfly", Shuffle::Bfly),
            ("idx", Shuffle::Idx),
        ];
        let Some(kind) = op.take_any(&kinds) else { return Ok(false) };
        let (d, valid) = match &o[0] {
            Operand::Pair(d, p) => (self.target(d, Width::W32)?, self.predicate_target(p)?),
            d => (self.target(d, Width::W32)?, Slot::NONE),
        };
        let (a, b) = (self.source(&o[1], Width::W32)?, self.source(&o[2], Width::W32)?);
        let (c, e) = (self.source(&o[3], Width::W32)?, self.source(&o[4], Width::W32)?);
        self.emit5(Op::Shuffle { kind, valid }, d, a, b, c, e);
        Ok(true)
    }

    fn vote(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 3, 3)?;
        let kinds =
            [("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uni), ("ballot", Vote::Ballot)];
        let (true, Some(kind)) = (op.take("sync"), op.take_any(&kinds)) else { return Ok(false) };
        let (a, negated) = self.predicate(&o[1])?;
        let b = self.source(&o[2], Width::W32)?;
        let d = match kind {
            Vote::Ballot => self.target(&o[0], Width::W32)?,
            _ => self.predicate_target(&o[0])?,
        };
        self.emit(Op::Vote { kind, negated }, d, a, b, Slot::NONE);
        Ok(op.last() == if kind == Vote::Ballot { "b32" } else { "pred" })
    }

    fn matching(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 3, 3)?;
        let Some((width, _)) = integer(op.last()) else { return Ok(false) };
        let any = op.take("any");
        if !op.take("sync") || !any && !op.take("all") {
            return Ok(false);
        }
        let (a, b) = (self.source(&o[1], width)?, self.source(&o[2], Width::W32)?);
        let (d, same) = match &o[0] {
            Operand::Pair(d, p) => (self.target(d, Width::W32)?, self.predicate_target(p)?),
            d => (self.target(d, Width::W32)?, Slot::NONE),
        };
        let op = if any { Op::MatchAny(width) } else { Op::MatchAll { width, same } };
        self.emit(op, d, a, b, Slot::NONE);
        Ok(true)
    }

    fn redux(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 3, 3)?;
        let signed = match op.last() {
            "s32" => true,
            "u32" | "b32" => false,
            _ => return Ok(false),
        };
        let kinds = [
            ("add", Int2::Add),
            ("and", Int2::And),
            ("or", Int2::Or),
            ("xor", Int2::Xor),
            ("min", if signed { Int2::MinS } else { Int2::MinU }),
            ("max", if signed { Int2::MaxS } else { Int2::MaxU }),
        ];
        let (true, Some(f)) = (op.take("sync"), op.take_any(&kinds)) else { return Ok(false) };
        let (a, b) = (self.source(&o[1], Width::W32)?, self.source(&o[2], Width::W32)?);
        let d = self.target(&o[0], Width::W32)?;
        self.emit(Op::Redux { op: f }, d, a, b, Slot::NONE);
        Ok(true)
    }

    fn matrix(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 2, 2)?;
        let transposed = op.take("trans");
        let Some(count) = op.take_any(&[("x1", 1u8), ("x2", 2), ("x4", 4)]) else {
            return Ok(false);
        };
        for name in ["sync", "aligned", "m8n8", "b16"] {
            if !op.take(name) {
                return Ok(false);
            }
        }
        if !op.take("shared") && !op.take("shared::cta") {
            return Ok(false);
        }
        let load = op.base == "ldmatrix";
        let (address, registers) = if load { (&o[1], &o[0]) } else { (&o[0], &o[1]) };
        let (a, offset, _) = self.address(address)?;
        if Self::elements(registers).len() != usize::from(count) {
            return self.fail("the number of registers is not the number of matrices");
        }
        let grain = if load { 16 } else { 4 };
        self.kernel.grain =
            if self.kernel.grain == 0 { grain } else { self.kernel.grain.min(grain) };
        if load {
            let d = self.targets(registers, Width::W32)?;
            self.emit(Op::Ldmatrix { count, transposed, offset }, d, a, Slot::NONE, Slot::NONE);
        } else {
            let b = self.sources(registers, Width::W32)?;
            let op = Op::Stmatrix { count, transposed, offset };
            self.emit(op, Slot::NONE, a, b, Slot::NONE);
        }
        Ok(true)
    }

    fn mma(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 4, 4)?;
        for name in ["sync", "aligned", "row", "col"] {
            if !op.take(name) {
                return Ok(false);
            }
        }
        let shape = op.take_any(&[("m16n8k8", 8u8), ("m16n8k16", 16), ("m16n8k32", 32)]);
        // A sum of bytes that clamps differs only where it overflows.
        let (Some(depth), false) = (shape, op.take("satfinite")) else { return Ok(false) };
        let types = std::mem::take(&mut op.mods);
        let mma = match (&types[..], depth) {
            (["f32", "bf16", "bf16", "f32"], 8 | 16) => Mma::Half(Half::Bf16, depth),
            (["f32", "f16", "f16", "f32"], 8 | 16) => Mma::Half(Half::F16, depth),
            (["f16", "f16", "f16", "f16"], 8 | 16) => Mma::F16(depth),
            (["s32", a @ ("s8" | "u8"), b @ ("s8" | "u8"), "s32"], 16 | 32) => {
                Mma::Bytes(depth, *a == "s8", *b == "s8")
            }
            _ => return Ok(false),
        };
        let bytes = match mma {
            Mma::Bytes(..) => 1,
            _ => 2,
        };
        let words = usize::from(depth) * bytes / 8;
        let sums = if matches!(mma, Mma::F16(_)) { 2 } else { 4 };
        let lengths: Vec<_> = o.iter().map(|v| Self::elements(v).len()).collect();
        if lengths != [sums, words, words / 2, sums] {
            return self.fail(format!("fragments of {lengths:?} registers do not fit the shape"));
        }
        let a = self.sources(&o[1], Width::W32)?;
        let (b, c) = (self.sources(&o[2], Width::W32)?, self.sources(&o[3], Width::W32)?);
        let d = self.targets(&o[0], Width::W32)?;
        self.emit(Op::Mma(mma), d, a, b, c);
        Ok(true)
    }

    fn barrier(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        if op.take("warp") {
            self.arity(o, 1, 1)?;
            let a = self.source(&o[0], Width::W32)?;
            self.emit(Op::WarpBarrier, Slot::NONE, a, Slot::NONE, Slot::NONE);
            return Ok(op.take("sync"));
        }
        op.take("cta");
        op.take("aligned");
        if op.take("red") {
            let kinds = [("and", Barrier::And), ("or", Barrier::Or), ("popc", Barrier::Popc)];
            let Some(kind) = op.take_any(&kinds) else { return Ok(false) };
            self.arity(o, 3, 4)?;
            op.mods.clear();
            let (c, negated) = self.predicate(&o[o.len() - 1])?;
            let a = self.source(&o[1], Width::W32)?;
            let b = self.barrier_count(o.get(2).filter(|_| o.len() == 4))?;
            let d = match kind {
                Barrier::Popc => self.target(&o[0], Width::W32)?,
                _ => self.predicate_target(&o[0])?,
            };
            self.emit(Op::Barrier { kind, negated }, d, a, b, c);
            return Ok(true);
        }
        let kind = match (op.take("sync"), op.take("arrive")) {
            (true, false) => Barrier::Sync,
            (false, true) => Barrier::Arrive,
            _ => return Ok(false),
        };
        self.arity(o, 1, 2)?;
        let a = self.source(&o[0], Width::W32)?;
        let b = self.barrier_count(o.get(1))?;
        self.emit(Op::Barrier { kind, negated: false }, Slot::NONE, a, b, Slot::NONE);
        Ok(true)
    }

    fn barrier_count(&mut self, operand: Option<&Operand>) -> Decoded<Slot> {
        let Some(operand) = operand else { return Ok(Slot::NONE) };
        self.kernel.partial_barriers = true;
        self.source(operand, Width::W32)
    }
}
