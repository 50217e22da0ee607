//! One instruction.

use super::integer::{at_width, dot2, dot4, permute};
use super::lanes::{lanes_of, map1, Lanes};
use super::warp::{Exec, Flow};
use crate::decode::SHARED_START;
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW};
use crate::program::{Inst, Logic, Op, Special, Target, Width, LANES};
use crate::report::{Fault, FaultKind};

type Outcome<T> = Result<T, Box<Fault>>;

/// First generic address of a space.
fn window(target: Target) -> u64 {
    match target {
        Target::Shared => SHARED_WINDOW,
        Target::Local => LOCAL_WINDOW,
        Target::Param => PARAM_WINDOW,
        _ => 0,
    }
}

impl Exec<'_, '_> {
    /// Does what the instruction says for the lanes of `mask`.
    #[inline(always)]
    pub(super) fn step(&mut self, inst: &Inst, mask: u32) -> Outcome<Flow> {
        match inst.op {
            Op::Int2(f, width) => at_width!(self, width, int2_at(f, inst, mask)),
            Op::Int1(f, width) => at_width!(self, width, int1_at(f, inst, mask)),
            Op::MulWide { signed, from } | Op::MadWide { signed, from } => match from {
                Width::W16 => self.wide_at::<u16, u32>(signed, inst, mask),
                _ => self.wide_at::<u32, u64>(signed, inst, mask),
            },
            Op::MadLo(width) => at_width!(self, width, mad_at(None, inst, mask)),
            Op::MadHi { signed, width } => at_width!(self, width, mad_at(Some(signed), inst, mask)),
            Op::Sad { signed, width } => at_width!(self, width, sad_at(signed, inst, mask)),
            Op::Bfe { signed, width } => at_width!(self, width, extract_at(signed, inst, mask)),
            Op::Bfi(width) => at_width!(self, width, insert_at(inst, mask)),
            Op::Lop3(table) => self.lop3(table, inst, mask),
            Op::Prmt(mode) => self.words(inst, mask, |x, y, s| permute(mode, x, y, s)),
            Op::Shf { left, wrap } => self.funnel(left, wrap, inst, mask),
            Op::Dp4a { a_signed, b_signed } => {
                self.words(inst, mask, |x, y, z| dot4(x, y, z, a_signed, b_signed));
            }
            Op::Dp2a { a_signed, b_signed, high } => {
                self.words(inst, mask, |x, y, z| dot2(x, y, z, a_signed, b_signed, high));
            }
            Op::Float2(f, width, mode) => self.float2(f, width, mode, inst, mask),
            Op::Float1(f, width, mode) => self.float1(f, width, mode, inst, mask),
            Op::Fma(width, mode) => self.fma_at(width, mode, inst, mask),
            Op::Half2 { f, half, pair, mode } => self.half2_at(f, half, pair, mode, inst, mask),
            Op::Half1 { f, half, pair } => self.half1_at(f, half, pair, inst, mask),
            Op::HalfFma { half, pair, mode } => self.half_fma_at(half, pair, mode, inst, mask),
            Op::Convert(c) => self.convert(c, inst, mask),
            Op::ConvertPair(half, mode) => self.convert_pair(half, mode, inst, mask),
            Op::Setp { compare, kind, logic, negated, other } => {
                self.setp(compare, kind, logic, negated, other, inst, mask);
            }
            Op::Set { compare, kind, float } => self.set_compare(compare, kind, float, inst, mask),
            Op::PredicateLogic(logic) => {
                let (a, b) = (self.predicate(inst.a, false), self.predicate(inst.b, false));
                let value = match logic {
                    Logic::And => a & b,
                    Logic::Or => a | b,
                    Logic::Xor => a ^ b,
                };
                self.set_predicate(inst.d, value, mask);
            }
            Op::PredicateNot => self.set_predicate(inst.d, self.predicate(inst.a, true), mask),
            Op::PredicateMove => self.set_predicate(inst.d, self.predicate(inst.a, false), mask),
            Op::Selp { width, negated } => {
                let chosen = self.predicate(inst.c, negated);
                at_width!(self, width, select(chosen, inst, mask));
            }
            Op::Slct { width, float } => {
                let c = self.get::<u32>(inst.c);
                let mut chosen = 0;
                for l in 0..LANES {
                    // -0.0 counts as positive, NaN as negative.
                    let yes = if float { f32::from_bits(c[l]) >= 0.0 } else { c[l] as i32 >= 0 };
                    chosen |= u32::from(yes) << l;
                }
                at_width!(self, width, select(chosen, inst, mask));
            }
            Op::Move(width) => at_width!(self, width, copy(inst, mask)),
            Op::Pack { to, from } => self.pack(to, from, inst, mask),
            Op::Unpack { to, .. } => self.unpack(to, inst, mask),
            Op::Special(kind) => self.special(kind, inst, mask),
            Op::Load(access) => self.load(access, inst, mask)?,
            Op::Store(access) => self.store(access, inst, mask)?,
            Op::Atomic { op, access } => self.atomic(op, access, inst, mask)?,
            Op::ToGeneric(target) => {
                let out = map1(self.get::<u64>(inst.a), |x| x.wrapping_add(window(target)));
                self.set(inst.d, &out, mask);
            }
            Op::FromGeneric(target) => {
                let out = map1(self.get::<u64>(inst.a), |x| x.wrapping_sub(window(target)));
                self.set(inst.d, &out, mask);
            }
            Op::IsSpace(target) => self.is_space(target, inst, mask),
            Op::CpAsync { bytes, to_offset, from_offset } => {
                self.cp_async(bytes, to_offset, from_offset, inst, mask)?;
            }
            Op::CpAsyncCommit => self.commit_copies(mask),
            Op::CpAsyncWait(pending) => self.wait_copies(pending, mask)?,
            Op::Ldmatrix { count, transposed, offset } => {
                return self.ldmatrix(count, transposed, offset, inst, mask)
            }
            Op::Stmatrix { count, transposed, offset } => {
                return self.stmatrix(count, transposed, offset, inst, mask)
            }
            Op::Movmatrix => return self.movmatrix(inst, mask),
            Op::Mma(kind) => return self.mma(kind, inst, mask),
            Op::Warpgroup(kind) => return self.warpgroup(kind, inst, mask),
            Op::ProxyFence => {
                if let Some(shadow) = &mut self.b.shadow {
                    shadow.publish(self.w.index, mask);
                }
            }
            Op::Shuffle { kind, valid } => return self.shuffle(kind, valid, inst, mask),
            Op::Vote { kind, negated } => return self.vote(kind, negated, inst, mask),
            Op::MatchAny(_) => return self.matching(None, inst, mask),
            Op::MatchAll { same, .. } => return self.matching(Some(same), inst, mask),
            Op::Redux { op } => return self.redux(op, inst, mask),
            Op::ActiveMask => self.set(inst.d, &[mask; LANES], mask),
            Op::Elect { leader } => return self.elect(leader, inst, mask),
            Op::Barrier { kind, negated } => return self.barrier(kind, negated, inst, mask),
            Op::WarpBarrier => return self.warp_barrier(inst, mask),
            Op::Branch(target) => return Ok(Flow::Jump(target)),
            Op::BranchTable { start, length } => {
                let targets = *self.get::<u32>(inst.a);
                for l in lanes_of(mask) {
                    let index = targets[l].min(length - 1);
                    self.w.pcs[l] = self.env.kernel.tables[(start + index) as usize];
                }
                return Ok(Flow::Lanes);
            }
            Op::Call(target) => {
                self.set(inst.d, &[self.pc + 1; LANES], mask);
                return Ok(Flow::Jump(target));
            }
            Op::Return => {
                let back = *self.get::<u32>(inst.a);
                lanes_of(mask).for_each(|l| self.w.pcs[l] = back[l]);
                return Ok(Flow::Lanes);
            }
            Op::Exit => return Ok(Flow::Exit),
            Op::Trap => {
                let lane = Some(mask.trailing_zeros() as usize);
                return Err(Fault::new(FaultKind::Trap, lane, "trap".to_string()));
            }
            Op::AssertFail => return Err(self.assert_fail(inst, mask)),
            Op::Print => self.print(inst, mask)?,
            Op::Pause => return Ok(Flow::Yield),
            Op::Fence => std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst),
            Op::WaitForLaunches => self.w.waited |= mask,
            Op::Nothing => {}
        }
        Ok(Flow::Next)
    }

    #[inline(always)]
    fn select<T: super::lanes::Lane>(&mut self, chosen: u32, inst: &Inst, mask: u32) {
        let (a, b) = (self.get::<T>(inst.a), self.get::<T>(inst.b));
        let mut out = *b;
        for l in 0..LANES {
            out[l] = if chosen >> l & 1 == 1 { a[l] } else { b[l] };
        }
        self.set(inst.d, &out, mask);
    }

    #[inline(always)]
    fn copy<T: super::lanes::Lane>(&mut self, inst: &Inst, mask: u32) {
        let out = *self.get::<T>(inst.a);
        self.set(inst.d, &out, mask);
    }

    fn pack(&mut self, to: Width, from: Width, inst: &Inst, mask: u32) {
        let parts = inst.a.range();
        let mut out: Lanes<u64> = [0; LANES];
        for (i, at) in parts.enumerate() {
            let part = self.get_wide(self.env.kernel.lists[at]);
            let shift = i as u32 * from.bits();
            for l in 0..LANES {
                out[l] |= part[l] << shift;
            }
        }
        debug_assert_ne!(to, from);
        self.set_wide(inst.d, &out, mask);
    }

    fn unpack(&mut self, to: Width, inst: &Inst, mask: u32) {
        let whole = self.get_wide(inst.a);
        for (i, at) in inst.d.range().enumerate() {
            let shift = i as u32 * to.bits();
            let part = map1(&whole, |x| x >> shift);
            self.set_wide(self.env.kernel.lists[at], &part, mask);
        }
    }

    fn special(&mut self, kind: Special, inst: &Inst, mask: u32) {
        let lane = |f: &dyn Fn(u64) -> u64| std::array::from_fn(|l| f(l as u64));
        let all = |v: u64| [v; LANES];
        let env = self.env;
        let warp = self.w.index as u64;
        let id = self.b.id;
        let out: Lanes<u64> = match kind {
            Special::Tid(axis) => {
                lane(&|l| env.thread((warp * LANES as u64 + l) as usize)[usize::from(axis)].into())
            }
            Special::Ntid(axis) => all(env.block[usize::from(axis)].into()),
            Special::Ctaid(axis) => all(id[usize::from(axis)].into()),
            Special::Nctaid(axis) => all(env.grid[usize::from(axis)].into()),
            Special::LaneId => lane(&|l| l),
            Special::WarpId => all(warp),
            Special::NwarpId => all(env.threads().div_ceil(LANES) as u64),
            Special::SmId => all(u64::from(id[0]) % crate::device::MULTIPROCESSORS),
            Special::NsmId => all(crate::device::MULTIPROCESSORS),
            Special::GridId | Special::Zero => all(0),
            Special::One => all(1),
            Special::LanemaskEq => lane(&|l| 1 << l),
            Special::LanemaskLt => lane(&|l| (1 << l) - 1),
            Special::LanemaskLe => lane(&|l| (2 << l) - 1),
            Special::LanemaskGt => lane(&|l| !((2u64 << l) - 1) & 0xffff_ffff),
            Special::LanemaskGe => lane(&|l| !((1u64 << l) - 1) & 0xffff_ffff),
            Special::Clock | Special::Clock64 => all(self.b.counts.instructions),
            Special::GlobalTimer => all(crate::device::nanoseconds()),
            Special::DynamicShared => all(env.dynamic as u64),
            Special::TotalShared => all(self.b.shared.len() as u64 + SHARED_START),
        };
        self.set_wide(inst.d, &out, mask);
    }

    fn is_space(&mut self, target: Target, inst: &Inst, mask: u32) {
        let a = self.get::<u64>(inst.a);
        let inside = |x: u64, t: Target| (window(t)..window(t) + WINDOW).contains(&x);
        let others = [Target::Shared, Target::Local, Target::Param];
        let holds = (0..LANES).filter(|&l| match target {
            Target::Global => !others.iter().any(|&t| inside(a[l], t)),
            t => inside(a[l], t),
        });
        let holds = holds.fold(0, |m, l| m | 1 << l);
        self.set_predicate(inst.d, holds, mask);
    }
}
