//! Sectors of device memory and wavefronts of shared memory.

use super::lanes::{lanes_of, Lanes};
use super::warp::Exec;
use crate::program::LANES;

const BANKS: usize = 32;

/// Different 32-byte sectors that the lanes touch.
fn sectors(addresses: &Lanes<u64>, bytes: u64, mask: u32) -> u64 {
    let each = bytes.div_ceil(32);
    let (mut last, mut count, mut sorted) = (u64::MAX, 0, true);
    for l in lanes_of(mask) {
        let sector = addresses[l] / 32;
        count += u64::from(sector != last) * each;
        sorted &= last == u64::MAX || sector >= last;
        last = sector;
    }
    if sorted {
        return count;
    }
    let mut all: Vec<u64> = lanes_of(mask).map(|l| addresses[l] / 32).collect();
    all.sort_unstable();
    all.dedup();
    all.len() as u64 * each
}

/// Passes over the banks: lanes of a phase that want different words of one bank
/// take turns. A phase is 32 lanes of up to 4 bytes, 16 of 8, or 8 of 16.
fn wavefronts(offsets: &Lanes<usize>, bytes: usize, mask: u32) -> u64 {
    let words = bytes.div_ceil(4);
    if mask == u32::MAX && (1..LANES).all(|l| offsets[l] == offsets[0] + l * bytes) {
        return words.max(1) as u64;
    }
    let lanes = 32 / words.min(8);
    let mut total = 0;
    for phase in 0..32 / lanes {
        let members = mask >> (phase * lanes) & ((1u64 << lanes) - 1) as u32;
        if members == 0 {
            continue;
        }
        // The words of each bank, as a short list.
        let (mut seen, mut counts) = ([usize::MAX; BANKS], [0u8; BANKS]);
        let mut more: Vec<usize> = Vec::new();
        for l in lanes_of(members) {
            let first = offsets[phase * lanes + l] / 4;
            for word in first..first + words {
                let bank = word % BANKS;
                if seen[bank] == word || counts[bank] > 1 && more.contains(&word) {
                    continue;
                }
                if counts[bank] > 0 {
                    more.push(word);
                } else {
                    seen[bank] = word;
                }
                counts[bank] += 1;
            }
        }
        total += u64::from(counts.iter().fold(0, |m, &c| m.max(c)));
    }
    total
}

impl Exec<'_, '_> {
    #[inline(always)]
    pub(super) fn count_read(&mut self, addresses: &Lanes<u64>, bytes: u64, mask: u32) {
        if self.env.checks.counters {
            self.b.counts.bytes_read += bytes * u64::from(mask.count_ones());
            self.b.counts.sectors_read += sectors(addresses, bytes, mask);
        }
        if self.env.checks.footprint {
            lanes_of(mask).for_each(|l| self.env.memory.note_read(addresses[l], bytes));
        }
    }

    #[inline(always)]
    pub(super) fn count_write(&mut self, addresses: &Lanes<u64>, bytes: u64, mask: u32) {
        if self.env.checks.counters {
            self.b.counts.bytes_written += bytes * u64::from(mask.count_ones());
            self.b.counts.sectors_written += sectors(addresses, bytes, mask);
        }
    }

    #[inline(always)]
    pub(super) fn count_shared(&mut self, offsets: &Lanes<usize>, bytes: usize, mask: u32) {
        if self.env.checks.counters {
            let ideal = (bytes * mask.count_ones() as usize).div_ceil(4 * BANKS) as u64;
            let passes = wavefronts(offsets, bytes, mask);
            self.b.counts.shared_wavefronts += passes;
            self.b.counts.shared_ideal += ideal.min(passes);
        }
    }
}
