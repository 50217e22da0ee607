//! Memory of a step: handed out from its beginning, and again from there in the next step.

use cudarc::driver::sys::CUdeviceptr;

use crate::memory::Pinned;

/// Everything in the regions begins at multiples of this.
const ALIGNMENT: usize = 256;
/// The least region.
const LEAST_BYTES: usize = 64 << 10;

/// Device memory that is handed out from its beginning.
#[derive(Default)]
pub(crate) struct Region {
    pub address: CUdeviceptr,
    pub bytes: usize,
    pub used: usize,
    /// Bytes that did not fit.
    missing: usize,
}

impl Region {
    pub fn new(address: CUdeviceptr, bytes: usize) -> Self {
        Self { address, bytes, used: 0, missing: 0 }
    }

    pub fn take(&mut self, bytes: usize) -> Option<usize> {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        if self.used + bytes > self.bytes {
            self.missing += bytes;
            return None;
        }
        let at = self.used;
        self.used += bytes;
        Some(at)
    }

    pub fn restart(&mut self) {
        (self.used, self.missing) = (0, 0);
    }

    /// The size that would have been enough, if it was not.
    pub fn wanted(&self) -> Option<usize> {
        let bytes = self.used + self.missing;
        (self.missing > 0).then(|| bytes.next_power_of_two().max(LEAST_BYTES))
    }
}

/// A region with its copy on the host.
#[derive(Default)]
pub(crate) struct Shared {
    pub region: Region,
    pub host: Option<Pinned>,
    /// Bytes that were copied already.
    pub copied: usize,
}

impl Shared {
    pub fn host(&mut self) -> &mut [u8] {
        self.host.as_mut().map_or(&mut [], Pinned::bytes)
    }

    pub fn restart(&mut self) {
        self.region.restart();
        self.copied = 0;
    }
}

/// Scratch memory of a step; what is given back is taken again.
#[derive(Default)]
pub(crate) struct Arena {
    pub region: Region,
    /// Given back: bytes and place, few enough to be looked through.
    free: Vec<(usize, CUdeviceptr)>,
}

impl Arena {
    /// Room for `bytes` that was given back before.
    pub fn take_again(&mut self, bytes: usize) -> Option<CUdeviceptr> {
        let known = self.free.iter().rposition(|&(held, _)| held == bytes)?;
        Some(self.free.swap_remove(known).1)
    }

    /// Room for `bytes` that nobody had in this step.
    pub fn take(&mut self, bytes: usize) -> Option<CUdeviceptr> {
        let at = self.region.take(bytes)?;
        Some(self.region.address + at as u64)
    }

    pub fn give_back(&mut self, bytes: usize, address: CUdeviceptr) {
        self.free.push((bytes, address));
    }

    pub fn restart(&mut self) {
        self.free.clear();
        self.region.restart();
    }
}
