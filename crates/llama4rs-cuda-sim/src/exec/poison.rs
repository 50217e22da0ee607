//! Registers that hold bytes which nobody wrote.
//!
//! Compilers move loads ahead of the branch that decides whether they are needed. So
//! reading such bytes is no error yet: it marks the register, moves and selections carry
//! the mark on, and any other use of a marked register is the error, at the load.

use super::warp::Exec;
use crate::program::{Inst, Op, Slot, SlotKind};
use crate::report::{Fault, FaultKind};

/// Lanes of a register that hold unwritten bytes, and the load that put them there.
#[derive(Clone, Copy)]
pub struct Mark {
    slot: Slot,
    lanes: u32,
    origin: Origin,
}

/// A load of unwritten bytes.
#[derive(Clone, Copy)]
pub struct Origin {
    pc: u32,
    /// Address in device memory, or offset in shared memory.
    at: u64,
    shared: bool,
    lane: usize,
}

impl Exec<'_, '_> {
    /// Marks the lanes of a load's registers.
    #[cold]
    pub(super) fn mark(&mut self, registers: Slot, lanes: u32, at: u64, shared: bool) {
        let origin = Origin { pc: self.pc, at, shared, lane: lanes.trailing_zeros() as usize };
        for i in registers.range() {
            let slot = self.env.kernel.lists[i];
            self.w.marks.push(Mark { slot, lanes, origin });
        }
    }

    /// What an instruction does to marks; fails if it uses a marked lane.
    #[cold]
    pub(super) fn follow_marks(&mut self, inst: &Inst, mask: u32) -> Result<(), Box<Fault>> {
        let chosen = match inst.op {
            Op::Selp { negated, .. } => self.predicate(inst.c, negated),
            _ => u32::MAX,
        };
        let carries = matches!(inst.op, Op::Move(_) | Op::Selp { .. });
        let mut carried = Vec::new();
        for mark in &self.w.marks {
            for (source, lanes) in [(inst.a, chosen), (inst.b, !chosen), (inst.c, 0), (inst.e, 0)] {
                let lanes = if carries { lanes } else { u32::MAX } & mark.lanes & mask;
                if lanes == 0 || !self.names(source, mark.slot) {
                    continue;
                }
                if !carries {
                    return Err(self.unwritten(mark.origin));
                }
                carried.push(Mark { slot: inst.d, lanes, origin: mark.origin });
            }
        }
        let mut marks = std::mem::take(&mut self.w.marks);
        for mark in &mut marks {
            if self.names(inst.d, mark.slot) {
                mark.lanes &= !mask;
            }
        }
        marks.retain(|m| m.lanes != 0);
        marks.extend(carried);
        self.w.marks = marks;
        Ok(())
    }

    fn names(&self, slot: Slot, register: Slot) -> bool {
        match slot.kind() {
            SlotKind::List => self.env.kernel.lists[slot.range()].contains(&register),
            _ => slot == register,
        }
    }

    /// The error of a load, once its value is used.
    fn unwritten(&self, origin: Origin) -> Box<Fault> {
        let line = self.env.kernel.code[origin.pc as usize].line;
        let text = self.env.kernel.line(line);
        let place = if origin.shared {
            format!("offset {} of shared memory", origin.at)
        } else {
            format!("{:#x}, {}", origin.at, self.env.memory.describe(origin.at))
        };
        let what =
            format!("uses what PTX line {line} (`{text}`) read at {place}, that nobody wrote");
        Fault::new(FaultKind::Uninitialised, Some(origin.lane), what)
    }
}
