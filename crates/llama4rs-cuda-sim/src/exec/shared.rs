//! Shared memory, and the notes on it.

use super::access::{extend, size};
use super::lanes::{lanes_of, map1, Lanes};
use super::warp::Exec;
use crate::decode::SHARED_START;
use crate::program::{Access, Inst, LANES};
use crate::report::{Fault, FaultKind};
use crate::shadow::{Conflict, Touch};

type Outcome<T> = Result<T, Box<Fault>>;

impl Exec<'_, '_> {
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
            Conflict::Unpublished(t) => (
                FaultKind::Unpublished,
                format!(
                    "which thread {:?} wrote without a `fence.proxy.async` before the barrier",
                    other(t)
                ),
            ),
            Conflict::Overwritten(t) => (
                FaultKind::Race,
                format!(
                    "which thread {:?} wrote while products that read them were under way",
                    other(t)
                ),
            ),
            Conflict::Read(None) => (
                FaultKind::Race,
                "which several threads read without a barrier between".to_string(),
            ),
        };
        let what = format!("{verb} offset {at} of shared memory, {why}");
        Fault::new(kind, Some(lane), what)
    }

    /// Notes reads of shared memory; returns the lanes that read bytes which nobody wrote.
    #[inline(always)]
    pub(super) fn touch_reads(
        &mut self,
        offsets: &Lanes<usize>,
        bytes: usize,
        mask: u32,
    ) -> Outcome<u32> {
        let base = (self.w.index * LANES) as u32;
        let Some(shadow) = &mut self.b.shadow else { return Ok(0) };
        let mut unwritten = 0;
        for l in lanes_of(mask) {
            let touched =
                shadow.touch(Touch::Read, base + l as u32, offsets[l], bytes, |_, _| false);
            match touched {
                Ok(()) => {}
                Err(Conflict::Unwritten) => unwritten |= 1 << l,
                Err(c) => return Err(self.conflict(c, Touch::Read, offsets[l], l)),
            }
        }
        Ok(unwritten)
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

    pub(super) fn load_shared(
        &mut self,
        access: Access,
        addresses: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let bytes = size(access);
        let offsets = self.shared(addresses, bytes, mask)?;
        let unwritten = self.touch_reads(&offsets, bytes as usize, mask)?;
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
        if unwritten != 0 {
            let first = offsets[unwritten.trailing_zeros() as usize] as u64;
            self.mark(inst.d, unwritten, first, true);
        }
        Ok(())
    }

    pub(super) fn store_shared(
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
}
