//! A block: its warps, its memory, its barriers.

use super::lanes::{lanes_of, Files};
use super::launch::Env;
use super::warp::{Arrival, Exec, Status, Warp};
use super::warpgroup::Products;
use crate::counters::Counts;
use crate::memory::Region;
use crate::program::{Barrier, Op, LANES};
use crate::report::{Fault, FaultKind, Report};
use crate::shadow::Shadow;

/// What the warps of a block share.
pub struct Common {
    /// The block's place in the grid.
    pub id: [u32; 3],
    pub shared: Vec<u8>,
    pub shadow: Option<Shadow>,
    pub counts: Counts,
    /// Warps that arrived at a barrier and went on.
    pub arrived: Vec<(usize, Arrival)>,
    /// The allocation that was touched last.
    pub region: Option<Region>,
    /// What each warpgroup did: instructions, and what they read.
    pub warpgroups: Vec<Vec<(u32, u64)>>,
}

/// A block at work.
pub struct Block {
    pub common: Common,
    warps: Vec<Warp>,
}

/// Whether a block has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Ended,
    Running,
}

impl Block {
    /// Room for one block of the launch.
    pub fn new(env: &Env) -> Self {
        let kernel = env.kernel;
        let count = env.threads().div_ceil(LANES);
        let shared = kernel.shared_bytes + env.dynamic;
        let shadow = (env.checks.races && shared > 0).then(|| {
            let products = !kernel.watched.is_empty();
            Shadow::new(shared, kernel.grain, count, kernel.partial_barriers, products)
        });
        let warps = (0..count).map(|index| Warp {
            index,
            files: Files::new(kernel.registers),
            predicates: vec![0; kernel.predicates],
            pcs: [0; LANES],
            all: 0,
            live: 0,
            blocked: 0,
            status: Status::Ready,
            local: vec![0; kernel.local_bytes.next_multiple_of(16) * LANES],
            copies: Vec::new(),
            marks: Vec::new(),
            groups: [0; LANES],
            products: Products::new(kernel),
            waited: 0,
        });
        let common = Common {
            id: [0; 3],
            shared: vec![0xff; shared],
            shadow,
            counts: Counts::default(),
            arrived: Vec::new(),
            region: None,
            warpgroups: vec![Vec::new(); count.div_ceil(4)],
        };
        Self { common, warps: warps.collect() }
    }

    /// Begins a block.
    pub fn start(&mut self, env: &Env, id: [u32; 3]) {
        self.common.id = id;
        self.common.counts.blocks += 1;
        self.common.shared.fill(0xff);
        self.common.arrived.clear();
        self.common.warpgroups.iter_mut().for_each(Vec::clear);
        if let Some(shadow) = &mut self.common.shadow {
            shadow.reset();
        }
        for warp in &mut self.warps {
            warp.reset(env.threads() - warp.index * LANES);
        }
    }

    /// Gives every warp that can run a turn.
    pub fn turn(&mut self, env: &Env) -> Result<Progress, Box<Report>> {
        let mut ran = false;
        for i in 0..self.warps.len() {
            if !matches!(self.warps[i].status, Status::Ready) {
                continue;
            }
            ran = true;
            let w = &mut self.warps[i];
            let mut exec = Exec { w, b: &mut self.common, env, pc: 0 };
            if let Err(fault) = exec.run() {
                let (pc, index) = (exec.pc, exec.w.index);
                return Err(self.report(env, &fault, pc, index));
            }
        }
        if self.warps.iter().all(|w| matches!(w.status, Status::Done)) {
            return self.end(env).map(|()| Progress::Ended);
        }
        let released = self.barriers(env)?;
        if !ran && !released {
            return Err(self.deadlock(env));
        }
        Ok(Progress::Running)
    }

    fn report(&self, env: &Env, fault: &Fault, pc: u32, warp: usize) -> Box<Report> {
        let thread = fault.lane.map(|l| env.thread(warp * LANES + l));
        let line = env.kernel.code.get(pc as usize).map_or(0, |i| i.line);
        Box::new(Report {
            kind: fault.kind,
            kernel: env.kernel.name.clone(),
            block: self.common.id,
            thread,
            line,
            text: env.kernel.line(line).to_string(),
            what: fault.what.clone(),
        })
    }

    /// Copies and products must have been waited for.
    fn end(&self, env: &Env) -> Result<(), Box<Report>> {
        for warp in &self.warps {
            if let Some((pc, fault)) = warp.products.at_end(&self.common.warpgroups, warp.index) {
                return Err(self.report(env, &fault, pc, warp.index));
            }
        }
        if let Some(warp) = self.warps.iter().find(|w| env.programmatic && w.waited != w.all) {
            let lane = (warp.all & !warp.waited).trailing_zeros() as usize;
            let what = "the launch may begin before those before it have ended, and a thread never executed \
                        `griddepcontrol.wait`";
            let fault = Fault::new(FaultKind::TooEarly, Some(lane), what.to_string());
            return Err(self.report(env, &fault, 0, warp.index));
        }
        let Some(warp) = self.warps.iter().find(|w| !w.copies.is_empty()) else { return Ok(()) };
        let lane = usize::from(warp.copies[0].lane);
        let what = format!(
            "the kernel ended while {} `cp.async` of warp {} were under way",
            warp.copies.len(),
            warp.index
        );
        let fault = Fault::new(FaultKind::UnfinishedCopy, Some(lane), what);
        let begun = env.kernel.code.iter().position(|i| matches!(i.op, Op::CpAsync { .. }));
        Err(self.report(env, &fault, begun.unwrap_or(0) as u32, warp.index))
    }

    fn arrivals(&self) -> impl Iterator<Item = (usize, Arrival)> + '_ {
        self.warps.iter().enumerate().filter_map(|(i, w)| match w.status {
            Status::Waiting(arrival) => Some((i, arrival)),
            _ => None,
        })
    }

    /// Opens the barriers at which everybody has arrived.
    fn barriers(&mut self, env: &Env) -> Result<bool, Box<Report>> {
        let mut opened = false;
        for id in 0..16 {
            let passed = self.common.arrived.iter().copied();
            let here: Vec<_> = self.arrivals().chain(passed).filter(|(_, a)| a.id == id).collect();
            let Some(&(first, arrival)) = here.first() else { continue };
            let threads = |i: usize| self.warps[i].all.count_ones();
            let arrived: u32 = here.iter().map(|&(i, _)| threads(i)).sum();
            let needed = arrival.count.unwrap_or(env.threads() as u32);
            let done = self.warps.iter().any(|w| matches!(w.status, Status::Done));
            if arrival.count.is_none() {
                let others = here.iter().find(|(_, a)| a.pc != arrival.pc);
                if let Some(&(other, a)) = others {
                    return Err(self.divergent(env, (first, arrival), (other, a)));
                }
                if done {
                    let what =
                        "threads wait at a barrier that others of the block have passed by: \
                                they have ended";
                    let fault = Fault::new(FaultKind::Divergence, Some(0), what.to_string());
                    return Err(self.report(env, &fault, arrival.pc, first));
                }
            }
            if arrived < needed {
                continue;
            }
            self.common.arrived.retain(|(_, a)| a.id != id);
            self.open(&here, arrival.count.is_none(), env)?;
            opened = true;
        }
        Ok(opened)
    }

    fn divergent(
        &self,
        env: &Env,
        (first, a): (usize, Arrival),
        (other, b): (usize, Arrival),
    ) -> Box<Report> {
        let line = |pc: u32| env.kernel.code[pc as usize].line;
        let what = format!(
            "warp {first} waits at the barrier of PTX line {}, warp {other} at that of line {}",
            line(a.pc),
            line(b.pc)
        );
        let fault = Fault::new(FaultKind::Divergence, Some(0), what);
        self.report(env, &fault, a.pc, first)
    }

    fn open(&mut self, here: &[(usize, Arrival)], all: bool, env: &Env) -> Result<(), Box<Report>> {
        if let Some(shadow) = &mut self.common.shadow {
            if all {
                shadow.block_barrier();
            } else {
                shadow.partial_barrier(here.iter().fold(0, |m, &(i, _)| m | 1 << i));
            }
            if shadow.exhausted() {
                let what = "more barriers than the race check can count".to_string();
                let fault = Fault::new(FaultKind::Endless, None, what);
                return Err(self.report(env, &fault, here[0].1.pc, here[0].0));
            }
        }
        let votes: u32 = here.iter().map(|(_, a)| a.votes.count_ones()).sum();
        let threads: u32 = here.iter().map(|&(i, _)| self.warps[i].all.count_ones()).sum();
        for &(i, arrival) in here.iter().filter(|(_, a)| a.kind != Barrier::Arrive) {
            let inst = &env.kernel.code[arrival.pc as usize];
            let warp = &mut self.warps[i];
            let mask = warp.live;
            let mut exec = Exec { w: warp, b: &mut self.common, env, pc: arrival.pc };
            match arrival.kind {
                Barrier::Sync | Barrier::Arrive => {}
                Barrier::Popc => exec.set(inst.d, &[votes; LANES], mask),
                Barrier::Or => {
                    exec.set_predicate(inst.d, if votes > 0 { u32::MAX } else { 0 }, mask);
                }
                Barrier::And => {
                    exec.set_predicate(inst.d, if votes == threads { u32::MAX } else { 0 }, mask);
                }
            }
            self.warps[i].status = Status::Ready;
        }
        Ok(())
    }

    fn deadlock(&self, env: &Env) -> Box<Report> {
        let mut what = "no warp of the block can go on:".to_string();
        for (i, arrival) in self.arrivals() {
            let line = env.kernel.code[arrival.pc as usize].line;
            what += &format!(" warp {i} waits at barrier {} of PTX line {line},", arrival.id);
        }
        let (first, arrival) = self.arrivals().next().expect("somebody waits");
        let fault = Fault::new(FaultKind::Divergence, Some(0), what);
        self.report(env, &fault, arrival.pc, first)
    }
}

impl Exec<'_, '_> {
    /// Lanes of `mask` that the warp's current instruction still lacks.
    pub(super) fn missing(&self, members: u32, active: u32) -> u32 {
        members & self.w.all & !active
    }

    /// The masks that the active lanes name, checked: `Ok(None)` if lanes must be waited for.
    pub(super) fn members(
        &self,
        mask: crate::program::Slot,
        active: u32,
    ) -> Result<Option<u32>, Box<Fault>> {
        let masks = self.get::<u32>(mask);
        if active == u32::MAX && masks.iter().fold(active, |m, x| m & x) == active {
            return Ok(Some(active));
        }
        let mut all = 0;
        for l in lanes_of(active) {
            if masks[l] >> l & 1 == 0 {
                let what = format!("the lane is not in its own mask {:#010x}", masks[l]);
                return Err(Fault::new(FaultKind::Mask, Some(l), what));
            }
            all |= masks[l];
        }
        let missing = self.missing(all, active);
        let ended = missing & !self.w.live;
        if ended != 0 {
            let lane = lanes_of(active).next();
            let what = format!("the mask {all:#010x} names lanes {ended:#010x}, which have ended");
            return Err(Fault::new(FaultKind::Mask, lane, what));
        }
        for l in lanes_of(active) {
            if let Some(m) = lanes_of(masks[l] & active).find(|&m| masks[m] != masks[l]) {
                let what = format!(
                    "lanes {l} and {m} name different masks, {:#010x} and {:#010x}",
                    masks[l], masks[m]
                );
                return Err(Fault::new(FaultKind::Mask, Some(l), what));
            }
            if masks[l] == all {
                break;
            }
        }
        Ok((missing == 0).then_some(all))
    }
}
