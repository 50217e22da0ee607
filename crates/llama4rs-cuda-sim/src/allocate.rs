//! Few registers for many names.
//!
//! PTX gives every value a register of its own. A warp of the simulated device
//! would stream thousands of them through the cache, so names whose lives do not
//! meet share one: liveness over the blocks, then one pass over intervals.

use crate::decode::product_registers;
use crate::program::{Inst, Kernel, Op, Slot, SlotKind, Width, UNGUARDED};

/// Renumbers the registers of `kernel`.
pub fn allocate(kernel: &mut Kernel) {
    for width in [Width::W16, Width::W32, Width::W64] {
        let intervals = intervals(kernel, width);
        let (names, used) = assign(&intervals);
        let rename = |slot: &mut Slot| {
            if slot.kind() == SlotKind::Register(width) {
                *slot = Slot::register(width, names[slot.index()]);
            }
        };
        kernel.lists.iter_mut().for_each(rename);
        for inst in &mut kernel.code {
            [&mut inst.d, &mut inst.a, &mut inst.b, &mut inst.c, &mut inst.e]
                .into_iter()
                .for_each(rename);
        }
        kernel.registers[width as usize] = used;
    }
}

/// Calls `f` with each register of `width` that the slot names.
fn each(kernel: &Kernel, slot: Slot, width: Width, f: &mut impl FnMut(usize)) {
    match slot.kind() {
        SlotKind::Register(w) if w == width => f(slot.index()),
        SlotKind::List => kernel.lists[slot.range()].iter().for_each(|&s| {
            if s.kind() == SlotKind::Register(width) {
                f(s.index());
            }
        }),
        _ => {}
    }
}

fn reads(kernel: &Kernel, inst: &Inst, width: Width, mut f: impl FnMut(usize)) {
    for slot in [inst.a, inst.b, inst.c, inst.e] {
        each(kernel, slot, width, &mut f);
    }
}

/// Where control may go after instruction `at`.
fn successors(kernel: &Kernel, at: usize, returns: &[u32]) -> Vec<usize> {
    let inst = &kernel.code[at];
    let mut next: Vec<usize> = match inst.op {
        Op::Branch(target) => vec![target as usize],
        Op::BranchTable { start, length } => {
            kernel.tables[start as usize..][..length as usize].iter().map(|&t| t as usize).collect()
        }
        Op::Call(target) => vec![target as usize],
        Op::Return => returns.iter().map(|&t| t as usize).collect(),
        Op::Exit | Op::Trap => Vec::new(),
        _ => return vec![at + 1],
    };
    if inst.guard != UNGUARDED {
        next.push(at + 1);
    }
    next
}

/// First and last instruction at which each register of `width` is alive.
fn intervals(kernel: &Kernel, width: Width) -> Vec<Option<(u32, u32)>> {
    let count = kernel.registers[width as usize];
    let words = count.div_ceil(64);
    let code = &kernel.code;
    let calls = code.iter().enumerate().filter(|(_, i)| matches!(i.op, Op::Call(_)));
    let returns: Vec<u32> = calls.map(|(at, _)| at as u32 + 1).collect();
    // Blocks: a leader begins each.
    let mut leader = vec![false; code.len() + 1];
    leader[0] = true;
    for at in 0..code.len() {
        let next = successors(kernel, at, &returns);
        if next != [at + 1] {
            leader[at + 1] = true;
            next.iter().for_each(|&n| leader[n] = true);
        }
    }
    let starts: Vec<usize> = (0..code.len()).filter(|&at| leader[at]).collect();
    let mut block_of = vec![usize::MAX; code.len() + 1];
    starts.iter().enumerate().for_each(|(b, &at)| block_of[at] = b);
    let end = |b: usize| starts.get(b + 1).copied().unwrap_or(code.len());
    let mut wanted = vec![vec![0u64; words]; starts.len()]; // read before it is written
    let mut killed = vec![vec![0u64; words]; starts.len()];
    let mut next = Vec::with_capacity(starts.len());
    for (b, &start) in starts.iter().enumerate() {
        for inst in &code[start..end(b)] {
            reads(kernel, inst, width, |r| {
                wanted[b][r / 64] |= (1 << (r % 64)) & !killed[b][r / 64];
            });
            // A guarded write leaves the old value in some lanes.
            each(kernel, inst.d, width, &mut |r| {
                if inst.guard == UNGUARDED {
                    killed[b][r / 64] |= 1 << (r % 64);
                }
            });
        }
        let follow = successors(kernel, end(b) - 1, &returns);
        next.push(follow.iter().filter_map(|&at| block_of.get(at).copied()).collect::<Vec<_>>());
    }
    let mut alive_in = wanted.clone();
    let mut alive_out = vec![vec![0u64; words]; starts.len()];
    let mut changed = true;
    while changed {
        changed = false;
        for b in (0..starts.len()).rev() {
            for w in 0..words {
                let out =
                    next[b]
                        .iter()
                        .fold(0, |m, &n| if n < starts.len() { m | alive_in[n][w] } else { m });
                let within = wanted[b][w] | (out & !killed[b][w]);
                changed |= within != alive_in[b][w];
                alive_out[b][w] = out;
                alive_in[b][w] = within;
            }
        }
    }
    let mut intervals: Vec<Option<(u32, u32)>> = vec![None; count];
    let mut extend = |r: usize, at: usize| {
        let at = at as u32;
        let (from, to) = intervals[r].unwrap_or((at, at));
        intervals[r] = Some((from.min(at), to.max(at)));
    };
    if width == Width::W32 {
        // Products go on behind their instruction, and whoever touches their registers is to be found out.
        for inst in code {
            product_registers(kernel, inst, |r| {
                extend(r, 0);
                extend(r, code.len());
            });
        }
    }
    for (b, &start) in starts.iter().enumerate() {
        for r in 0..count {
            if alive_in[b][r / 64] >> (r % 64) & 1 == 1 {
                extend(r, start);
            }
            if alive_out[b][r / 64] >> (r % 64) & 1 == 1 {
                extend(r, end(b) - 1);
            }
        }
        for at in start..end(b) {
            reads(kernel, &code[at], width, |r| extend(r, at));
            each(kernel, code[at].d, width, &mut |r| extend(r, at));
        }
    }
    intervals
}

/// A register for each interval, and how many there are. Two lives that touch in
/// one instruction do not share: an instruction may write before it has read all.
fn assign(intervals: &[Option<(u32, u32)>]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..intervals.len()).filter(|&r| intervals[r].is_some()).collect();
    order.sort_by_key(|&r| intervals[r]);
    let mut names = vec![0; intervals.len()];
    let mut busy: std::collections::BinaryHeap<std::cmp::Reverse<(u32, usize)>> =
        Default::default();
    let (mut free, mut used) = (Vec::new(), 0);
    for r in order {
        let (from, to) = intervals[r].expect("only lives are ordered");
        while let Some(&std::cmp::Reverse((end, name))) = busy.peek() {
            if end >= from {
                break;
            }
            busy.pop();
            free.push(name);
        }
        let name = free.pop().unwrap_or_else(|| {
            used += 1;
            used - 1
        });
        names[r] = name;
        busy.push(std::cmp::Reverse((to, name)));
    }
    (names, used)
}
