//! Instructions in which the lanes of a warp work together.

use super::integer::int2;
use super::lanes::lanes_of;
use super::warp::{Arrival, Exec, Flow};
use crate::program::{Barrier, Inst, Int2, Shuffle, Slot, Vote, LANES};
use crate::report::{Fault, FaultKind};

type Outcome<T> = Result<T, Box<Fault>>;

impl Exec<'_, '_> {
    #[inline(always)]
    pub(super) fn shuffle(
        &mut self,
        kind: Shuffle,
        valid: Slot,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<Flow> {
        if self.members(inst.e, mask)?.is_none() {
            return Ok(Flow::Block);
        }
        let a = *self.get::<u32>(inst.a);
        let (b, c, masks) =
            (self.get::<u32>(inst.b), self.get::<u32>(inst.c), self.get::<u32>(inst.e));
        // Nearly always: all lanes, one distance, no segments.
        let by = b[0] as usize & 31;
        let same = (0..LANES).fold(true, |s, l| s & (b[l] == b[0]) & (c[l] == 31));
        if kind == Shuffle::Bfly && mask == u32::MAX && same && masks[0] == mask {
            let out = std::array::from_fn(|l| a[l ^ by]);
            self.set(inst.d, &out, mask);
            self.set_predicate(valid, mask, mask);
            return Ok(Flow::Next);
        }
        let (mut out, mut found) = ([0; LANES], 0);
        for l in lanes_of(mask) {
            let (by, clamp, segment) = (b[l] & 31, c[l] & 31, c[l] >> 8 & 31);
            let lane = l as u32;
            let most = (lane & segment) | (clamp & !segment);
            let least = lane & segment;
            let (from, inside) = match kind {
                Shuffle::Up => (lane.wrapping_sub(by), (lane as i32 - by as i32) >= most as i32),
                Shuffle::Down => (lane + by, lane + by <= most),
                Shuffle::Bfly => (lane ^ by, (lane ^ by) <= most),
                Shuffle::Idx => {
                    let from = least | (by & !segment);
                    (from, from <= most)
                }
            };
            let from = if inside { from as usize } else { l };
            if masks[l] >> from & 1 == 0 || mask >> from & 1 == 0 {
                let what =
                    format!("reads lane {from}, which is not in the mask {:#010x}", masks[l]);
                return Err(Fault::new(FaultKind::Mask, Some(l), what));
            }
            out[l] = a[from];
            found |= u32::from(inside) << l;
        }
        self.set(inst.d, &out, mask);
        self.set_predicate(valid, found, mask);
        Ok(Flow::Next)
    }

    pub(super) fn vote(
        &mut self,
        kind: Vote,
        negated: bool,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<Flow> {
        if self.members(inst.b, mask)?.is_none() {
            return Ok(Flow::Block);
        }
        let votes = self.predicate(inst.a, negated);
        let masks = *self.get::<u32>(inst.b);
        let (mut ballots, mut holds) = ([0; LANES], 0);
        for l in lanes_of(mask) {
            let yes = votes & masks[l];
            ballots[l] = yes;
            let held = match kind {
                Vote::All => yes == masks[l],
                Vote::Any => yes != 0,
                Vote::Uni => yes == masks[l] || yes == 0,
                Vote::Ballot => continue,
            };
            holds |= u32::from(held) << l;
        }
        if kind == Vote::Ballot {
            self.set(inst.d, &ballots, mask);
        } else {
            self.set_predicate(inst.d, holds, mask);
        }
        Ok(Flow::Next)
    }

    pub(super) fn matching(&mut self, all: Option<Slot>, inst: &Inst, mask: u32) -> Outcome<Flow> {
        if self.members(inst.b, mask)?.is_none() {
            return Ok(Flow::Block);
        }
        let values = self.get_wide(inst.a);
        let masks = *self.get::<u32>(inst.b);
        let (mut out, mut same) = ([0; LANES], 0);
        for l in lanes_of(mask) {
            let equal = lanes_of(masks[l]).filter(|&m| values[m] == values[l]);
            out[l] = equal.fold(0u32, |m, l| m | 1 << l);
            if all.is_some() && out[l] != masks[l] {
                out[l] = 0;
            }
            same |= u32::from(out[l] != 0) << l;
        }
        self.set(inst.d, &out, mask);
        if let Some(slot) = all {
            self.set_predicate(slot, same, mask);
        }
        Ok(Flow::Next)
    }

    pub(super) fn redux(&mut self, f: Int2, inst: &Inst, mask: u32) -> Outcome<Flow> {
        if self.members(inst.b, mask)?.is_none() {
            return Ok(Flow::Block);
        }
        let a = *self.get::<u32>(inst.a);
        let masks = *self.get::<u32>(inst.b);
        let mut out = [0; LANES];
        for l in lanes_of(mask) {
            let values = lanes_of(masks[l]).map(|m| a[m]);
            out[l] = values.reduce(|x, y| int2(f, x, y)).unwrap_or(0);
        }
        self.set(inst.d, &out, mask);
        Ok(Flow::Next)
    }

    pub(super) fn elect(&mut self, leader: Slot, inst: &Inst, mask: u32) -> Outcome<Flow> {
        let Some(members) = self.members(inst.a, mask)? else { return Ok(Flow::Block) };
        let first = members.trailing_zeros();
        self.set(inst.d, &[first; LANES], mask);
        self.set_predicate(leader, 1 << first, mask);
        Ok(Flow::Next)
    }

    pub(super) fn warp_barrier(&mut self, inst: &Inst, mask: u32) -> Outcome<Flow> {
        if self.members(inst.a, mask)?.is_none() {
            return Ok(Flow::Block);
        }
        if let Some(shadow) = &mut self.b.shadow {
            shadow.warp_barrier(self.w.index);
        }
        Ok(Flow::Next)
    }

    pub(super) fn barrier(
        &mut self,
        kind: Barrier,
        negated: bool,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<Flow> {
        // Every lane of the warp takes part; those on another path may still come.
        if mask != self.w.live {
            return Ok(Flow::Block);
        }
        if self.w.live != self.w.all {
            let ended = self.w.all & !self.w.live;
            let what = format!("lanes {ended:#010x} of the warp ended before the barrier");
            return Err(Fault::new(
                FaultKind::Divergence,
                Some(mask.trailing_zeros() as usize),
                what,
            ));
        }
        let id = self.uniform(inst.a, mask)?;
        if id > 15 {
            let what = format!("barrier {id} of 16");
            return Err(Fault::new(FaultKind::Divergence, None, what));
        }
        let count = if inst.b.is_some() { Some(self.uniform(inst.b, mask)?) } else { None };
        let votes = if inst.c.is_some() { self.predicate(inst.c, negated) & mask } else { 0 };
        Ok(Flow::Arrive(Arrival { kind, id, count, pc: self.pc, votes }))
    }

    /// Instructions for whole warps: all lanes must be there.
    pub(super) fn whole_warp(&self, mask: u32) -> Outcome<bool> {
        if mask == u32::MAX {
            return Ok(true);
        }
        if self.w.live == u32::MAX {
            return Ok(false);
        }
        let what = format!("only lanes {:#010x} of the warp are there", self.w.live);
        Err(Fault::new(FaultKind::Mask, Some(mask.trailing_zeros() as usize), what))
    }
}
