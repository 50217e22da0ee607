//! Loads and stores, and the checks of their addresses.

use super::lanes::{lanes_of, map1, Lanes};
use super::warp::Exec;
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW};
use crate::program::{Access, Inst, Slot, SlotKind, Target, Width, LANES};
use crate::report::{Fault, FaultKind};

type Outcome<T> = Result<T, Box<Fault>>;

/// Bytes that an access moves in each lane.
pub fn size(access: Access) -> u64 {
    u64::from(access.bytes) * u64::from(access.count)
}

/// Sign-extends the low bytes of a value if asked.
#[inline(always)]
pub fn extend(value: u64, access: Access) -> u64 {
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
    pub(super) fn aligned(&self, addresses: &Lanes<u64>, bytes: u64, mask: u32) -> Outcome<()> {
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
}
