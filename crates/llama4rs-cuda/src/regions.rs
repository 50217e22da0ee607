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
    refused: Option<Refusal>,
}

/// What the device had no memory for.
#[derive(Clone, Copy)]
struct Refusal {
    bytes: usize,
    /// How often memory had gone back to the driver by then.
    releases: u64,
}

impl Region {
    pub fn new(address: CUdeviceptr, bytes: usize) -> Self {
        Self { address, bytes, ..Self::default() }
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

    /// The size that would have been enough, if it was not; what was [refused](Self::refuse) only once memory
    /// has gone back to the driver again, which it did `releases` times.
    pub fn wanted(&self, releases: u64) -> Option<usize> {
        if self.missing == 0 {
            return None;
        }
        let bytes = (self.used + self.missing).next_power_of_two().max(LEAST_BYTES);
        let may_fit = |refused: Refusal| bytes < refused.bytes || releases != refused.releases;
        self.refused.is_none_or(may_fit).then_some(bytes)
    }

    /// There was no memory for `bytes` after it had gone back to the driver `releases` times.
    pub fn refuse(&mut self, bytes: usize, releases: u64) {
        self.refused = Some(Refusal { bytes, releases });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_wanted_again_when_it_may_fit() {
        let mut region = Region::new(0, 4 * LEAST_BYTES);
        let wants = |region: &mut Region, bytes, releases| {
            region.restart();
            assert!(region.take(bytes).is_none());
            region.wanted(releases)
        };
        assert_eq!(wants(&mut region, 12 * LEAST_BYTES, 0), Some(16 * LEAST_BYTES));
        region.refuse(16 * LEAST_BYTES, 1);
        assert_eq!(wants(&mut region, 12 * LEAST_BYTES, 1), None);
        assert_eq!(wants(&mut region, 20 * LEAST_BYTES, 1), None);
        assert_eq!(wants(&mut region, 5 * LEAST_BYTES, 1), Some(8 * LEAST_BYTES));
        assert_eq!(wants(&mut region, 12 * LEAST_BYTES, 2), Some(16 * LEAST_BYTES));
        region.restart();
        assert_eq!(region.wanted(2), None);
    }
}
