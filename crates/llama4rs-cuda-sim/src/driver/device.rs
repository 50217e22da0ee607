//! Devices and contexts.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::Ordering;

use super::state::{current, driver, in_context, initialise, set_current, PRIMARY};
use super::{code, entry_points, put, put_text};
use crate::device::{DRIVER_VERSION, MULTIPROCESSORS, NAME};

/// Bytes of shared memory of a block unless a kernel opts in to more.
pub const SHARED_DEFAULT: usize = 48 << 10;
/// Threads of a block.
pub const MAX_THREADS: u32 = 1024;
/// Threads of a multiprocessor.
pub const RESIDENT_THREADS: u32 = 2048;

/// Bytes of shared memory of a block for kernels that opt in.
pub fn shared_most(capability: (i32, i32)) -> usize {
    match capability {
        (8, 0) => 163 << 10,
        (8, 7) => 163 << 10,
        (8, _) | (12, _) => 99 << 10,
        (9.., _) => 227 << 10,
        _ => 96 << 10,
    }
}

/// Bytes of shared memory of a multiprocessor.
pub fn shared_multiprocessor(capability: (i32, i32)) -> usize {
    shared_most(capability) + 1024
}

fn attribute(number: c_int, capability: (i32, i32), memory: u64) -> c_int {
    match number {
        1 => MAX_THREADS as c_int,
        2 | 3 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65535,
        8 => SHARED_DEFAULT as c_int,
        9 => 65536,
        10 => 32,
        11 => i32::MAX,
        12 => 65536,
        13 | 36 => 1_000_000,
        14 => 512,
        16 => MULTIPROCESSORS as c_int,
        19 => 1,
        31 | 40 | 41 => 1,
        37 => 1024,
        38 => (memory >> 6).min(4 << 20) as c_int,
        39 => RESIDENT_THREADS as c_int,
        // Concurrent, cooperative, host pointers in kernels, memory pools, managed.
        75 => capability.0,
        76 => capability.1,
        78 | 91 | 95 | 115 => 1,
        81 => shared_multiprocessor(capability) as c_int,
        82 => 65536,
        97 => shared_most(capability) as c_int,
        106 => 32,
        111 => 1024,
        _ => 0,
    }
}

fn check_device(device: c_int) -> super::Answer {
    if device == 0 {
        Ok(())
    } else {
        Err(code::INVALID_DEVICE)
    }
}

entry_points! {
    /// Starts the driver.
    fn cuInit(_flags: c_uint) {
        initialise()
    }

    /// Version of the driver.
    fn cuDriverGetVersion(version: *mut c_int) {
        // SAFETY: the caller's pointer, as the driver API demands; so throughout.
        unsafe { put(version, DRIVER_VERSION) }
    }

    /// Private tables of functions: none. NVRTC asks, and falls over if it cannot ask.
    fn cuGetExportTable(table: *mut *const c_void, _id: *const c_void) {
        // SAFETY: as above.
        unsafe { put(table, std::ptr::null())? };
        Err(code::NOT_FOUND)
    }

    /// Number of devices: one.
    fn cuDeviceGetCount(count: *mut c_int) {
        driver()?;
        // SAFETY: as above.
        unsafe { put(count, 1) }
    }

    /// The device of a number.
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        driver()?;
        check_device(ordinal)?;
        // SAFETY: as above.
        unsafe { put(device, ordinal) }
    }

    /// Name of the device.
    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) {
        check_device(device)?;
        let length = usize::try_from(length).map_err(|_| code::INVALID_VALUE)?;
        if name.is_null() || length == 0 {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: the caller's buffer has `length` bytes.
        unsafe { put_text(NAME, name.cast(), length) };
        Ok(())
    }

    /// An identity of the device.
    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) {
        check_device(device)?;
        // SAFETY: as above.
        unsafe { put(uuid, *b"llama4rs-sim-gpu") }
    }

    /// An identity of the device.
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) {
        check_device(device)?;
        // SAFETY: as above.
        unsafe { put(uuid, *b"llama4rs-sim-gpu") }
    }

    /// Bytes of memory.
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        check_device(device)?;
        // SAFETY: as above.
        unsafe { put(bytes, driver()?.settings.memory as usize) }
    }

    /// A property of the device; 0 for those that do not matter here.
    fn cuDeviceGetAttribute(value: *mut c_int, number: c_int, device: c_int) {
        check_device(device)?;
        let settings = &driver()?.settings;
        // SAFETY: as above.
        unsafe { put(value, attribute(number, settings.capability, settings.memory)) }
    }

    /// Version of the device, in the old form.
    fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, device: c_int) {
        check_device(device)?;
        let capability = driver()?.settings.capability;
        // SAFETY: as above.
        unsafe {
            put(major, capability.0)?;
            put(minor, capability.1)
        }
    }

    /// Takes a share of the primary context.
    fn cuDevicePrimaryCtxRetain(context: *mut u64, device: c_int) {
        check_device(device)?;
        driver()?.retained.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { put(context, PRIMARY) }
    }

    /// Gives a share of the primary context back; the last one takes everything with it.
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) {
        check_device(device)?;
        let driver = driver()?;
        match driver.retained.fetch_sub(1, Ordering::Relaxed) {
            0 => {
                driver.retained.store(0, Ordering::Relaxed);
                return Err(code::INVALID_CONTEXT);
            }
            1 => driver.end_context(),
            _ => {}
        }
        Ok(())
    }

    /// Whether the primary context is in use.
    fn cuDevicePrimaryCtxGetState(device: c_int, flags: *mut c_uint, active: *mut c_int) {
        check_device(device)?;
        let held = driver()?.retained.load(Ordering::Relaxed) > 0;
        // SAFETY: as above.
        unsafe {
            put(flags, 0)?;
            put(active, c_int::from(held))
        }
    }

    /// Makes a context current in this thread.
    fn cuCtxSetCurrent(context: u64) {
        driver()?;
        if context != 0 && context != PRIMARY {
            return Err(code::INVALID_CONTEXT);
        }
        set_current(context);
        Ok(())
    }

    /// The context that is current in this thread.
    fn cuCtxGetCurrent(context: *mut u64) {
        driver()?;
        // SAFETY: as above.
        unsafe { put(context, current()) }
    }

    /// The device of the current context.
    fn cuCtxGetDevice(device: *mut c_int) {
        in_context()?;
        // SAFETY: as above.
        unsafe { put(device, 0) }
    }

    /// Waits for all work; it is done already.
    fn cuCtxSynchronize() {
        let driver = in_context()?;
        driver.forbid_while_capturing("cuCtxSynchronize")?;
        driver.memory.settle();
        Ok(())
    }

    /// Sets a limit; none matters here.
    fn cuCtxSetLimit(_limit: c_int, _value: usize) {
        in_context().map(|_| ())
    }

    /// A limit; none matters here.
    fn cuCtxGetLimit(value: *mut usize, _limit: c_int) {
        in_context()?;
        // SAFETY: as above.
        unsafe { put(value, 0) }
    }

    /// Sets flags; none matters here.
    fn cuCtxSetFlags(_flags: c_uint) {
        in_context().map(|_| ())
    }

    /// Prefers a cache; there is none.
    fn cuCtxSetCacheConfig(_config: c_int) {
        in_context().map(|_| ())
    }

    /// The preferred cache; there is none.
    fn cuCtxGetCacheConfig(config: *mut c_int) {
        in_context()?;
        // SAFETY: as above.
        unsafe { put(config, 0) }
    }

    /// Priorities that streams may have.
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        in_context()?;
        // SAFETY: as above.
        unsafe {
            put(least, 0)?;
            put(greatest, -5)
        }
    }

    /// Contexts besides the primary one are not offered.
    fn cuCtxCreate_v4(_context: *mut u64, _params: *mut c_void, _flags: c_uint, _device: c_int) {
        driver()?.refuse(code::NOT_SUPPORTED, "only the primary context exists")
    }

    /// Contexts besides the primary one are not offered.
    fn cuCtxDestroy_v2(_context: u64) {
        driver()?.refuse(code::NOT_SUPPORTED, "only the primary context exists")
    }

    /// Begins a profile; there is none.
    fn cuProfilerStart() {
        driver().map(|_| ())
    }

    /// Ends a profile; there is none.
    fn cuProfilerStop() {
        driver().map(|_| ())
    }
}

impl super::state::Driver {
    /// Everything that the context owned goes with it.
    fn end_context(&self) {
        let left = self.memory.live_buffers();
        if self.settings.leaks {
            for r in &left {
                let size = r.end - r.start;
                self.note(format!("allocation {} of {size} bytes was never freed", r.number));
            }
        }
        left.iter().for_each(|r| {
            self.memory.free(r.start);
        });
        self.modules.drop_if(|_| true);
        self.functions.drop_if(|_| true);
        self.streams.drop_if(|_| true);
        self.events.drop_if(|_| true);
        self.graphs.drop_if(|_| true);
        self.executables.drop_if(|_| true);
    }
}
