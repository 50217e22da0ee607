//! A warp and how it moves through the code.
//!
//! Lanes that stand at the same instruction move together. Of several groups the
//! one that is farthest behind moves, until it meets another: with the layout
//! that compilers give code, lanes that parted meet where their paths do. A group
//! that must wait for other lanes (a shuffle, a barrier) is set aside; if in the
//! end only such groups are left, the lanes will never meet, and that is reported.

use super::block::Common;
use super::lanes::{lanes_of, Files, Lane, Lanes};
use super::launch::Env;
use super::poison::Mark;
use super::warpgroup::Products;
use crate::program::{Barrier, Inst, Slot, LANES, UNGUARDED};
use crate::report::{Fault, FaultKind};

/// Instructions that a warp runs before others get their turn.
const SLICE: u32 = 20_000;

/// A copy that `cp.async` began and nobody waited for yet.
pub struct Copy {
    pub lane: u8,
    pub bytes: u8,
    /// Number of the lane's group.
    pub group: u32,
    /// Offset in the block's memory.
    pub at: u32,
    pub data: [u8; 16],
}

/// A warp's arrival at a barrier.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub kind: Barrier,
    pub id: u32,
    /// Threads that the barrier waits for; none for all of the block.
    pub count: Option<u32>,
    /// The instruction.
    pub pc: u32,
    /// Lanes whose predicate holds, for reductions.
    pub votes: u32,
}

/// What a warp is doing.
#[derive(Clone, Copy, Debug)]
pub enum Status {
    Ready,
    Waiting(Arrival),
    Done,
}

/// The state of a warp.
pub struct Warp {
    pub index: usize,
    pub files: Files,
    pub predicates: Vec<u32>,
    /// Where each lane stands, while it does not move.
    pub pcs: [u32; LANES],
    /// Lanes that the block has.
    pub all: u32,
    /// Lanes that have not ended.
    pub live: u32,
    /// Lanes set aside until others arrive.
    pub blocked: u32,
    pub status: Status,
    /// Local memory, lane after lane.
    pub local: Vec<u8>,
    pub copies: Vec<Copy>,
    /// Registers with bytes that nobody wrote.
    pub marks: Vec<Mark>,
    /// Number of groups that each lane has committed.
    pub groups: [u32; LANES],
    /// Products of its warpgroup.
    pub products: Products,
    /// Lanes that waited for the launches before.
    pub waited: u32,
}

/// What an instruction does to the path.
pub enum Flow {
    Next,
    /// The active lanes go there.
    Jump(u32),
    /// Each active lane's place has been set.
    Lanes,
    /// The active lanes end.
    Exit,
    /// Lanes are missing; try again when they come.
    Block,
    Arrive(Arrival),
    /// Others should run.
    Yield,
}

type Outcome<T> = Result<T, Box<Fault>>;

/// A warp at work.
pub struct Exec<'w, 'e> {
    pub w: &'w mut Warp,
    pub b: &'w mut Common,
    pub env: &'w Env<'e>,
    /// The instruction.
    pub pc: u32,
}

impl Warp {
    /// Sets it up for a block; `threads` of its lanes exist.
    pub fn reset(&mut self, threads: usize) {
        self.all = if threads >= LANES { u32::MAX } else { (1 << threads) - 1 };
        self.live = self.all;
        self.blocked = 0;
        self.pcs = [0; LANES];
        self.status = Status::Ready;
        self.local.fill(0xff);
        self.copies.clear();
        self.marks.clear();
        self.groups = [0; LANES];
        self.products.reset();
        self.waited = 0;
        self.predicates.fill(0);
        self.predicates[1] = u32::MAX;
    }

    /// The group that moves next: its place, its lanes, and the place where it
    /// may meet others.
    fn pick(&mut self) -> Option<(u32, u32, u32)> {
        let mut pc = u32::MAX;
        for l in lanes_of(self.live & !self.blocked) {
            pc = pc.min(self.pcs[l]);
        }
        if pc == u32::MAX {
            return None;
        }
        let (mut mask, mut limit) = (0, u32::MAX);
        for l in lanes_of(self.live) {
            if self.pcs[l] == pc {
                mask |= 1 << l;
            } else if self.pcs[l] > pc {
                limit = limit.min(self.pcs[l]);
            }
        }
        self.blocked &= !mask;
        Some((pc, mask, limit))
    }

    pub fn place(&mut self, mask: u32, pc: u32) {
        if mask == u32::MAX {
            self.pcs = [pc; LANES];
        } else {
            lanes_of(mask).for_each(|l| self.pcs[l] = pc);
        }
    }
}

impl Exec<'_, '_> {
    /// The lanes of a register or constant.
    #[inline(always)]
    pub fn get<T: Lane>(&self, slot: Slot) -> &Lanes<T> {
        if slot.is_constant() {
            &T::constants(&self.env.kernel.constants)[slot.index()]
        } else {
            &T::file(&self.w.files)[slot.index()]
        }
    }

    /// Writes the lanes of `mask`.
    #[inline(always)]
    pub fn set<T: Lane>(&mut self, slot: Slot, value: &Lanes<T>, mask: u32) {
        let register = &mut T::file_mut(&mut self.w.files)[slot.index()];
        if mask == u32::MAX {
            *register = *value;
        } else {
            for l in 0..LANES {
                register[l] = if mask >> l & 1 == 1 { value[l] } else { register[l] };
            }
        }
    }

    #[inline(always)]
    pub fn predicate(&self, slot: Slot, negated: bool) -> u32 {
        let value = self.w.predicates[slot.index()];
        if negated {
            !value
        } else {
            value
        }
    }

    #[inline(always)]
    pub fn set_predicate(&mut self, slot: Slot, value: u32, mask: u32) {
        if slot.is_some() {
            let old = &mut self.w.predicates[slot.index()];
            *old = *old & !mask | value & mask;
        }
    }

    /// A register for which all active lanes should agree.
    pub fn uniform(&self, slot: Slot, mask: u32) -> Outcome<u32> {
        let values = self.get::<u32>(slot);
        let first = values[mask.trailing_zeros() as usize];
        match lanes_of(mask).find(|&l| values[l] != first) {
            None => Ok(first),
            Some(l) => Err(Fault::new(
                FaultKind::Mask,
                Some(l),
                format!("lanes disagree about an operand: {first:#x} and {:#x}", values[l]),
            )),
        }
    }

    /// Runs until the warp ends, waits, or has had its turn.
    pub fn run(&mut self) -> Outcome<()> {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the driver starts only where the processor has these features.
        return unsafe { self.run_avx2() };
        #[cfg(not(target_arch = "x86_64"))]
        self.run_lanes()
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
    fn run_avx2(&mut self) -> Outcome<()> {
        self.run_lanes()
    }

    #[inline(always)]
    fn run_lanes(&mut self) -> Outcome<()> {
        let code = &self.env.kernel.code[..];
        let watched = &self.env.kernel.watched[..];
        let watches = !watched.is_empty();
        let mut turn = SLICE;
        loop {
            let Some((mut pc, mut mask, limit)) = self.w.pick() else {
                if self.w.live == 0 {
                    self.w.status = Status::Done;
                    return Ok(());
                }
                return Err(self.stuck());
            };
            let alone = mask == self.w.live;
            loop {
                if pc >= limit {
                    self.w.place(mask, pc);
                    break;
                }
                let inst = &code[pc as usize];
                let active = self.active(inst, mask);
                self.b.counts.instructions += 1;
                self.b.counts.lane_instructions += u64::from(active.count_ones());
                if active == 0 {
                    pc += 1;
                    continue;
                }
                self.pc = pc;
                if watches && watched[pc as usize] {
                    self.watch_products(inst)?;
                }
                if !self.w.marks.is_empty() {
                    self.follow_marks(inst, active)?;
                }
                match self.step(inst, active)? {
                    Flow::Next => pc += 1,
                    Flow::Jump(target) => {
                        turn = turn.saturating_sub(1);
                        if active == mask && alone && turn > 0 {
                            pc = target;
                        } else {
                            self.w.place(mask & !active, pc + 1);
                            self.w.place(active, target);
                            if turn == 0 {
                                return Ok(());
                            }
                            break;
                        }
                    }
                    Flow::Lanes => {
                        self.w.place(mask & !active, pc + 1);
                        break;
                    }
                    Flow::Exit => {
                        self.w.live &= !active;
                        mask &= !active;
                        if mask == 0 {
                            break;
                        }
                        pc += 1;
                    }
                    Flow::Block => {
                        self.w.place(mask, pc);
                        self.w.blocked |= mask;
                        break;
                    }
                    Flow::Arrive(arrival) if arrival.kind == Barrier::Arrive => {
                        self.b.arrived.push((self.w.index, arrival));
                        pc += 1;
                    }
                    Flow::Arrive(arrival) => {
                        self.w.place(mask, pc + 1);
                        self.w.status = Status::Waiting(arrival);
                        return Ok(());
                    }
                    Flow::Yield => {
                        self.w.place(mask, pc + 1);
                        return Ok(());
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn active(&self, inst: &Inst, mask: u32) -> u32 {
        if inst.guard == UNGUARDED {
            mask
        } else {
            let p = self.w.predicates[(inst.guard >> 1) as usize];
            mask & if inst.guard & 1 == 1 { !p } else { p }
        }
    }

    /// All lanes wait for lanes that will not come.
    fn stuck(&mut self) -> Box<Fault> {
        let lane = self.w.live.trailing_zeros() as usize;
        self.pc = self.w.pcs[lane];
        let mut places: Vec<u32> = lanes_of(self.w.live).map(|l| self.w.pcs[l]).collect();
        places.sort_unstable();
        places.dedup();
        let mut what = format!("warp {} cannot go on:", self.w.index);
        for pc in places {
            let here = lanes_of(self.w.live).filter(|&l| self.w.pcs[l] == pc);
            let mask = here.fold(0u32, |m, l| m | 1 << l);
            let line = self.env.kernel.code[pc as usize].line;
            what += &format!(" lanes {mask:#010x} wait at PTX line {line},");
        }
        let ended = self.w.all & !self.w.live;
        what += &format!(" lanes {ended:#010x} have ended");
        Fault::new(FaultKind::Divergence, Some(lane), what)
    }
}
