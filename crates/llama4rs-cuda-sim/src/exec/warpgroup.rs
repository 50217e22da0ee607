//! Products of warpgroups: `wgmma`, and what they forbid while they are under way.
//!
//! The warps of a group come to an instruction one after the other, each for its own 16 rows; `Common` notes
//! what the group did, so that warps which do different things are found. Results are there at once, as
//! B is read at once. But until the wait their registers must not be touched, and at the wait the notes on B
//! must be those of the beginning.
//! Facts: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions" (register fragments, `wgmma.fence`,
//! "Matrix Descriptor Format", "Strides"); CUTLASS, `cute/arch/mma_sm90_desc.hpp` and
//! `cute/atom/mma_traits_sm90_gmma.hpp` (the same bit fields; which offset is which).

use super::half::widen;
use super::lanes::Lanes;
use super::warp::{Exec, Flow};
use crate::decode::SHARED_START;
use crate::program::{Half, Inst, Kernel, Slot, SlotKind, Warpgroup, Width, LANES};
use crate::report::{Fault, FaultKind};
use crate::shadow::Touch;

type Outcome<T> = Result<T, Box<Fault>>;
/// Rows of a warp, and the inner dimension of one product.
const M: usize = 16;
const K: usize = 16;
/// Warps of a group.
const WARPS: usize = 4;
/// Bytes of a unit, the smallest piece that keeps its place in any layout.
const UNIT: usize = 16;

/// What a register is to products under way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Free,
    /// It is read.
    Fragment,
    /// It is read and written.
    Sum,
}

/// A product that nobody waited for yet.
struct Product {
    group: u32,
    pc: u32,
    /// Offsets in shared memory of the units of B, and the notes on who wrote them.
    units: Vec<usize>,
    writes: Vec<u32>,
}

/// The products of one warp.
#[derive(Default)]
pub struct Products {
    under_way: Vec<Product>,
    /// Groups that were committed.
    groups: u32,
    roles: Vec<Role>,
    /// Registers that were touched since the last fence.
    touched: Vec<bool>,
    fenced: bool,
    /// Instructions of the warpgroup that this warp has executed.
    done: usize,
}

impl Products {
    /// Nothing is under way.
    pub fn new(kernel: &Kernel) -> Self {
        let count =
            if kernel.watched.is_empty() { 0 } else { kernel.registers[Width::W32 as usize] };
        Self { roles: vec![Role::Free; count], touched: vec![false; count], ..Self::default() }
    }

    /// For the next block.
    pub fn reset(&mut self) {
        self.under_way.clear();
        self.roles.fill(Role::Free);
        self.touched.fill(false);
        (self.groups, self.fenced, self.done) = (0, false, 0);
    }

    /// The registers of a product are in use.
    fn claim(&mut self, kernel: &Kernel, inst: &Inst) {
        for (list, role) in [(inst.d, Role::Sum), (inst.a, Role::Fragment)] {
            for slot in kernel.lists[list.range()].iter().filter(|slot| !slot.is_constant()) {
                self.roles[slot.index()] = role;
            }
        }
    }

    /// What is wrong at the end of the kernel, and where.
    pub fn at_end(&self, warpgroups: &[Vec<(u32, u64)>], warp: usize) -> Option<(u32, Box<Fault>)> {
        if let Some(product) = self.under_way.first() {
            let what =
                format!("the kernel ended while {} products were under way", self.under_way.len());
            return Some((product.pc, Fault::new(FaultKind::UnderWay, Some(0), what)));
        }
        let &(pc, _) = warpgroups[warp / WARPS].get(self.done)?;
        let what = "the warp ended without this instruction of its warpgroup".to_string();
        Some((pc, Fault::new(FaultKind::Divergence, Some(0), what)))
    }
}

/// Where B lies in shared memory: what a descriptor says.
struct Operand {
    /// Address of the first row.
    start: usize,
    /// From 8 inputs to the next 8; only without swizzle.
    leading: usize,
    /// From 8 columns to the next 8.
    stride: usize,
    /// Bytes of a row: 16 without swizzle, else 32, 64 or 128.
    row: usize,
}

impl Operand {
    /// Reads a descriptor: bits 0-13 address, 16-29 leading and 32-45 stride offset, all in 16 bytes;
    /// 49-51 base offset, 62-63 swizzle (1: 128 bytes, 2: 64, 3: 32).
    fn of(descriptor: u64) -> Outcome<Self> {
        let field = |from: u32| (descriptor >> from & 0x3fff) as usize * UNIT;
        let row = [UNIT, 128, 64, 32][(descriptor >> 62) as usize];
        let operand = Self { start: field(0), leading: field(16), stride: field(32), row };
        // A pattern repeats after 8 rows and must begin at a multiple of its size.
        let pattern = 8 * row;
        let wrong = if descriptor >> 49 & 7 != 0 {
            "a base offset other than 0 is not supported".to_string()
        } else if row > UNIT && operand.start % pattern >= row {
            format!("the address {:#x} is not in the first row of {pattern} bytes", operand.start)
        } else if row > UNIT && !operand.stride.is_multiple_of(pattern) {
            format!("the stride {} is not a multiple of {pattern} bytes", operand.stride)
        } else {
            return Ok(operand);
        };
        let what = format!("descriptor {descriptor:#018x}: {wrong}");
        Err(Fault::new(FaultKind::Misaligned, None, what))
    }

    /// Address of the unit that holds inputs `8 half ..` of a column. Swizzling replaces the bits of the
    /// unit's place in its row by their exclusive or with the row's number.
    fn unit(&self, column: usize, half: usize) -> usize {
        let row = self.start + column / 8 * self.stride + column % 8 * self.row;
        if self.row == UNIT {
            return row + half * self.leading;
        }
        let at = row + half * UNIT;
        at ^ (at >> 7 & (self.row / UNIT - 1)) << 4
    }
}

impl Exec<'_, '_> {
    pub(super) fn warpgroup(&mut self, kind: Warpgroup, inst: &Inst, mask: u32) -> Outcome<Flow> {
        if !self.whole_warp(mask)? {
            return Ok(Flow::Block);
        }
        let operand = match kind {
            Warpgroup::Product(..) => self.same_descriptor(inst.b)?,
            _ => 0,
        };
        self.join_warpgroup(operand)?;
        match kind {
            Warpgroup::Fence => {
                self.w.products.touched.fill(false);
                self.w.products.fenced = true;
            }
            Warpgroup::Product(half, columns) => {
                self.check_registers(inst)?;
                self.product(half, columns.into(), operand, inst)?;
            }
            Warpgroup::Commit => self.w.products.groups += 1,
            Warpgroup::Wait(pending) => self.wait_products(pending)?,
        }
        Ok(Flow::Next)
    }

    fn same_descriptor(&self, slot: Slot) -> Outcome<u64> {
        let values = self.get::<u64>(slot);
        match (0..LANES).find(|&l| values[l] != values[0]) {
            None => Ok(values[0]),
            Some(l) => {
                let what =
                    format!("lanes disagree: descriptors {:#x} and {:#x}", values[0], values[l]);
                Err(Fault::new(FaultKind::Mask, Some(l), what))
            }
        }
    }

    /// Notes that this warp is at an instruction of its group, which all four must execute alike.
    fn join_warpgroup(&mut self, operand: u64) -> Outcome<()> {
        let (group, done) = (self.w.index / WARPS, self.w.products.done);
        if (group + 1) * WARPS * LANES > self.env.threads() {
            let what = format!("warpgroup {group} has less than {WARPS} warps");
            return Err(Fault::new(FaultKind::Divergence, Some(0), what));
        }
        self.w.products.done += 1;
        let here = (self.pc, operand);
        match self.b.warpgroups[group].get(done) {
            None => self.b.warpgroups[group].push(here),
            Some(&there) if there == here => {}
            Some(&(pc, _)) => {
                let line = self.env.kernel.code[pc as usize].line;
                let what = format!(
                    "another warp of the warpgroup is at PTX line {line}, or has another descriptor"
                );
                return Err(Fault::new(FaultKind::Divergence, Some(0), what));
            }
        }
        Ok(())
    }

    fn numbers(&self, list: Slot) -> impl Iterator<Item = usize> + '_ {
        let slots = self.env.kernel.lists[list.range()].iter();
        slots.filter(|slot| !slot.is_constant()).map(|slot| slot.index())
    }

    /// Fragments and sums were not touched since the fence, and are not in use in another role.
    fn check_registers(&self, inst: &Inst) -> Outcome<()> {
        let products = &self.w.products;
        for (list, role) in [(inst.d, Role::Sum), (inst.a, Role::Fragment)] {
            for register in self.numbers(list) {
                if !products.fenced || products.touched[register] {
                    let what =
                        "its registers were touched since the last `wgmma.fence`".to_string();
                    return Err(Fault::new(FaultKind::UnderWay, Some(0), what));
                }
                if ![Role::Free, role].contains(&products.roles[register]) {
                    let what = "a register is sum and fragment of products under way".to_string();
                    return Err(Fault::new(FaultKind::UnderWay, Some(0), what));
                }
            }
        }
        Ok(())
    }

    /// Another instruction touches registers of products.
    #[cold]
    pub(super) fn watch_products(&mut self, inst: &Inst) -> Outcome<()> {
        for (slot, writes) in
            [(inst.a, false), (inst.b, false), (inst.c, false), (inst.e, false), (inst.d, true)]
        {
            let one = [slot];
            let slots = match slot.kind() {
                SlotKind::List => &self.env.kernel.lists[slot.range()],
                _ => &one[..],
            };
            for slot in slots.iter().filter(|s| s.kind() == SlotKind::Register(Width::W32)) {
                let products = &mut self.w.products;
                let role = products.roles[slot.index()];
                if role == Role::Sum || writes && role == Role::Fragment {
                    let verb = if writes { "writes" } else { "reads" };
                    let of = if role == Role::Sum { "sums" } else { "fragments" };
                    let what = format!("{verb} a register of the {of} of products under way");
                    return Err(Fault::new(FaultKind::UnderWay, Some(0), what));
                }
                products.touched[slot.index()] = true;
            }
        }
        Ok(())
    }

    /// Offsets in the block's memory of the units of B, `[column][half]`.
    fn units(&self, b: &Operand, columns: usize) -> Outcome<Vec<usize>> {
        let end = SHARED_START as usize + self.b.shared.len();
        let mut units = Vec::with_capacity(2 * columns);
        for column in 0..columns {
            for half in 0..2 {
                let at = b.unit(column, half);
                if at < SHARED_START as usize || at + UNIT > end {
                    let what = format!(
                        "column {column} of the products' operand is at {:#x} of shared memory, \
                         which has {} bytes from {SHARED_START:#x}",
                        at,
                        self.b.shared.len()
                    );
                    return Err(Fault::new(FaultKind::OutOfBounds, Some(0), what));
                }
                units.push(at - SHARED_START as usize);
            }
        }
        Ok(units)
    }

    /// Notes that products read these units from now on; the notes on who wrote them.
    fn begin_reads(&mut self, units: &[usize]) -> Outcome<Vec<u32>> {
        let me = self.thread(0);
        let mut writes = Vec::new();
        let Some(shadow) = &mut self.b.shadow else { return Ok(writes) };
        for &at in units {
            if let Err(conflict) = shadow.begin_products(me, at, UNIT, &mut writes) {
                return Err(self.conflict(conflict, Touch::Read, at, 0));
            }
        }
        Ok(writes)
    }

    fn end_reads(&mut self, product: &Product) -> Outcome<()> {
        let me = self.thread(0);
        let Some(shadow) = &mut self.b.shadow else { return Ok(()) };
        let writes = &mut product.writes.iter().copied();
        for &at in &product.units {
            if let Err(conflict) = shadow.end_products(me, at, UNIT, writes) {
                return Err(self.conflict(conflict, Touch::Read, at, 0));
            }
        }
        Ok(())
    }

    fn product(&mut self, half: Half, columns: usize, descriptor: u64, inst: &Inst) -> Outcome<()> {
        let operand = Operand::of(descriptor)?;
        let units = self.units(&operand, columns)?;
        let writes = self.begin_reads(&units)?;
        let a = self.fragment(half, inst.a);
        let adds = self.predicate(inst.c, false) & 1 == 1;
        for tile in 0..columns / 8 {
            let sums: [Slot; 4] =
                std::array::from_fn(|i| self.env.kernel.lists[inst.d.range().start + 4 * tile + i]);
            let mut b = [[0.0; 8]; K];
            for n in 0..8 {
                for k in 0..K {
                    let at = units[2 * (8 * tile + n) + k / 8] + k % 8 * 2;
                    let bytes = [self.b.shared[at], self.b.shared[at + 1]];
                    b[k][n] = widen(half, u16::from_le_bytes(bytes));
                }
            }
            let mut c = [[0f32; 8]; M];
            if adds {
                for i in 0..4 {
                    let words = self.get::<u32>(sums[i]);
                    for l in 0..LANES {
                        c[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2] = f32::from_bits(words[l]);
                    }
                }
            }
            // As for `mma`, in the order of the inner dimension.
            for (row, c) in a.iter().zip(&mut c) {
                for k in 0..K {
                    let k = if self.env.checks.backwards { K - 1 - k } else { k };
                    for n in 0..8 {
                        c[n] = row[k].mul_add(b[k][n], c[n]);
                    }
                }
            }
            for i in 0..4 {
                let out: Lanes<u32> =
                    std::array::from_fn(|l| c[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2].to_bits());
                self.set(sums[i], &out, u32::MAX);
            }
        }
        let products = &mut self.w.products;
        products.claim(self.env.kernel, inst);
        let (group, pc) = (products.groups, self.pc);
        products.under_way.push(Product { group, pc, units, writes });
        Ok(())
    }

    /// This warp's 16 rows of A.
    fn fragment(&self, half: Half, list: Slot) -> [[f32; K]; M] {
        let mut a = [[0.0; K]; M];
        for i in 0..4 {
            let words = self.get::<u32>(self.env.kernel.lists[list.range().start + i]);
            for l in 0..LANES {
                let (row, column) = (l / 4 + 8 * (i % 2), 2 * (l % 4) + 8 * (i / 2));
                a[row][column] = widen(half, words[l] as u16);
                a[row][column + 1] = widen(half, (words[l] >> 16) as u16);
            }
        }
        a
    }

    /// Ends all but the last `pending` groups. What was not committed goes on.
    fn wait_products(&mut self, pending: u32) -> Outcome<()> {
        let groups = self.w.products.groups;
        let all = std::mem::take(&mut self.w.products.under_way);
        let (over, rest): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|product| product.group + pending < groups);
        for product in &over {
            self.end_reads(product)?;
        }
        let products = &mut self.w.products;
        products.roles.fill(Role::Free);
        for product in &rest {
            products.claim(self.env.kernel, &self.env.kernel.code[product.pc as usize]);
        }
        products.under_way = rest;
        Ok(())
    }
}
