//! What kernels did, counted.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Counts of one kernel over its launches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Launches.
    pub launches: u64,
    /// Blocks.
    pub blocks: u64,
    /// Instructions of warps.
    pub instructions: u64,
    /// Instructions of lanes.
    pub lane_instructions: u64,
    /// Bytes that lanes asked of device memory.
    pub bytes_read: u64,
    /// Bytes that lanes sent to device memory.
    pub bytes_written: u64,
    /// 32-byte sectors that these reads touched, per instruction of a warp.
    pub sectors_read: u64,
    /// Different sectors that each launch read, if footprints are taken.
    pub distinct_sectors: u64,
    /// The same for writes.
    pub sectors_written: u64,
    /// Passes over the banks of shared memory.
    pub shared_wavefronts: u64,
    /// The fewest passes that would have moved the same bytes.
    pub shared_ideal: u64,
}

impl Counts {
    /// Adds another count.
    pub fn add(&mut self, o: &Counts) {
        self.launches += o.launches;
        self.blocks += o.blocks;
        self.instructions += o.instructions;
        self.lane_instructions += o.lane_instructions;
        self.bytes_read += o.bytes_read;
        self.bytes_written += o.bytes_written;
        self.sectors_read += o.sectors_read;
        self.distinct_sectors += o.distinct_sectors;
        self.sectors_written += o.sectors_written;
        self.shared_wavefronts += o.shared_wavefronts;
        self.shared_ideal += o.shared_ideal;
    }
}

/// Counts by kernel, as JSON.
pub fn json(counts: &BTreeMap<String, Counts>) -> String {
    let mut out = String::from("{");
    for (i, (name, c)) in counts.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(
            out,
            "{comma}\"{name}\":{{\"launches\":{},\"blocks\":{},\"instructions\":{},\
             \"lane_instructions\":{},\"bytes_read\":{},\"bytes_written\":{},\
             \"sectors_read\":{},\"distinct_sectors\":{},\"sectors_written\":{},\
             \"shared_wavefronts\":{},\"shared_ideal\":{}}}",
            c.launches,
            c.blocks,
            c.instructions,
            c.lane_instructions,
            c.bytes_read,
            c.bytes_written,
            c.sectors_read,
            c.distinct_sectors,
            c.sectors_written,
            c.shared_wavefronts,
            c.shared_ideal
        );
    }
    out.push('}');
    out
}
