//! Loads and stores, and the checks of their addresses.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicU8, Ordering::Relaxed};

use super::lanes::{lanes_of, map1, Lanes};
use super::warp::Exec;
use crate::decode::SHARED_START;
use crate::memory::{
    find, Purpose, DEVICE_BASE, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW,
};
use crate::program::{Access, Inst, Slot, SlotKind, Target, Width, LANES};
use crate::report::{Fault, FaultKind};
use crate::shadow::{Conflict, Touch};

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

/// Bytes that an access moves in each lane.
fn size(access: Access) -> u64 {
    u64::from(access.bytes) * u64::from(access.count)
}

/// Sign-extends the low bytes of a value if asked.
#[inline(always)]
fn extend(value: u64, access: Access) -> u64 {
    if access.signed {
        let shift = 64 - 8 * u32::from(access.bytes);
        (((value << shift) as i64) >> shift) as u64
    } else {
        value
    }
}

impl Exec<'_, '_> {
    /// The addresses of an access; inactive lanes repeat an active one's.
    #[inline(always)]
    pub(super) fn addresses(&self, slot: Slot, offset: i32, mask: u32) -> Lanes<u64> {
        let offset = i64::from(offset) as u64;
        let mut out = match slot.kind() {
            SlotKind::Register(Width::W32) => {
                map1(self.get::<u32>(slot), |x| u64::from(x).wrapping_add(offset))
            }
            _ => map1(self.get::<u64>(slot), |x| x.wrapping_add(offset)),
        };
        if mask != u32::MAX {
            let first = out[mask.trailing_zeros() as usize];
            for l in 0..LANES {
                out[l] = if mask >> l & 1 == 1 { out[l] } else { first };
            }
        }
        out
    }

    #[inline(always)]
    fn aligned(&self, addresses: &Lanes<u64>, bytes: u64, mask: u32) -> Outcome<()> {
        let low = addresses.iter().fold(0, |m, a| m | a) & (bytes - 1);
        if low == 0 {
            return Ok(());
        }
        self.misaligned(addresses, bytes, mask)
    }

    #[cold]
    fn misaligned(&self, addresses: &Lanes<u64>, bytes: u64, mask: u32) -> Outcome<()> {
        let lane = lanes_of(mask).find(|&l| !addresses[l].is_multiple_of(bytes));
        let address = addresses[lane.unwrap_or(0)];
        let what = format!("an access of {bytes} bytes at {address:#x}, which is not a multiple");
        Err(Fault::new(FaultKind::Misaligned, lane, what))
    }

    /// Host addresses of `bytes` of device memory at each address.
    #[inline(always)]
    pub(super) fn device(
        &mut self,
        addresses: &Lanes<u64>,
        bytes: u64,
        mask: u32,
    ) -> Outcome<Lanes<usize>> {
        self.aligned(addresses, bytes, mask)?;
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
        if !self.env.checks.unwritten || self.b.region.is_some_and(|r| r.purpose == Purpose::Host) {
            return Ok(());
        }
        for l in lanes_of(mask) {
            let at = addresses[l];
            if at >= DEVICE_BASE && !self.env.memory.is_written(at, bytes as u32) {
                let near = self.env.memory.describe(at);
                let what = format!("reads {bytes} bytes at {at:#x} that nobody wrote: {near}");
                return Err(Fault::new(FaultKind::Uninitialised, Some(l), what));
            }
        }
        Ok(())
    }

    #[inline(always)]
    pub(super) fn note_written(&self, addresses: &Lanes<u64>, bytes: u64, mask: u32) {
        for l in lanes_of(mask) {
            if addresses[l] >= DEVICE_BASE {
                self.env.memory.set_written(addresses[l], bytes as u32);
            }
        }
    }

    #[inline(always)]
    pub(super) fn load(&mut self, access: Access, inst: &Inst, mask: u32) -> Outcome<()> {
        let addresses = self.addresses(inst.a, access.offset, mask);
        match access.target {
            Target::Global => self.load_global(access, &addresses, inst, mask),
            Target::Shared => self.load_shared(access, &addresses, inst, mask),
            Target::Local => self.load_local(access, &addresses, inst, mask),
            Target::Param => self.load_param(access, &addresses, inst, mask),
            Target::Generic => {
                self.by_window(access, &addresses, mask, |x, access, addresses, mask| match access
                    .target
                {
                    Target::Shared => x.load_shared(access, addresses, inst, mask),
                    Target::Local => x.load_local(access, addresses, inst, mask),
                    Target::Param => x.load_param(access, addresses, inst, mask),
                    _ => x.load_global(access, addresses, inst, mask),
                })
            }
        }
    }

    #[inline(always)]
    pub(super) fn store(&mut self, access: Access, inst: &Inst, mask: u32) -> Outcome<()> {
        let addresses = self.addresses(inst.a, access.offset, mask);
        match access.target {
            Target::Global => self.store_global(access, &addresses, inst, mask),
            Target::Shared => self.store_shared(access, &addresses, inst, mask),
            Target::Local => self.store_local(access, &addresses, inst, mask),
            _ => {
                self.by_window(access, &addresses, mask, |x, access, addresses, mask| match access
                    .target
                {
                    Target::Shared => x.store_shared(access, addresses, inst, mask),
                    Target::Local => x.store_local(access, addresses, inst, mask),
                    _ => x.store_global(access, addresses, inst, mask),
                })
            }
        }
    }

    /// Sorts lanes by the window of their generic address.
    pub(super) fn by_window(
        &mut self,
        access: Access,
        addresses: &Lanes<u64>,
        mask: u32,
        f: impl Fn(&mut Self, Access, &Lanes<u64>, u32) -> Outcome<()>,
    ) -> Outcome<()> {
        let windows = [
            (Target::Shared, SHARED_WINDOW),
            (Target::Local, LOCAL_WINDOW),
            (Target::Param, PARAM_WINDOW),
        ];
        let mut rest = mask;
        for (target, base) in windows {
            let here = lanes_of(mask).filter(|&l| (base..base + WINDOW).contains(&addresses[l]));
            let here = here.fold(0u32, |m, l| m | 1 << l);
            if here != 0 {
                let first = addresses[here.trailing_zeros() as usize];
                let mut inner = map1(addresses, |a| a.wrapping_sub(base));
                lanes_of(!here).for_each(|l| inner[l] = first - base);
                f(self, Access { target, ..access }, &inner, here)?;
                rest &= !here;
            }
        }
        if rest == 0 {
            return Ok(());
        }
        let first = addresses[rest.trailing_zeros() as usize];
        let mut outer = *addresses;
        lanes_of(!rest).for_each(|l| outer[l] = first);
        f(self, Access { target: Target::Global, ..access }, &outer, rest)
    }

    #[inline(always)]
    fn load_global(
        &mut self,
        access: Access,
        addresses: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let bytes = size(access);
        let hosts = self.device(addresses, bytes, mask)?;
        self.check_written(addresses, bytes, mask)?;
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
        Ok(())
    }

    #[inline(always)]
    fn store_global(
        &mut self,
        access: Access,
        addresses: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let bytes = size(access);
        let hosts = self.device(addresses, bytes, mask)?;
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

    /// Offsets into the block's memory.
    #[inline(always)]
    pub(super) fn shared(
        &self,
        addresses: &Lanes<u64>,
        bytes: u64,
        mask: u32,
    ) -> Outcome<Lanes<usize>> {
        self.aligned(addresses, bytes, mask)?;
        let high = addresses.iter().fold(0, |m, &a| m.max(a));
        let low = addresses.iter().fold(u64::MAX, |m, &a| m.min(a));
        let end = SHARED_START + self.b.shared.len() as u64;
        if low < SHARED_START || high.saturating_add(bytes) > end {
            return Err(self.outside_shared(addresses, bytes, mask));
        }
        Ok(map1(addresses, |a| (a - SHARED_START) as usize))
    }

    #[cold]
    fn outside_shared(&self, addresses: &Lanes<u64>, bytes: u64, mask: u32) -> Box<Fault> {
        let size = self.b.shared.len() as u64;
        let bad = |l: &usize| {
            addresses[*l] < SHARED_START
                || addresses[*l].saturating_add(bytes) > SHARED_START + size
        };
        let lane = lanes_of(mask).find(bad).unwrap_or(0);
        let offset = addresses[lane].wrapping_sub(SHARED_START) as i64;
        let what = format!("{bytes} bytes at offset {offset} of {size} bytes of shared memory");
        Fault::new(FaultKind::OutOfBounds, Some(lane), what)
    }

    /// Thread of the block that a lane is.
    #[inline(always)]
    pub(super) fn thread(&self, lane: usize) -> u32 {
        (self.w.index * LANES + lane) as u32
    }

    #[cold]
    pub(super) fn conflict(
        &self,
        conflict: Conflict,
        touch: Touch,
        at: usize,
        lane: usize,
    ) -> Box<Fault> {
        let verb = match touch {
            Touch::Read => "reads",
            Touch::Atomic | Touch::Swap => "updates",
            Touch::Begin => "begins to copy to",
            Touch::Write | Touch::End => "writes",
        };
        let other = |t: u32| self.env.thread(t as usize);
        let (kind, why) = match conflict {
            Conflict::Unwritten => (FaultKind::Uninitialised, "that nobody wrote".to_string()),
            Conflict::InFlight(t) => (
                FaultKind::Race,
                format!("while a `cp.async` of thread {:?} is under way there", other(t)),
            ),
            Conflict::Written(t) => (
                FaultKind::Race,
                format!("which thread {:?} wrote without a barrier between", other(t)),
            ),
            Conflict::Read(Some(t)) => (
                FaultKind::Race,
                format!("which thread {:?} read without a barrier between", other(t)),
            ),
            Conflict::Read(None) => (
                FaultKind::Race,
                "which several threads read without a barrier between".to_string(),
            ),
        };
        let what = format!("{verb} offset {at} of shared memory, {why}");
        Fault::new(kind, Some(lane), what)
    }

    /// Notes reads of shared memory.
    #[inline(always)]
    pub(super) fn touch_reads(
        &mut self,
        offsets: &Lanes<usize>,
        bytes: usize,
        mask: u32,
    ) -> Outcome<()> {
        let base = (self.w.index * LANES) as u32;
        let Some(shadow) = &mut self.b.shadow else { return Ok(()) };
        for l in lanes_of(mask) {
            let touched =
                shadow.touch(Touch::Read, base + l as u32, offsets[l], bytes, |_, _| false);
            if let Err(c) = touched {
                return Err(self.conflict(c, Touch::Read, offsets[l], l));
            }
        }
        Ok(())
    }

    /// Notes a write of one lane and puts the bytes into shared memory.
    #[inline(always)]
    pub(super) fn write_shared(
        &mut self,
        touch: Touch,
        lane: usize,
        at: usize,
        data: &[u8],
    ) -> Outcome<()> {
        let me = self.thread(lane);
        if let Some(shadow) = &mut self.b.shadow {
            let old = &self.b.shared[at..at + data.len()];
            let same = |from: usize, n: usize| old[from..from + n] == data[from..from + n];
            if let Err(c) = shadow.touch(touch, me, at, data.len(), same) {
                return Err(self.conflict(c, touch, at, lane));
            }
        }
        self.b.shared[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn load_shared(
        &mut self,
        access: Access,
        addresses: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let bytes = size(access);
        let offsets = self.shared(addresses, bytes, mask)?;
        self.touch_reads(&offsets, bytes as usize, mask)?;
        self.count_shared(&offsets, bytes as usize, mask);
        for e in 0..usize::from(access.count) {
            let slot = self.env.kernel.lists[inst.d.range().start + e];
            let shared = &self.b.shared[..];
            let element = usize::from(access.bytes);
            let mut out = [0u64; LANES];
            for l in 0..LANES {
                let at = offsets[l] + e * element;
                let value = match element {
                    1 => shared[at].into(),
                    2 => u16::from_le_bytes(shared[at..at + 2].try_into().expect("two")).into(),
                    4 => u32::from_le_bytes(shared[at..at + 4].try_into().expect("four")).into(),
                    _ => u64::from_le_bytes(shared[at..at + 8].try_into().expect("eight")),
                };
                out[l] = extend(value, access);
            }
            self.set_wide(slot, &out, mask);
        }
        Ok(())
    }

    fn store_shared(
        &mut self,
        access: Access,
        addresses: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let bytes = size(access) as usize;
        let offsets = self.shared(addresses, bytes as u64, mask)?;
        self.count_shared(&offsets, bytes, mask);
        let element = usize::from(access.bytes);
        let mut data = [[0u8; 32]; LANES];
        for e in 0..usize::from(access.count) {
            let slot = self.env.kernel.lists[inst.b.range().start + e];
            let values = self.get_wide(slot);
            for l in 0..LANES {
                data[l][e * element..][..element]
                    .copy_from_slice(&values[l].to_le_bytes()[..element]);
            }
        }
        for l in lanes_of(mask) {
            self.write_shared(Touch::Write, l, offsets[l], &data[l][..bytes])?;
        }
        Ok(())
    }

    /// Offsets into the warp's local memory.
    fn local(&self, addresses: &Lanes<u64>, bytes: u64, mask: u32) -> Outcome<Lanes<usize>> {
        self.aligned(addresses, bytes, mask)?;
        let size = self.env.kernel.local_bytes as u64;
        let bad = |l: &usize| addresses[*l] < 16 || addresses[*l].saturating_add(bytes) > size;
        if let Some(l) = lanes_of(mask).find(bad) {
            let what =
                format!("{bytes} bytes at {:#x} of local memory of {size} bytes", addresses[l]);
            return Err(Fault::new(FaultKind::OutOfBounds, Some(l), what));
        }
        let pitch = self.w.local.len() / LANES;
        Ok(std::array::from_fn(|l| l * pitch + addresses[l] as usize))
    }

    fn load_local(
        &mut self,
        access: Access,
        a: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let offsets = self.local(a, size(access), mask)?;
        let element = usize::from(access.bytes);
        for e in 0..usize::from(access.count) {
            let slot = self.env.kernel.lists[inst.d.range().start + e];
            let mut out = [0u64; LANES];
            for l in lanes_of(mask) {
                let mut value = [0; 8];
                value[..element]
                    .copy_from_slice(&self.w.local[offsets[l] + e * element..][..element]);
                out[l] = extend(u64::from_le_bytes(value), access);
            }
            self.set_wide(slot, &out, mask);
        }
        Ok(())
    }

    fn store_local(
        &mut self,
        access: Access,
        a: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let offsets = self.local(a, size(access), mask)?;
        let element = usize::from(access.bytes);
        for e in 0..usize::from(access.count) {
            let slot = self.env.kernel.lists[inst.b.range().start + e];
            let values = self.get_wide(slot);
            for l in lanes_of(mask) {
                let bytes = &values[l].to_le_bytes()[..element];
                self.w.local[offsets[l] + e * element..][..element].copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn load_param(
        &mut self,
        access: Access,
        a: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        self.aligned(a, size(access), mask)?;
        let (params, bytes) = (self.env.params, size(access));
        let bad = |l: &usize| a[*l].saturating_add(bytes) > params.len() as u64;
        if let Some(l) = lanes_of(mask).find(bad) {
            let what = format!("{bytes} bytes at {} of {} bytes of parameters", a[l], params.len());
            return Err(Fault::new(FaultKind::OutOfBounds, Some(l), what));
        }
        let element = usize::from(access.bytes);
        for e in 0..usize::from(access.count) {
            let slot = self.env.kernel.lists[inst.d.range().start + e];
            let mut out = [0u64; LANES];
            for l in lanes_of(mask) {
                let mut value = [0; 8];
                value[..element].copy_from_slice(&params[a[l] as usize + e * element..][..element]);
                out[l] = extend(u64::from_le_bytes(value), access);
            }
            self.set_wide(slot, &out, mask);
        }
        Ok(())
    }
}
