//! Moves, conversions, comparisons and everything that touches memory.

use super::operands::{integer, scalar, width, Opcode};
use super::{Decoded, Decoder};
use crate::program::{
    Access, Atomic, Compare, Conversion, Logic, Op, Slot, SlotKind, Target, Type, Width,
};
use crate::ptx::{Operand, Space};

impl Decoder<'_> {
    /// Decodes the instruction if it is one of these.
    pub(super) fn data(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        match op.base {
            "mov" => self.mov(op, o),
            "cvt" => self.cvt(op, o),
            "cvta" => self.cvta(op, o),
            "isspacep" => {
                self.arity(o, 2, 2)?;
                let Some(target) = state_space(op.last()) else { return Ok(false) };
                let (a, d) = (self.source(&o[1], Width::W64)?, self.predicate_target(&o[0])?);
                self.emit(Op::IsSpace(target), d, a, Slot::NONE, Slot::NONE);
                Ok(true)
            }
            "setp" => self.setp(op, o),
            "set" => self.set(op, o),
            "selp" => {
                self.arity(o, 4, 4)?;
                let Some(width) = scalar(op.last()).map(width) else { return Ok(false) };
                let (a, b) = (self.source(&o[1], width)?, self.source(&o[2], width)?);
                let (c, negated) = self.predicate(&o[3])?;
                let d = self.target(&o[0], width)?;
                self.emit(Op::Selp { width, negated }, d, a, b, c);
                Ok(true)
            }
            "slct" => {
                self.arity(o, 4, 4)?;
                let by = op.last();
                op.take("ftz");
                let Some(width) = scalar(op.last()).map(width) else { return Ok(false) };
                let (a, b) = (self.source(&o[1], width)?, self.source(&o[2], width)?);
                let (c, d) = (self.source(&o[3], Width::W32)?, self.target(&o[0], width)?);
                self.emit(Op::Slct { width, float: by == "f32" }, d, a, b, c);
                Ok(matches!(by, "f32" | "s32"))
            }
            "ld" | "ldu" => self.load(op, o),
            "st" => self.store(op, o),
            "atom" => self.atomic(op, o, false),
            "red" => self.atomic(op, o, true),
            "cp" => self.cp_async(op, o),
            // Hints about caches change nothing here.
            "prefetch" | "prefetchu" | "discard" | "applypriority" => {
                op.mods.clear();
                Ok(true)
            }
            "createpolicy" => {
                op.mods.clear();
                let (zero, d) = (self.constant(Width::W64, 0), self.target(&o[0], Width::W64)?);
                self.emit(Op::Move(Width::W64), d, zero, Slot::NONE, Slot::NONE);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn mov(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 2, 2)?;
        let kind = op.last();
        if kind == "pred" {
            let ((a, negated), d) = (self.predicate(&o[1])?, self.predicate_target(&o[0])?);
            let op = if negated { Op::PredicateNot } else { Op::PredicateMove };
            self.emit(op, d, a, Slot::NONE, Slot::NONE);
            return Ok(true);
        }
        let Some(wide) = scalar(kind).map(width) else { return Ok(false) };
        let part = |n: usize| match (wide, n) {
            (Width::W32, 2) | (Width::W64, 4) => Some(Width::W16),
            (Width::W64, 2) => Some(Width::W32),
            _ => None,
        };
        match (&o[0], &o[1]) {
            (Operand::Vector(parts), _) => {
                let Some(to) = part(parts.len()) else { return Ok(false) };
                let a = self.source(&o[1], wide)?;
                let d = self.targets(&o[0], to)?;
                self.emit(Op::Unpack { to, from: wide }, d, a, Slot::NONE, Slot::NONE);
            }
            (_, Operand::Vector(parts)) => {
                let Some(from) = part(parts.len()) else { return Ok(false) };
                let a = self.sources(&o[1], from)?;
                let d = self.target(&o[0], wide)?;
                self.emit(Op::Pack { to: wide, from }, d, a, Slot::NONE, Slot::NONE);
            }
            _ => {
                let (a, d) = (self.source(&o[1], wide)?, self.target(&o[0], wide)?);
                self.emit(Op::Move(wide), d, a, Slot::NONE, Slot::NONE);
            }
        }
        Ok(true)
    }

    fn cvt(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 2, 3)?;
        let (from, to) = (op.last(), op.last());
        let whole = [("rni", "rn"), ("rzi", "rz"), ("rmi", "rm"), ("rpi", "rp")];
        let whole = whole.iter().find(|(name, _)| op.take(name));
        if let Some((_, round)) = whole {
            op.mods.push(round);
        }
        let rna = op.take("rna");
        let finite = op.take("satfinite");
        let mode = op.float_mode();
        if let (Some((half, true)), "f32") = (super::half::half_type(to), from) {
            self.arity(o, 3, 3)?;
            let (a, b) = (self.source(&o[1], Width::W32)?, self.source(&o[2], Width::W32)?);
            let d = self.target(&o[0], Width::W32)?;
            self.emit(Op::ConvertPair(half, mode), d, a, b, Slot::NONE);
            return Ok(!finite && !rna);
        }
        if to == "tf32" && from == "f32" {
            let (a, d) = (self.source(&o[1], Width::W32)?, self.target(&o[0], Width::W32)?);
            let up = self.constant(Width::W32, 0x1000);
            let keep = self.constant(Width::W32, 0xffff_e000);
            self.emit(Op::Int2(crate::program::Int2::Add, Width::W32), d, a, up, Slot::NONE);
            self.emit(Op::Int2(crate::program::Int2::And, Width::W32), d, d, keep, Slot::NONE);
            return Ok(rna);
        }
        let (Some(from), Some(to)) = (scalar(from), scalar(to)) else { return Ok(false) };
        if rna || o.len() != 2 {
            return Ok(false);
        }
        let a = self.source_any(&o[1], width(from))?;
        let d = self.target_any(&o[0], width(to))?;
        let conversion = Conversion { to, from, mode, whole: whole.is_some(), finite };
        self.emit(Op::Convert(conversion), d, a, Slot::NONE, Slot::NONE);
        Ok(true)
    }

    fn cvta(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 2, 2)?;
        if op.last() != "u64" {
            return Ok(false);
        }
        let back = op.take("to");
        let space = op.last();
        let (a, d) = (self.source(&o[1], Width::W64)?, self.target(&o[0], Width::W64)?);
        let Some(target) = state_space(space) else { return Ok(false) };
        let op = match (target, back) {
            (Target::Global, _) => Op::Move(Width::W64),
            (target, true) => Op::FromGeneric(target),
            (target, false) => Op::ToGeneric(target),
        };
        self.emit(op, d, a, Slot::NONE, Slot::NONE);
        Ok(true)
    }

    fn setp(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 3, 4)?;
        let Some(kind) = scalar(op.last()) else { return Ok(false) };
        op.take("ftz");
        let logic = [("and", Logic::And), ("or", Logic::Or), ("xor", Logic::Xor)];
        let logic = op.take_any(&logic);
        let Some(compare) = compare(op, kind) else { return Ok(false) };
        let (a, b) = (self.source(&o[1], width(kind))?, self.source(&o[2], width(kind))?);
        let (c, negated) = match (logic, o.get(3)) {
            (Some(_), Some(p)) => self.predicate(p)?,
            (None, None) => (Slot::NONE, false),
            _ => return Ok(false),
        };
        let (d, other) = match &o[0] {
            Operand::Pair(p, q) => (self.predicate_target(p)?, self.predicate_target(q)?),
            p => (self.predicate_target(p)?, Slot::NONE),
        };
        self.emit(Op::Setp { compare, kind, logic, negated, other }, d, a, b, c);
        Ok(true)
    }

    fn set(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 3, 3)?;
        let (from, to) = (op.last(), op.last());
        op.take("ftz");
        let Some(kind) = scalar(from) else { return Ok(false) };
        let Some(compare) = compare(op, kind) else { return Ok(false) };
        let (a, b) = (self.source(&o[1], width(kind))?, self.source(&o[2], width(kind))?);
        let d = self.target(&o[0], Width::W32)?;
        self.emit(Op::Set { compare, kind, float: to == "f32" }, d, a, b, Slot::NONE);
        Ok(matches!(to, "u32" | "s32" | "f32"))
    }

    /// Crosses off cache operators, ordering and scope, which change nothing here.
    fn take_hints(op: &mut Opcode) -> bool {
        let hint = op.take("L2::cache_hint");
        op.mods.retain(|m| {
            !matches!(*m, "nc" | "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "volatile")
                && !matches!(*m, "weak" | "relaxed" | "acquire" | "release" | "acq_rel" | "mmio")
                && !matches!(*m, "cta" | "cluster" | "gpu" | "sys" | "noftz" | "level")
                && !m.starts_with("L1::")
                && !m.starts_with("L2::")
        });
        hint
    }

    /// The target of an access, with the base's own space if none is written.
    fn access_target(&self, op: &mut Opcode, base: Option<Space>) -> Option<Target> {
        let names = ["global", "const", "shared::cta", "shared", "local", "param::entry", "param"];
        let written = names.iter().find(|name| op.take(name));
        let target = match written {
            Some(name) => state_space(name)?,
            None => match base {
                Some(Space::Shared) => Target::Shared,
                Some(Space::Local) => Target::Local,
                Some(Space::Param) => Target::Param,
                _ => Target::Generic,
            },
        };
        // Parameters of functions live in local memory.
        let local = target == Target::Param && (!self.in_entry || base == Some(Space::Local));
        Some(if local { Target::Local } else { target })
    }

    fn note_grain(&mut self, target: Target, bytes: usize) {
        if matches!(target, Target::Shared | Target::Generic) {
            let grain = &mut self.kernel.grain;
            *grain = if *grain == 0 { bytes } else { (*grain).min(bytes) };
        }
    }

    fn access(&mut self, op: &mut Opcode, address: &Operand) -> Decoded<Option<(Slot, Access)>> {
        let Some(kind) = scalar(op.last()) else { return Ok(None) };
        Self::take_hints(op);
        let count = op.take_any(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        let (slot, offset, base) = self.address(address)?;
        let Some(target) = self.access_target(op, base) else { return Ok(None) };
        let bytes = kind.bytes() as u8;
        self.note_grain(target, usize::from(bytes * count));
        let signed = kind.signed();
        Ok(Some((slot, Access { target, bytes, count, signed, offset })))
    }

    fn load(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 2, 3)?;
        let Some((a, access)) = self.access(op, &o[1])? else { return Ok(false) };
        let elements = Self::elements(&o[0]);
        if elements.len() != usize::from(access.count) {
            return self.fail("the vector's length is wrong");
        }
        let mut slots = Vec::new();
        for element in elements {
            let slot = self.target_any(element, least_width(access.bytes))?;
            self.check_holds(slot, access.bytes)?;
            slots.push(slot);
        }
        let d = self.list(&slots);
        self.emit(Op::Load(access), d, a, Slot::NONE, Slot::NONE);
        Ok(true)
    }

    fn store(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 2, 3)?;
        let Some((a, access)) = self.access(op, &o[0])? else { return Ok(false) };
        let elements = Self::elements(&o[1]);
        if elements.len() != usize::from(access.count) || access.target == Target::Param {
            return Ok(false);
        }
        let mut slots = Vec::new();
        for element in elements {
            let slot = self.source_any(element, least_width(access.bytes))?;
            self.check_holds(slot, access.bytes)?;
            slots.push(slot);
        }
        let b = self.list(&slots);
        self.emit(Op::Store(access), Slot::NONE, a, b, Slot::NONE);
        Ok(true)
    }

    fn check_holds(&self, slot: Slot, bytes: u8) -> Decoded<()> {
        match slot.kind() {
            SlotKind::Register(w) | SlotKind::Constant(w) if w.bytes() >= usize::from(bytes) => {
                Ok(())
            }
            kind => self.fail(format!("a {kind:?} does not hold {bytes} bytes")),
        }
    }

    fn atomic(&mut self, op: &mut Opcode, o: &[Operand], reduce: bool) -> Decoded<bool> {
        let first = usize::from(!reduce);
        self.arity(o, first + 2, first + 3)?;
        let kind = op.last();
        Self::take_hints(op);
        let names = ["add", "and", "or", "xor", "exch", "cas", "inc", "dec", "min", "max"];
        let Some(name) = names.iter().find(|n| op.take(n)) else { return Ok(false) };
        let (op_kind, width) = match (kind, super::half::half_type(kind)) {
            ("f32", _) if *name == "add" => (Atomic::AddF32, Width::W32),
            ("f64", _) if *name == "add" => (Atomic::AddF64, Width::W64),
            (_, Some((half, pair))) if *name == "add" => {
                (Atomic::AddHalf(half, pair), if pair { Width::W32 } else { Width::W16 })
            }
            _ => {
                let Some((width, signed)) = integer(kind) else { return Ok(false) };
                let atomic = match *name {
                    "add" => Atomic::Add,
                    "and" => Atomic::And,
                    "or" => Atomic::Or,
                    "xor" => Atomic::Xor,
                    "exch" => Atomic::Exch,
                    "cas" => Atomic::Cas,
                    "inc" => Atomic::Inc,
                    "dec" => Atomic::Dec,
                    "min" if signed => Atomic::MinS,
                    "max" if signed => Atomic::MaxS,
                    "min" => Atomic::MinU,
                    _ => Atomic::MaxU,
                };
                (atomic, width)
            }
        };
        let (a, offset, base) = self.address(&o[first])?;
        let Some(target) = self.access_target(op, base) else { return Ok(false) };
        if !matches!(target, Target::Global | Target::Shared | Target::Generic) {
            return Ok(false);
        }
        let bytes = width.bytes() as u8;
        self.note_grain(target, usize::from(bytes));
        let access = Access { target, bytes, count: 1, signed: false, offset };
        let b = self.source(&o[first + 1], width)?;
        let c = match op_kind {
            Atomic::Cas => self.source(&o[first + 2], width)?,
            _ => Slot::NONE,
        };
        let d = if reduce { Slot::NONE } else { self.target(&o[0], width)? };
        self.emit(Op::Atomic { op: op_kind, access }, d, a, b, c);
        Ok(true)
    }

    fn cp_async(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        if !op.take("async") {
            return Ok(false);
        }
        let none = Slot::NONE;
        if op.take("commit_group") {
            self.emit(Op::CpAsyncCommit, none, none, none, none);
            return Ok(true);
        }
        if op.take("wait_all") {
            self.emit(Op::CpAsyncCommit, none, none, none, none);
            self.emit(Op::CpAsyncWait(0), none, none, none, none);
            return Ok(true);
        }
        if op.take("wait_group") {
            let [Operand::Int(n)] = o else { return Ok(false) };
            self.emit(Op::CpAsyncWait(*n as u32), none, none, none, none);
            return Ok(true);
        }
        self.arity(o, 3, 5)?;
        let hint = Self::take_hints(op);
        let shared = op.take("shared") || op.take("shared::cta");
        if !shared || !op.take("global") {
            return Ok(false);
        }
        let Operand::Int(bytes @ (4 | 8 | 16)) = o[2] else { return Ok(false) };
        let (d, to_offset, _) = self.address(&o[0])?;
        let (a, from_offset, _) = self.address(&o[1])?;
        // A fourth operand is the number of bytes to read, or a predicate to ignore the source.
        let extra = if hint { &o[3..o.len() - 1] } else { &o[3..] };
        let (mut b, mut c) = (none, none);
        match extra {
            [] => {}
            [Operand::Name(name)] if self.is_predicate(name) => c = self.predicate(&extra[0])?.0,
            [size] => b = self.source(size, Width::W32)?,
            _ => return Ok(false),
        }
        self.note_grain(Target::Shared, bytes as usize);
        let op = Op::CpAsync { bytes: bytes as u8, to_offset, from_offset };
        self.emit5(op, none, a, b, c, d);
        Ok(true)
    }
}

/// The target of a state space.
fn state_space(name: &str) -> Option<Target> {
    Some(match name {
        "global" | "const" => Target::Global,
        "shared" | "shared::cta" => Target::Shared,
        "local" => Target::Local,
        "param" | "param::entry" | "param::func" => Target::Param,
        _ => return None,
    })
}

fn least_width(bytes: u8) -> Width {
    match bytes {
        1 | 2 => Width::W16,
        4 => Width::W32,
        _ => Width::W64,
    }
}

fn compare(op: &mut Opcode, kind: Type) -> Option<Compare> {
    use Compare::*;
    op.take_any(&[
        ("eq", Eq),
        ("ne", Ne),
        ("lt", Lt),
        ("lo", Lt),
        ("le", Le),
        ("ls", Le),
        ("gt", Gt),
        ("hi", Gt),
        ("ge", Ge),
        ("hs", Ge),
        ("equ", Equ),
        ("neu", Neu),
        ("ltu", Ltu),
        ("leu", Leu),
        ("gtu", Gtu),
        ("geu", Geu),
        ("num", Num),
        ("nan", Nan),
    ])
    .filter(|c| kind.float() || matches!(c, Eq | Ne | Lt | Le | Gt | Ge))
}
