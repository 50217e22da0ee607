//! Allocations, copies, fills.

use std::alloc::{alloc_zeroed, dealloc, Layout};
use std::ffi::{c_int, c_uchar, c_uint, c_ushort, c_void};

use super::state::{in_context, Driver};
use super::work::{HostPointer, Work};
use super::{code, entry_points, put, Answer};
use crate::memory::Purpose;

/// Host allocations begin at a page.
const PAGE: usize = 4096;

impl Driver {
    fn allocate(&self, to: *mut u64, bytes: usize) -> Answer {
        if bytes == 0 {
            return self.refuse(code::INVALID_VALUE, "an allocation of 0 bytes");
        }
        match self.memory.allocate(bytes as u64, Purpose::Buffer) {
            // SAFETY: the caller's pointer, as the driver API demands.
            Some(address) => unsafe { put(to, address) },
            None => {
                let (total, free) = self.memory.room();
                let why = format!("no room for {bytes} bytes: {free} of {total} are free");
                self.refuse(code::OUT_OF_MEMORY, why)
            }
        }
    }

    fn free(&self, address: u64) -> Answer {
        let known = self.memory.region(address, 1);
        if known.is_some_and(|r| r.start == address && r.purpose == Purpose::Buffer) {
            self.memory.free(address);
            return Ok(());
        }
        let near = self.memory.describe(address);
        self.refuse(
            code::INVALID_VALUE,
            format!("free of {address:#x}, which is no allocation: {near}"),
        )
    }

    fn allocate_host(&self, to: *mut *mut c_void, bytes: usize) -> Answer {
        let layout =
            Layout::from_size_align(bytes.max(1), PAGE).map_err(|_| code::INVALID_VALUE)?;
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(code::OUT_OF_MEMORY);
        }
        self.host.lock().unwrap_or_else(|e| e.into_inner()).insert(memory as u64, bytes.max(1));
        self.memory.register_host(memory as u64, bytes as u64);
        // SAFETY: the caller's pointer.
        unsafe { put(to, memory.cast()) }
    }

    fn free_host(&self, memory: *mut c_void) -> Answer {
        let mut host = self.host.lock().unwrap_or_else(|e| e.into_inner());
        let Some(bytes) = host.remove(&(memory as u64)) else {
            drop(host);
            return self
                .refuse(code::INVALID_VALUE, "free of host memory that was not allocated here");
        };
        self.memory.free(memory as u64);
        let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| code::INVALID_VALUE)?;
        // SAFETY: it was allocated with this layout and is in nobody's table any more.
        unsafe { dealloc(memory.cast(), layout) };
        Ok(())
    }

    /// Copies before and after which all is done; not while capturing in this thread.
    fn copy_now(&self, name: &str, work: Work) -> Answer {
        self.forbid_while_capturing(name)?;
        self.run(&work)
    }
}

fn copy_in(to: u64, from: *const c_void, bytes: usize) -> Work {
    Work::CopyIn { to, from: HostPointer(from.cast_mut().cast()), bytes: bytes as u64 }
}

fn copy_out(to: *mut c_void, from: u64, bytes: usize) -> Work {
    Work::CopyOut { to: HostPointer(to.cast()), from, bytes: bytes as u64 }
}

fn copy_within(to: u64, from: u64, bytes: usize) -> Work {
    Work::CopyWithin { to, from, bytes: bytes as u64 }
}

fn fill(to: u64, value: u32, width: usize, count: usize) -> Work {
    Work::Fill { to, value, width, count: count as u64 }
}

entry_points! {
    /// Bytes that are free, and bytes in all.
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let (all, room) = in_context()?.memory.room();
        // SAFETY: the caller's pointers, as the driver API demands; so throughout.
        unsafe {
            put(free, room as usize)?;
            put(total, all as usize)
        }
    }

    /// Allocates device memory.
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        let driver = in_context()?;
        driver.forbid_while_capturing("cuMemAlloc")?;
        driver.allocate(address, bytes)
    }

    /// Allocates device memory in the order of a stream.
    fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: u64) {
        let driver = in_context()?;
        driver.forbid_in_capture(stream, "cuMemAllocAsync")?;
        driver.allocate(address, bytes)
    }

    /// Allocates device memory of the only pool.
    fn cuMemAllocFromPoolAsync(address: *mut u64, bytes: usize, _pool: u64, stream: u64) {
        let driver = in_context()?;
        driver.forbid_in_capture(stream, "cuMemAllocFromPoolAsync")?;
        driver.allocate(address, bytes)
    }

    /// Frees device memory.
    fn cuMemFree_v2(address: u64) {
        let driver = in_context()?;
        driver.forbid_while_capturing("cuMemFree")?;
        driver.free(address)
    }

    /// Frees device memory in the order of a stream.
    fn cuMemFreeAsync(address: u64, stream: u64) {
        let driver = in_context()?;
        driver.forbid_in_capture(stream, "cuMemFreeAsync")?;
        driver.free(address)
    }

    /// Memory that moves between host and device is not offered.
    fn cuMemAllocManaged(_address: *mut u64, _bytes: usize, _flags: c_uint) {
        in_context()?.refuse(code::NOT_SUPPORTED, "managed memory is not supported")
    }

    /// Allocates host memory that the device can reach.
    fn cuMemHostAlloc(memory: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        in_context()?.allocate_host(memory, bytes)
    }

    /// Allocates host memory that the device can reach.
    fn cuMemAllocHost_v2(memory: *mut *mut c_void, bytes: usize) {
        in_context()?.allocate_host(memory, bytes)
    }

    /// Frees host memory.
    fn cuMemFreeHost(memory: *mut c_void) {
        in_context()?.free_host(memory)
    }

    /// Lets the device reach memory of the program.
    fn cuMemHostRegister_v2(memory: *mut c_void, bytes: usize, _flags: c_uint) {
        in_context()?.memory.register_host(memory as u64, bytes as u64);
        Ok(())
    }

    /// Ends that.
    fn cuMemHostUnregister(memory: *mut c_void) {
        in_context()?.memory.free(memory as u64).map(|_| ()).ok_or(713)
    }

    /// The device's address of host memory: the same.
    fn cuMemHostGetDevicePointer_v2(address: *mut u64, memory: *mut c_void, _flags: c_uint) {
        in_context()?.memory.region(memory as u64, 1).ok_or(code::INVALID_VALUE)?;
        // SAFETY: as above.
        unsafe { put(address, memory as u64) }
    }

    /// Start and size of the allocation that holds an address.
    fn cuMemGetAddressRange_v2(start: *mut u64, bytes: *mut usize, address: u64) {
        let region = in_context()?.memory.region(address, 1).ok_or(code::NOT_FOUND)?;
        // SAFETY: as above; either pointer may be null.
        unsafe {
            if !start.is_null() {
                put(start, region.start)?;
            }
            if !bytes.is_null() {
                put(bytes, (region.end - region.start) as usize)?;
            }
        }
        Ok(())
    }

    /// Copies to the device.
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) {
        in_context()?.copy_now("cuMemcpyHtoD", copy_in(to, from, bytes))
    }

    /// Copies from the device.
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) {
        in_context()?.copy_now("cuMemcpyDtoH", copy_out(to, from, bytes))
    }

    /// Copies on the device.
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        in_context()?.copy_now("cuMemcpyDtoD", copy_within(to, from, bytes))
    }

    /// Copies to the device in the order of a stream.
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: u64) {
        in_context()?.submit(stream, copy_in(to, from, bytes))
    }

    /// Copies from the device in the order of a stream.
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: u64) {
        in_context()?.submit(stream, copy_out(to, from, bytes))
    }

    /// Copies on the device in the order of a stream.
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) {
        in_context()?.submit(stream, copy_within(to, from, bytes))
    }

    /// Copies between contexts; there is one.
    fn cuMemcpyPeerAsync(to: u64, _target: u64, from: u64, _source: u64, bytes: usize, stream: u64) {
        in_context()?.submit(stream, copy_within(to, from, bytes))
    }

    /// Fills bytes.
    fn cuMemsetD8_v2(to: u64, value: c_uchar, count: usize) {
        in_context()?.copy_now("cuMemsetD8", fill(to, value.into(), 1, count))
    }

    /// Fills 16-bit values.
    fn cuMemsetD16_v2(to: u64, value: c_ushort, count: usize) {
        in_context()?.copy_now("cuMemsetD16", fill(to, value.into(), 2, count))
    }

    /// Fills 32-bit values.
    fn cuMemsetD32_v2(to: u64, value: c_uint, count: usize) {
        in_context()?.copy_now("cuMemsetD32", fill(to, value, 4, count))
    }

    /// Fills bytes in the order of a stream.
    fn cuMemsetD8Async(to: u64, value: c_uchar, count: usize, stream: u64) {
        in_context()?.submit(stream, fill(to, value.into(), 1, count))
    }

    /// Fills 16-bit values in the order of a stream.
    fn cuMemsetD16Async(to: u64, value: c_ushort, count: usize, stream: u64) {
        in_context()?.submit(stream, fill(to, value.into(), 2, count))
    }

    /// Fills 32-bit values in the order of a stream.
    fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: u64) {
        in_context()?.submit(stream, fill(to, value, 4, count))
    }

    /// The pool of the device: the only one.
    fn cuDeviceGetDefaultMemPool(pool: *mut u64, _device: c_int) {
        // SAFETY: as above.
        unsafe { put(pool, 0x20) }
    }

    /// The pool of the device: the only one.
    fn cuDeviceGetMemPool(pool: *mut u64, _device: c_int) {
        // SAFETY: as above.
        unsafe { put(pool, 0x20) }
    }

    /// Sets the pool of the device; there is only one.
    fn cuDeviceSetMemPool(_device: c_int, _pool: u64) {
        Ok(())
    }

    /// Sets a property of a pool; none matters here.
    fn cuMemPoolSetAttribute(_pool: u64, _attribute: c_int, _value: *mut c_void) {
        Ok(())
    }

    /// A property of a pool, all of eight bytes here.
    fn cuMemPoolGetAttribute(_pool: u64, _attribute: c_int, value: *mut u64) {
        // SAFETY: as above.
        unsafe { put(value, 0) }
    }

    /// Gives unused memory of a pool back; there is none.
    fn cuMemPoolTrimTo(_pool: u64, _bytes: usize) {
        Ok(())
    }
}
