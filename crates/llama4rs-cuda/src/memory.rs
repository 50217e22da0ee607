//! Device memory: typed buffers that give themselves back.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUresult};
use cudarc::driver::{result, DriverError};
use llama4rs_tensor::{Error, Result};

use crate::error::During;
use crate::gpu::Gpu;
use crate::step::Home;

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
    /// How often memory went back to the driver.
    releases: u64,
}

impl FreeMemory {
    fn take(&mut self, bytes: usize) -> Option<CUdeviceptr> {
        self.blocks.get_mut(&bytes)?.pop()
    }

    pub fn put(&mut self, bytes: usize, address: CUdeviceptr) {
        self.blocks.entry(bytes).or_default().push(address);
    }

    /// How often memory went back to the driver.
    pub fn releases(&self) -> u64 {
        self.releases
    }

    /// Gives everything to the driver; the stream must have finished.
    pub fn release(&mut self) {
        self.releases += u64::from(!self.blocks.is_empty());
        for address in std::mem::take(&mut self.blocks).into_values().flatten() {
            // SAFETY: allocated by `Gpu::allocate`, owned by this list alone. A
            // failure has nobody to be told.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}

/// Sizes are rounded up by an eighth at most, large ones by 2 MiB, so that a buffer fits later wishes.
pub(crate) fn rounded(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 16).clamp(512, 2 << 20);
    bytes.max(1).next_multiple_of(step)
}

/// `len` values on the device.
pub(crate) struct Buffer<T> {
    gpu: Arc<Gpu>,
    address: CUdeviceptr,
    /// Bytes that were asked of its home.
    held: usize,
    home: Home,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// Room for `len` values, which are anything; `what` names them in an error. What is made within a
    /// step goes with it.
    pub fn new(gpu: &Arc<Gpu>, len: usize, what: &'static str) -> Result<Self> {
        let held = Self::bytes_for(len, what)?;
        match gpu.take_scratch(held) {
            Some(place) => Ok(Self::at(gpu, place, held, len)),
            None => Self::lasting(gpu, len, what),
        }
    }

    /// The same for values that may outlive the step in which they are made.
    pub fn lasting(gpu: &Arc<Gpu>, len: usize, what: &'static str) -> Result<Self> {
        let held = Self::bytes_for(len, what)?;
        let address = gpu.allocate(held, what)?;
        Ok(Self::at(gpu, (address, Home::Free), held, len))
    }

    /// The same for values that the host will [read](Self::read), before the next step begins.
    pub fn result(gpu: &Arc<Gpu>, len: usize, what: &'static str) -> Result<Self> {
        let held = Self::bytes_for(len, what)?;
        match gpu.take_result(len * std::mem::size_of::<T>()) {
            Some(place) => Ok(Self::at(gpu, place, held, len)),
            None => Self::lasting(gpu, len, what),
        }
    }

    /// A copy of `values` among the inputs of the step that this thread records, with room for
    /// `room` values; `None` without a step. See [`Gpu::take_input`].
    pub fn input(
        gpu: &Arc<Gpu>,
        name: &'static str,
        values: &[T],
        room: usize,
        repeats: bool,
    ) -> Option<Self> {
        // SAFETY: plain values are bytes.
        let bytes = unsafe {
            std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values))
        };
        let place = gpu.take_input(name, bytes, room * std::mem::size_of::<T>(), repeats)?;
        Some(Self::at(gpu, place, 0, values.len()))
    }

    fn at(gpu: &Arc<Gpu>, (address, home): (CUdeviceptr, Home), held: usize, len: usize) -> Self {
        Self { gpu: gpu.clone(), address, held, home, len, values: PhantomData }
    }

    fn bytes_for(len: usize, what: &'static str) -> Result<usize> {
        let size = std::mem::size_of::<T>();
        let fits = |bytes: &usize| *bytes <= isize::MAX as usize / 2;
        let bytes = len.checked_mul(size).filter(fits);
        let refused = || Error::OutOfMemory { what, bytes: len.saturating_mul(size) };
        bytes.map(rounded).ok_or_else(refused)
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
        self.gpu.flush()?;
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
        if let Home::Results(step) = self.home {
            let bytes = count * std::mem::size_of::<T>();
            // SAFETY: plain values may be any bytes, and zeros are some; there is room for them.
            let room = unsafe {
                std::ptr::write_bytes(values.as_mut_ptr(), 0, count);
                std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), bytes)
            };
            self.gpu.read_result(step, self.offset(start), room)?;
            // SAFETY: written above.
            unsafe { values.set_len(count) };
            return Ok(values);
        }
        self.gpu.flush()?;
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
        self.gpu.flush()?;
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
        self.gpu.give_back(self.home, self.held, self.address);
    }
}

impl Gpu {
    /// `bytes` bytes of memory, of those that were given back or of the driver's.
    pub fn allocate(&self, bytes: usize, what: &'static str) -> Result<CUdeviceptr> {
        self.bind()?;
        if let Some(address) = self.free_memory().take(bytes) {
            return Ok(address);
        }
        let address = match allocate(bytes) {
            Err(error) if is_out_of_memory(error) => {
                // What other sizes keep may be enough.
                self.synchronize()?;
                self.free_memory().release();
                allocate(bytes)
            }
            outcome => outcome,
        };
        match address {
            Err(error) if is_out_of_memory(error) => Err(Error::OutOfMemory { what, bytes }),
            outcome => outcome.during("allocate memory"),
        }
    }
}

/// Memory of the host that the device copies by itself.
pub(crate) struct Pinned {
    memory: *mut c_void,
    bytes: usize,
}

// SAFETY: the memory belongs to the value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `bytes` zeros. A context is current, here and when it is dropped.
    pub fn new(bytes: usize) -> Result<Self> {
        let refused = |_| Error::OutOfMemory { what: "pinned memory", bytes };
        // SAFETY: a context is current; freed in `drop`, cleared before anybody reads it.
        unsafe {
            let memory = result::malloc_host(bytes, 0).map_err(refused)?;
            std::ptr::write_bytes(memory.cast::<u8>(), 0, bytes);
            Ok(Self { memory, bytes })
        }
    }

    /// All of it.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated and cleared in `new`.
        unsafe { std::slice::from_raw_parts_mut(self.memory.cast(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`. A failure has nobody to be told.
        let _ = unsafe { result::free_host(self.memory) };
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
