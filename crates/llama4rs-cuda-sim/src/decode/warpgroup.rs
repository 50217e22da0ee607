//! Instructions of a warpgroup.

use super::operands::Opcode;
use super::{Decoded, Decoder};
use crate::program::{Half, Inst, Kernel, Op, Slot, SlotKind, Warpgroup, Width};
use crate::ptx::Operand;

impl Decoder<'_> {
    /// Decodes the instruction if it is one of these.
    pub(super) fn warpgroup(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        if op.base != "wgmma" {
            return Ok(false);
        }
        if !op.take("sync") || !op.take("aligned") {
            return Ok(false);
        }
        if op.take("mma_async") {
            return self.products(op, o);
        }
        let plain = if op.take("fence") {
            Warpgroup::Fence
        } else if op.take("commit_group") {
            Warpgroup::Commit
        } else if op.take("wait_group") {
            let [Operand::Int(pending @ 0..=7)] = o else { return Ok(false) };
            Warpgroup::Wait(*pending as u32)
        } else {
            return Ok(false);
        };
        let none = Slot::NONE;
        self.emit(Op::Warpgroup(plain), none, none, none, none);
        Ok(true)
    }

    /// `d, a, b-desc, scale-d, imm-scale-a, imm-scale-b, imm-trans-b`, A in registers.
    fn products(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        self.arity(o, 7, 7)?;
        let half = match op.mods[..] {
            [_, "f32", "bf16", "bf16"] => Half::Bf16,
            [_, "f32", "f16", "f16"] => Half::F16,
            _ => return Ok(false),
        };
        let shape = op.mods[0].strip_prefix("m64n").and_then(|rest| rest.strip_suffix("k16"));
        let Some(columns) = shape.and_then(|n| n.parse::<u16>().ok()) else { return Ok(false) };
        if columns % 8 != 0 || !(8..=256).contains(&columns) {
            return self.fail(format!("{columns} columns are not a multiple of 8 up to 256"));
        }
        if !matches!(o[4..], [Operand::Int(1), Operand::Int(1), Operand::Int(0)]) {
            return self.fail("negated or transposed operands are not supported");
        }
        let (sums, fragments) = (Self::elements(&o[0]).len(), Self::elements(&o[1]).len());
        if sums != usize::from(columns) / 2 || fragments != 4 {
            return self.fail(format!("{sums} and {fragments} registers do not fit the shape"));
        }
        let (d, e) = (self.targets(&o[0], Width::W32)?, self.sources(&o[0], Width::W32)?);
        let (a, b) = (self.sources(&o[1], Width::W32)?, self.source(&o[2], Width::W64)?);
        let (c, negated) = self.predicate(&o[3])?;
        if negated {
            return self.fail("a negated `scale-d` is not supported");
        }
        self.note_products();
        op.mods.clear();
        self.emit5(Op::Warpgroup(Warpgroup::Product(half, columns)), d, a, b, c, e);
        Ok(true)
    }

    /// Products read shared memory in units of 16 bytes.
    fn note_products(&mut self) {
        let grain = &mut self.kernel.grain;
        *grain = if *grain == 0 { 16 } else { (*grain).min(16) };
    }
}

/// Calls `f` with the 32-bit registers of sums and fragments of an instruction, if it is a product.
pub fn product_registers(kernel: &Kernel, inst: &Inst, mut f: impl FnMut(usize)) {
    if let Op::Warpgroup(Warpgroup::Product(..)) = inst.op {
        kernel.lists[inst.d.range()].iter().for_each(|slot| f(slot.index()));
        let fragments = kernel.lists[inst.a.range()].iter();
        fragments.filter(|slot| !slot.is_constant()).for_each(|slot| f(slot.index()));
    }
}

/// Which instructions touch registers of products; empty without products.
pub fn watched(kernel: &Kernel) -> Vec<bool> {
    let mut registers = vec![false; kernel.registers[Width::W32 as usize]];
    let mut any = false;
    for inst in &kernel.code {
        product_registers(kernel, inst, |register| {
            registers[register] = true;
            any = true;
        });
    }
    if !any {
        return Vec::new();
    }
    let touches = |slot: Slot| -> bool {
        let one =
            |slot: Slot| slot.kind() == SlotKind::Register(Width::W32) && registers[slot.index()];
        match slot.kind() {
            SlotKind::List => kernel.lists[slot.range()].iter().any(|&slot| one(slot)),
            _ => one(slot),
        }
    };
    let code = kernel.code.iter();
    code.map(|inst| {
        let warpgroup = matches!(inst.op, Op::Warpgroup(_));
        !warpgroup && [inst.d, inst.a, inst.b, inst.c, inst.e].into_iter().any(touches)
    })
    .collect()
}
