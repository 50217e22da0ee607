//! Atomic operations on device and shared memory, and asynchronous copies.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::global::read;
use super::half::half2;
use super::lanes::{lanes_of, map1, Lanes};
use super::warp::{Copy, Exec};
use crate::program::{Access, Atomic, Float2, FloatMode, Inst, Slot, Target, LANES};
use crate::report::Fault;
use crate::shadow::Touch;

type Outcome<T> = Result<T, Box<Fault>>;

/// What an atomic operation stores, from the old value and its operands.
fn update(op: Atomic, bytes: u8, old: u64, b: u64, c: u64) -> u64 {
    let shift = 64 - 8 * u32::from(bytes);
    let signed = |x: u64| ((x << shift) as i64) >> shift;
    let (low, high) = (|x: u64| x as u16, |x: u64| (x >> 16) as u16);
    match op {
        Atomic::Add => old.wrapping_add(b),
        Atomic::AddF32 => {
            let sum = f32::from_bits(old as u32) + f32::from_bits(b as u32);
            sum.to_bits().into()
        }
        Atomic::AddF64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        Atomic::AddHalf(half, pair) => {
            let add = |x, y| u64::from(half2(Float2::Add, half, FloatMode::PLAIN, x, y));
            let rest = if pair { add(high(old), high(b)) << 16 } else { 0 };
            add(low(old), low(b)) | rest
        }
        Atomic::And => old & b,
        Atomic::Or => old | b,
        Atomic::Xor => old ^ b,
        Atomic::Exch => b,
        Atomic::Cas if old == b => c,
        Atomic::Cas => old,
        Atomic::Inc if old >= b => 0,
        Atomic::Inc => old + 1,
        Atomic::Dec if old == 0 || old > b => b,
        Atomic::Dec => old - 1,
        Atomic::MinU => old.min(b),
        Atomic::MaxU => old.max(b),
        Atomic::MinS => signed(old).min(signed(b)) as u64,
        Atomic::MaxS => signed(old).max(signed(b)) as u64,
    }
}

/// Applies `f` to the value at a host address as one step; returns the old value.
///
/// # Safety
/// The address is valid and aligned, and only touched through atomics meanwhile.
unsafe fn exchange(at: *mut u8, bytes: u8, f: impl Fn(u64) -> u64) -> u64 {
    macro_rules! step {
        ($atomic:ty, $int:ty) => {{
            // SAFETY: as the caller promises.
            let cell = unsafe { <$atomic>::from_ptr(at.cast()) };
            let old = cell.fetch_update(SeqCst, Relaxed, |v| Some(f(v.into()) as $int));
            old.expect("the closure always gives a value").into()
        }};
    }
    match bytes {
        2 => step!(AtomicU16, u16),
        4 => step!(AtomicU32, u32),
        _ => step!(AtomicU64, u64),
    }
}

impl Exec<'_, '_> {
    pub(super) fn atomic(
        &mut self,
        op: Atomic,
        access: Access,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let addresses = self.addresses(inst.a, access.offset, mask);
        match access.target {
            Target::Global => self.atomic_global(op, access, &addresses, inst, mask),
            Target::Shared => self.atomic_shared(op, access, &addresses, inst, mask),
            _ => {
                self.by_window(access, &addresses, mask, |x, access, addresses, mask| match access
                    .target
                {
                    Target::Shared => x.atomic_shared(op, access, addresses, inst, mask),
                    _ => x.atomic_global(op, access, addresses, inst, mask),
                })
            }
        }
    }

    fn operands(&self, inst: &Inst) -> (Lanes<u64>, Lanes<u64>) {
        let c = if inst.c.is_some() { self.get_wide(inst.c) } else { [0; LANES] };
        (self.get_wide(inst.b), c)
    }

    fn atomic_global(
        &mut self,
        op: Atomic,
        access: Access,
        addresses: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let bytes = u64::from(access.bytes);
        let hosts = self.device(addresses, bytes, mask)?;
        self.check_may_write(addresses, mask)?;
        if op != Atomic::Exch {
            self.check_written(addresses, bytes, mask)?;
        }
        self.count_read(addresses, bytes, mask);
        self.count_write(addresses, bytes, mask);
        let (b, c) = self.operands(inst);
        let mut out = [0; LANES];
        for l in lanes_of(mask) {
            // SAFETY: `device` checked the range and alignment of every lane.
            out[l] = unsafe {
                exchange(hosts[l] as *mut u8, access.bytes, |old| {
                    update(op, access.bytes, old, b[l], c[l])
                })
            };
        }
        self.note_written(addresses, bytes, mask);
        if inst.d.is_some() {
            self.set_wide(inst.d, &out, mask);
        }
        Ok(())
    }

    fn atomic_shared(
        &mut self,
        op: Atomic,
        access: Access,
        addresses: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let bytes = usize::from(access.bytes);
        let offsets = self.shared(addresses, bytes as u64, mask)?;
        self.count_shared(&offsets, bytes, mask);
        let (b, c) = self.operands(inst);
        let mut out = [0; LANES];
        for l in lanes_of(mask) {
            let mut old = [0; 8];
            old[..bytes].copy_from_slice(&self.b.shared[offsets[l]..][..bytes]);
            out[l] = u64::from_le_bytes(old);
            let new = update(op, access.bytes, out[l], b[l], c[l]).to_le_bytes();
            let touch = if op == Atomic::Exch { Touch::Swap } else { Touch::Atomic };
            self.write_shared(touch, l, offsets[l], &new[..bytes])?;
        }
        if inst.d.is_some() {
            self.set_wide(inst.d, &out, mask);
        }
        Ok(())
    }

    /// Begins a copy from device to shared memory. The bytes are read now and
    /// arrive at the wait, so that a read that comes too early finds the old ones.
    pub(super) fn cp_async(
        &mut self,
        bytes: u8,
        to_offset: i32,
        from_offset: i32,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let wanted = u64::from(bytes);
        let to = self.addresses(inst.e, to_offset, mask);
        let to = self.shared(&to, wanted, mask)?;
        let from = self.addresses(inst.a, from_offset, mask);
        // Lanes that read nothing may have any address.
        let lengths = self.copy_lengths(bytes, inst);
        let reading = lanes_of(mask).filter(|&l| lengths[l] > 0).fold(0u32, |m, l| m | 1 << l);
        let mut hosts = [0; LANES];
        if reading != 0 {
            let first = from[reading.trailing_zeros() as usize];
            let mut sources = from;
            lanes_of(!reading).for_each(|l| sources[l] = first);
            // The end of a short source need not exist.
            let least = lanes_of(reading).map(|l| u64::from(lengths[l])).min().unwrap_or(wanted);
            let checked = if least.is_power_of_two() { least } else { 1 };
            self.aligned(&sources, wanted, reading)?;
            hosts = self.device(&sources, checked, reading)?;
            for l in lanes_of(reading).filter(|&l| u64::from(lengths[l]) > checked) {
                let last = sources[l] + u64::from(lengths[l]) - checked;
                let last = last - last % checked;
                self.device(&[last; LANES], checked, 1 << l)?;
            }
            for at in (0..wanted).step_by(checked as usize) {
                let here = lanes_of(reading).filter(|&l| at < u64::from(lengths[l]));
                let here = here.fold(0u32, |m, l| m | 1 << l);
                let part = map1(&sources, |a| a + at);
                self.check_written(&part, checked, here)?;
            }
            self.count_read(&sources, wanted, reading);
        }
        self.count_shared(&to, bytes.into(), mask);
        for l in lanes_of(mask) {
            let mut data = [0; 16];
            for i in 0..usize::from(lengths[l]) {
                // SAFETY: `device` checked the whole source of every lane that reads.
                data[i] = unsafe { read((hosts[l] + i) as *mut u8, 1) } as u8;
            }
            if let Some(shadow) = &mut self.b.shadow {
                let me = (self.w.index * LANES + l) as u32;
                if let Err(c) = shadow.touch(Touch::Begin, me, to[l], bytes.into(), |_, _| false) {
                    return Err(self.conflict(c, Touch::Begin, to[l], l));
                }
            }
            let (lane, at, group) = (l as u8, to[l] as u32, self.w.groups[l]);
            self.w.copies.push(Copy { lane, bytes, group, at, data });
        }
        Ok(())
    }

    /// How many bytes each lane copies; the rest is filled with zeros.
    fn copy_lengths(&self, bytes: u8, inst: &Inst) -> Lanes<u8> {
        let mut lengths = [bytes; LANES];
        if inst.b.is_some() {
            let sizes: &Lanes<u32> = self.get(inst.b);
            (0..LANES).for_each(|l| lengths[l] = sizes[l].min(bytes.into()) as u8);
        }
        if inst.c != Slot::NONE {
            let ignore = self.predicate(inst.c, false);
            lanes_of(ignore).for_each(|l| lengths[l] = 0);
        }
        lengths
    }

    pub(super) fn commit_copies(&mut self, mask: u32) {
        lanes_of(mask).for_each(|l| self.w.groups[l] += 1);
    }

    /// Ends all but the last `pending` groups of each lane.
    pub(super) fn wait_copies(&mut self, pending: u32, mask: u32) -> Outcome<()> {
        let copies = std::mem::take(&mut self.w.copies);
        let mut rest = Vec::with_capacity(copies.len());
        for copy in copies {
            let l = usize::from(copy.lane);
            let over = copy.group + pending < self.w.groups[l];
            if mask >> l & 1 == 0 || !over {
                rest.push(copy);
                continue;
            }
            let data = &copy.data[..usize::from(copy.bytes)];
            self.write_shared(Touch::End, l, copy.at as usize, data)?;
        }
        self.w.copies = rest;
        Ok(())
    }
}
