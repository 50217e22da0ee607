//! Bringing bytes to the device: large ones through pinned memory, small ones once.
//!
//! Pinned memory is filled by several threads: the device takes more than one of them can copy from mapped files.

use std::sync::Arc;

use cudarc::driver::{result, sys};
use llama4rs_tensor::Result;
use rayon::prelude::*;

use crate::error::During;
use crate::gpu::Gpu;
use crate::memory::{Buffer, Pinned};

const STAGE_BYTES: usize = 32 << 20;
/// What a thread copies at once.
const SHARE_BYTES: usize = 1 << 20;
/// Less than this is left to the driver.
const LEAST_STAGED: usize = 1 << 20;

/// Two pieces of pinned memory: one is filled while the other is copied.
pub(crate) struct Staging {
    stages: [Stage; 2],
    /// The one that was filled longer ago.
    next: usize,
}

struct Stage {
    memory: Pinned,
    copied: sys::CUevent,
}

// SAFETY: the event belongs to the stage alone.
unsafe impl Send for Stage {}

impl Stage {
    fn new() -> Result<Self> {
        let memory = Pinned::new(STAGE_BYTES)?;
        let copied = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .during("make an event")?;
        Ok(Self { memory, copied })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // SAFETY: made in `new`; the stream has finished when staging goes. A
        // failure has nobody to be told.
        let _ = unsafe { result::event::destroy(self.copied) };
    }
}

/// Copies `bytes` to the beginning of `to`; they are on their way when this returns.
pub(crate) fn upload(gpu: &Gpu, bytes: &[u8], to: &mut Buffer<u8>) -> Result<()> {
    assert!(bytes.len() <= to.len(), "more bytes than the buffer holds");
    if bytes.len() <= LEAST_STAGED {
        return to.write(bytes);
    }
    gpu.bind()?;
    let mut staging = gpu.staging.lock().unwrap_or_else(|p| p.into_inner());
    let Staging { stages, next } = match &mut *staging {
        Some(staging) => staging,
        empty => empty.insert(Staging { stages: [Stage::new()?, Stage::new()?], next: 0 }),
    };
    for (i, part) in bytes.chunks(STAGE_BYTES).enumerate() {
        let stage = &mut stages[*next];
        *next ^= 1;
        let pinned = &mut stage.memory.bytes()[..part.len()];
        // SAFETY: the stage's last copy has finished once its event has (an event never
        // recorded has); the target range is inside of the buffer.
        unsafe {
            result::event::synchronize(stage.copied).during("wait for a copy")?;
            let shares = pinned.par_chunks_mut(SHARE_BYTES).zip(part.par_chunks(SHARE_BYTES));
            shares.for_each(|(to, from)| to.copy_from_slice(from));
            result::memcpy_htod_async(to.offset(i * STAGE_BYTES), pinned, gpu.stream())
                .during("copy to the device")?;
            result::event::record(stage.copied, gpu.stream()).during("record an event")?;
        }
    }
    Ok(())
}

/// Brings `bytes` in pieces of whole `unit`s, each to memory that is used again once `arrived`, which is told
/// the piece's first unit, has queued what becomes of it.
pub(crate) fn upload_in_pieces(
    gpu: &Arc<Gpu>,
    bytes: &[u8],
    unit: usize,
    mut arrived: impl FnMut(usize, &Buffer<u8>) -> Result<()>,
) -> Result<()> {
    let units = (STAGE_BYTES / unit).max(1);
    for (i, part) in bytes.chunks(units * unit).enumerate() {
        let room = bytes.len().min(units * unit);
        let mut piece = Buffer::lasting(gpu, room, "weights on their way")?;
        upload(gpu, part, &mut piece)?;
        arrived(i * units, &piece)?;
    }
    Ok(())
}

/// How many lists are remembered: slots and spans of two pools, ids and rows, twice.
const REMEMBERED: usize = 12;

/// Lists that every layer of a step brings again: the device has them already.
#[derive(Default)]
pub(crate) struct Uploads {
    /// Oldest first.
    lists: Vec<(Vec<u32>, Arc<Buffer<u32>>)>,
}

impl Uploads {
    /// `list` on the device.
    pub fn get(&mut self, gpu: &Arc<Gpu>, list: &[u32]) -> Result<Arc<Buffer<u32>>> {
        let known = self.lists.iter().position(|(known, _)| known == list);
        let entry = match known {
            Some(index) => self.lists.remove(index),
            None => {
                let mut buffer = Buffer::lasting(gpu, list.len(), "lists of a step")?;
                buffer.write(list)?;
                if self.lists.len() == REMEMBERED {
                    self.lists.remove(0);
                }
                (list.to_vec(), Arc::new(buffer))
            }
        };
        let buffer = entry.1.clone();
        self.lists.push(entry);
        Ok(buffer)
    }
}
