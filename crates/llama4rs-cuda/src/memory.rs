//! Device memory: typed buffers that give themselves back.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUresult};
use cudarc::driver::{result, DriverError};
use llama4rs_tensor::{Error, Result};

use crate::error::During;
use crate::gpu::Gpu;

/// Types whose values are the same bytes on host and device.
///
/// # Safety
/// Plain data without padding or invalid bit patterns.
pub(crate) unsafe trait Plain: Copy + 'static {}
// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for u32 {}
// SAFETY: numbers.
unsafe impl Plain for u16 {}
// SAFETY: numbers.
unsafe impl Plain for u8 {}

/// Memory that was given back, by size; the next buffer of the size takes it.
///
/// A buffer's last use was queued on the one stream before it came here, and its
/// next use is queued after, so nothing has to wait.
#[derive(Default)]
pub(crate) struct FreeMemory {
    blocks: BTreeMap<usize, Vec<CUdeviceptr>>,
}

impl FreeMemory {
    fn take(&mut self, bytes: usize) -> Option<CUdeviceptr> {
        self.blocks.get_mut(&bytes)?.pop()
    }

    fn put(&mut self, bytes: usize, address: CUdeviceptr) {
        self.blocks.entry(bytes).or_default().push(address);
    }

    /// Gives everything to the driver; the stream must have finished.
    pub fn release(&mut self) {
        for address in std::mem::take(&mut self.blocks).into_values().flatten() {
            // SAFETY: allocated by `Buffer::new`, owned by this list alone. A
            // failure has nobody to be told.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}

/// Sizes are rounded up by an eighth at most, large ones by 2 MiB, so that a buffer fits later wishes.
fn rounded(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 16).clamp(512, 2 << 20);
    bytes.max(1).next_multiple_of(step)
}

/// `len` values on the device.
pub(crate) struct Buffer<T> {
    gpu: Arc<Gpu>,
    address: CUdeviceptr,
    /// Bytes that were asked of the driver.
    held: usize,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// Room for `len` values, which are anything; `what` names them in an error.
    pub fn new(gpu: &Arc<Gpu>, len: usize, what: &'static str) -> Result<Self> {
        let refused =
            || Error::OutOfMemory { what, bytes: len.saturating_mul(std::mem::size_of::<T>()) };
        let bytes = len
            .checked_mul(std::mem::size_of::<T>())
            .filter(|&bytes| bytes <= isize::MAX as usize / 2)
            .ok_or_else(refused)?;
        let held = rounded(bytes);
        gpu.bind()?;
        let mut free = gpu.free.lock().unwrap_or_else(|p| p.into_inner());
        let reused = free.take(held);
        let address = match reused.map_or_else(|| allocate(held), Ok) {
            Err(error) if is_out_of_memory(error) => {
                // What other sizes keep may be enough.
                gpu.synchronize()?;
                free.release();
                allocate(held)
            }
            outcome => outcome,
        };
        let address = match address {
            Err(error) if is_out_of_memory(error) => return Err(refused()),
            outcome => outcome.during("allocate memory")?,
        };
        Ok(Self { gpu: gpu.clone(), address, held, len, values: PhantomData })
    }

    /// A copy of `values`, queued; the values may be forgotten afterwards.
    pub fn of(gpu: &Arc<Gpu>, values: &[T], what: &'static str) -> Result<Self> {
        let mut buffer = Self::new(gpu, values.len(), what)?;
        buffer.write(values)?;
        Ok(buffer)
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where the values are on the device.
    pub fn address(&self) -> CUdeviceptr {
        self.address
    }

    /// Queues a copy of `values` to the beginning.
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        self.write_at(0, values)
    }

    /// Queues a copy of `values` to value `start` and on.
    pub fn write_at(&mut self, start: usize, values: &[T]) -> Result<()> {
        assert!(start + values.len() <= self.len, "more values than the buffer holds");
        if values.is_empty() {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: the buffer has room. The driver copies pageable memory aside
        // before it returns, so `values` need not live on.
        unsafe { result::memcpy_htod_async(self.offset(start), values, self.gpu.stream()) }
            .during("copy to the device")
    }

    /// `count` values from `start` on, after all queued work.
    pub fn read(&self, start: usize, count: usize) -> Result<Vec<T>> {
        assert!(start + count <= self.len, "more values than the buffer holds");
        let mut values: Vec<T> = Vec::with_capacity(count);
        self.gpu.bind()?;
        if count > 0 {
            // SAFETY: `values` has room for `count` plain values, which the copy
            // writes before `synchronize` returns.
            unsafe {
                let room = std::slice::from_raw_parts_mut(values.as_mut_ptr(), count);
                result::memcpy_dtoh_async(room, self.offset(start), self.gpu.stream())
                    .during("copy from the device")?;
            }
        }
        self.gpu.synchronize()?;
        // SAFETY: written above.
        unsafe { values.set_len(count) };
        Ok(values)
    }

    /// Queues zeros for all values.
    pub fn clear(&mut self) -> Result<()> {
        self.gpu.bind()?;
        let bytes = self.len * std::mem::size_of::<T>();
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range is the buffer.
        unsafe { result::memset_d8_async(self.address, 0, bytes, self.gpu.stream()) }
            .during("clear memory")
    }

    /// Where value `index` is on the device.
    pub fn offset(&self, index: usize) -> CUdeviceptr {
        self.address + (index * std::mem::size_of::<T>()) as CUdeviceptr
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.gpu.free.lock().unwrap_or_else(|p| p.into_inner()).put(self.held, self.address);
    }
}

fn allocate(bytes: usize) -> std::result::Result<CUdeviceptr, DriverError> {
    // SAFETY: a context is current; the address is owned by the buffer that asks.
    unsafe { result::malloc_sync(bytes) }
}

fn is_out_of_memory(error: DriverError) -> bool {
    error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_a_little() {
        assert_eq!(rounded(0), 512);
        assert_eq!(rounded(1), 512);
        assert_eq!(rounded(513), 1024);
        for bytes in [1usize, 700, 4097, 100_000, 1 << 20, (1 << 30) + 1, 40 << 30] {
            let held = rounded(bytes);
            assert!(held >= bytes && held <= bytes + bytes / 8 + 512, "{bytes}: {held}");
            assert_eq!(rounded(held), held);
        }
    }
}
