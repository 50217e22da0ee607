//! A thread's own memory, and the parameters of the kernel.

use super::access::{extend, size};
use super::lanes::{lanes_of, Lanes};
use super::warp::Exec;
use crate::program::{Access, Inst, LANES};
use crate::report::{Fault, FaultKind};

type Outcome<T> = Result<T, Box<Fault>>;

impl Exec<'_, '_> {
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

    pub(super) fn load_local(
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

    pub(super) fn store_local(
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

    pub(super) fn load_param(
        &mut self,
        access: Access,
        a: &Lanes<u64>,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<()> {
        let (params, bytes) = (self.env.params, size(access));
        // A parameter's own address is the same for all lanes: one stands for all.
        let uniform = inst.a.is_constant();
        let checked = if uniform { mask & mask.wrapping_neg() } else { mask };
        self.aligned(a, bytes, checked)?;
        let bad = |l: &usize| a[*l].saturating_add(bytes) > params.len() as u64;
        if let Some(l) = lanes_of(checked).find(bad) {
            let what = format!("{bytes} bytes at {} of {} bytes of parameters", a[l], params.len());
            return Err(Fault::new(FaultKind::OutOfBounds, Some(l), what));
        }
        let element = usize::from(access.bytes);
        for e in 0..usize::from(access.count) {
            let slot = self.env.kernel.lists[inst.d.range().start + e];
            let value = |l: usize| {
                let mut value = [0; 8];
                value[..element].copy_from_slice(&params[a[l] as usize + e * element..][..element]);
                extend(u64::from_le_bytes(value), access)
            };
            // Inactive lanes repeat an active one's address.
            let out = if uniform { [value(0); LANES] } else { std::array::from_fn(value) };
            self.set_wide(slot, &out, mask);
        }
        Ok(())
    }
}
