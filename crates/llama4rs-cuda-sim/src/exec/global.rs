//! Device memory: checked, then read and written through atomics.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicU8, Ordering::Relaxed};

use super::access::{extend, size};
use super::lanes::{lanes_of, map1, Lanes};
use super::warp::Exec;
use crate::memory::{find, Purpose, DEVICE_BASE};
use crate::program::{Access, Inst, SlotKind, Width, LANES};
use crate::report::{Fault, FaultKind};

type Outcome<T> = Result<T, Box<Fault>>;

/// Reads `bytes` (1, 2, 4 or 8) at a host address.
///
/// # Safety
/// The address is valid and aligned, and only touched through atomics meanwhile.
#[inline(always)]
pub unsafe fn read(at: *mut u8, bytes: u8) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        match bytes {
            1 => AtomicU8::from_ptr(at).load(Relaxed).into(),
            2 => AtomicU16::from_ptr(at.cast()).load(Relaxed).into(),
            4 => AtomicU32::from_ptr(at.cast()).load(Relaxed).into(),
            _ => AtomicU64::from_ptr(at.cast()).load(Relaxed),
        }
    }
}

/// Writes the low `bytes` (1, 2, 4 or 8) of `value` at a host address.
///
/// # Safety
/// As for [`read`].
#[inline(always)]
pub unsafe fn write(at: *mut u8, bytes: u8, value: u64) {
    // SAFETY: as the caller promises.
    unsafe {
        match bytes {
            1 => AtomicU8::from_ptr(at).store(value as u8, Relaxed),
            2 => AtomicU16::from_ptr(at.cast()).store(value as u16, Relaxed),
            4 => AtomicU32::from_ptr(at.cast()).store(value as u32, Relaxed),
            _ => AtomicU64::from_ptr(at.cast()).store(value, Relaxed),
        }
    }
}
impl Exec<'_, '_> {
    /// Host addresses of `bytes` of device memory at each address.
    #[inline(always)]
    pub(super) fn device(
        &mut self,
        addresses: &Lanes<u64>,
        bytes: u64,
        mask: u32,
    ) -> Outcome<Lanes<usize>> {
        self.aligned(addresses, bytes, mask)?;
        if self.env.programmatic && mask & !self.w.waited != 0 {
            self.check_settled(addresses, bytes, mask & !self.w.waited)?;
        }
        let low = addresses.iter().fold(u64::MAX, |m, &a| m.min(a));
        let high = addresses.iter().fold(0, |m, &a| m.max(a));
        let memory = self.env.memory;
        let inside =
            |r: &crate::memory::Region| r.start <= low && high.saturating_add(bytes) <= r.end;
        let region = match self.b.region.filter(inside) {
            Some(region) => Some(region),
            None => find(&self.env.regions, low).filter(inside),
        };
        if let Some(region) = region {
            self.b.region = Some(region);
            let shift = (memory.host(&region, region.start) as u64).wrapping_sub(region.start);
            return Ok(map1(addresses, |a| a.wrapping_add(shift) as usize));
        }
        let mut out = [0; LANES];
        for l in lanes_of(mask) {
            let at = addresses[l];
            match find(&self.env.regions, at).filter(|r| at.saturating_add(bytes) <= r.end) {
                Some(region) => out[l] = memory.host(&region, at) as usize,
                None => return Err(self.outside(at, bytes, l)),
            }
        }
        let first = out[mask.trailing_zeros() as usize];
        for l in lanes_of(!mask) {
            out[l] = first;
        }
        Ok(out)
    }

    /// Fails if a lane that has not waited touches what a launch before wrote.
    fn check_settled(&self, addresses: &Lanes<u64>, bytes: u64, mask: u32) -> Outcome<()> {
        let unsettled =
            |&l: &usize| self.env.memory.is_unsettled(addresses[l], bytes, self.env.number);
        let Some(lane) = lanes_of(mask).find(unsettled) else { return Ok(()) };
        let (at, near) = (addresses[lane], self.env.memory.describe(addresses[lane]));
        let what = format!(
            "touches {bytes} bytes at {at:#x} before `griddepcontrol.wait`, which a launch before wrote: {near}"
        );
        Err(Fault::new(FaultKind::TooEarly, Some(lane), what))
    }

    /// Fails if a lane writes that has not waited for the launches before.
    pub(super) fn check_may_write(&self, addresses: &Lanes<u64>, mask: u32) -> Outcome<()> {
        let early = if self.env.programmatic { mask & !self.w.waited } else { 0 };
        if early == 0 {
            return Ok(());
        }
        let lane = early.trailing_zeros() as usize;
        let what = format!("writes at {:#x} before `griddepcontrol.wait`", addresses[lane]);
        Err(Fault::new(FaultKind::TooEarly, Some(lane), what))
    }

    #[cold]
    fn outside(&self, address: u64, bytes: u64, lane: usize) -> Box<Fault> {
        let near = self.env.memory.describe(address);
        let kind =
            if near.ends_with("freed") { FaultKind::UseAfterFree } else { FaultKind::OutOfBounds };
        Fault::new(kind, Some(lane), format!("{bytes} bytes at {address:#x}: {near}"))
    }

    /// Fails if a lane reads device memory that nobody wrote.
    #[inline(always)]
    pub(super) fn check_written(
        &self,
        addresses: &Lanes<u64>,
        bytes: u64,
        mask: u32,
    ) -> Outcome<()> {
        let lanes = self.unwritten_lanes(addresses, bytes, mask);
        if lanes == 0 {
            return Ok(());
        }
        let lane = lanes.trailing_zeros() as usize;
        let near = self.env.memory.describe(addresses[lane]);
        let at = addresses[lane];
        let what = format!("reads {bytes} bytes at {at:#x} that nobody wrote: {near}");
        Err(Fault::new(FaultKind::Uninitialised, Some(lane), what))
    }

    /// The lanes that read device memory which nobody wrote.
    #[inline(always)]
    fn unwritten_lanes(&self, addresses: &Lanes<u64>, bytes: u64, mask: u32) -> u32 {
        if !self.env.checks.unwritten || self.b.region.is_some_and(|r| r.purpose == Purpose::Host) {
            return 0;
        }
        let mut lanes = 0;
        for l in lanes_of(mask) {
            let at = addresses[l];
            let written = at < DEVICE_BASE || self.env.memory.is_written(at, bytes as u32);
            lanes |= u32::from(!written) << l;
        }
        lanes
    }

    #[inline(always)]
    pub(super) fn note_written(&self, addresses: &Lanes<u64>, bytes: u64, mask: u32) {
        for l in lanes_of(mask) {
            if addresses[l] >= DEVICE_BASE {
                self.env.memory.set_written(addresses[l], bytes as u32);
                if self.env.number > 0 {
                    self.env.memory.note_writer(addresses[l], bytes, self.env.number);
                }
            }
        }
    }
    #[inline(always)]
    pub(super) fn load_global(
        &mut self,
        access: Access,
        addresses: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let bytes = size(access);
        let hosts = self.device(addresses, bytes, mask)?;
        let unwritten = self.unwritten_lanes(addresses, bytes, mask);
        self.count_read(addresses, bytes, mask);
        for e in 0..usize::from(access.count) {
            let slot = self.env.kernel.lists[inst.d.range().start + e];
            let at = |l: usize| (hosts[l] + e * usize::from(access.bytes)) as *mut u8;
            if access.bytes == 4 && slot.kind() == SlotKind::Register(Width::W32) {
                let mut out = [0u32; LANES];
                for l in 0..LANES {
                    // SAFETY: `device` checked the range of every lane.
                    out[l] = unsafe { read(at(l), 4) } as u32;
                }
                self.set(slot, &out, mask);
                continue;
            }
            let mut out = [0u64; LANES];
            for l in 0..LANES {
                // SAFETY: as above.
                out[l] = extend(unsafe { read(at(l), access.bytes) }, access);
            }
            self.set_wide(slot, &out, mask);
        }
        if unwritten != 0 {
            let first = addresses[unwritten.trailing_zeros() as usize];
            self.mark(inst.d, unwritten, first, false);
        }
        Ok(())
    }

    #[inline(always)]
    pub(super) fn store_global(
        &mut self,
        access: Access,
        addresses: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let bytes = size(access);
        let hosts = self.device(addresses, bytes, mask)?;
        self.check_may_write(addresses, mask)?;
        self.count_write(addresses, bytes, mask);
        for e in 0..usize::from(access.count) {
            let slot = self.env.kernel.lists[inst.b.range().start + e];
            let values = self.get_wide(slot);
            for l in lanes_of(mask) {
                let at = (hosts[l] + e * usize::from(access.bytes)) as *mut u8;
                // SAFETY: `device` checked the range of every lane.
                unsafe { write(at, access.bytes, values[l]) };
            }
        }
        self.note_written(addresses, bytes, mask);
        Ok(())
    }
}
