//! Launches and occupancy.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::device::{shared_multiprocessor, MAX_THREADS, RESIDENT_THREADS};
use super::module::Function;
use super::state::{in_context, Driver};
use super::work::{Launch, Work};
use super::{code, entry_points, put, Answer};
use crate::device::MULTIPROCESSORS;

/// Blocks of a multiprocessor.
const RESIDENT_BLOCKS: u32 = 32;

/// A launch's configuration as the driver API lays it out.
#[repr(C)]
pub struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    dynamic: c_uint,
    stream: u64,
    attributes: *const Attribute,
    count: c_uint,
}

/// An attribute of a launch.
#[repr(C)]
pub struct Attribute {
    id: c_uint,
    pad: [u8; 4],
    value: [u32; 16],
}

impl Driver {
    /// Whether launches may begin before those before them have ended.
    pub fn has_programmatic_launches(&self) -> bool {
        self.settings.capability >= (9, 0)
    }

    /// Blocks that a multiprocessor holds at once.
    fn occupancy(&self, function: &Function, threads: u32, dynamic: usize) -> u32 {
        let shared = function.kernel.shared_bytes + dynamic + 1024;
        let by_shared = shared_multiprocessor(self.settings.capability) / shared;
        let threads = threads.max(1).next_multiple_of(32);
        (RESIDENT_THREADS / threads).min(by_shared as u32).min(RESIDENT_BLOCKS)
    }

    fn check_launch(&self, f: &Function, launch: &Launch) -> Answer {
        let name = &f.kernel.name;
        let (grid, block) = (launch.grid, launch.block);
        let no = |code: i32, why: String| self.refuse(code, format!("launch of `{name}`: {why}"));
        let most = [i32::MAX as u32, 65535, 65535];
        if (0..3).any(|i| grid[i] == 0 || grid[i] > most[i]) {
            return no(code::INVALID_VALUE, format!("a grid of {grid:?} blocks"));
        }
        let threads = block.iter().map(|&n| u64::from(n)).product::<u64>();
        if threads == 0 || threads > u64::from(MAX_THREADS) || block[2] > 64 {
            return no(code::INVALID_VALUE, format!("blocks of {block:?} threads"));
        }
        if f.kernel.max_threads.is_some_and(|n| threads > u64::from(n)) {
            let bound = f.kernel.max_threads.unwrap_or(0);
            let why = format!("{threads} threads, but the launch bounds say {bound}");
            return no(code::LAUNCH_OUT_OF_RESOURCES, why);
        }
        let most = f.dynamic_most.load(Ordering::Relaxed);
        if launch.dynamic > most {
            let why = format!(
                "{} bytes of dynamic shared memory, but {most} are allowed: set \
                 MAX_DYNAMIC_SHARED_SIZE_BYTES",
                launch.dynamic
            );
            return no(code::INVALID_VALUE, why);
        }
        let blocks = grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let room = u64::from(self.occupancy(f, threads as u32, launch.dynamic)) * MULTIPROCESSORS;
        if launch.cooperative && blocks > room {
            let why = format!("{blocks} blocks in a cooperative launch, room for {room}");
            return no(code::COOPERATIVE_LAUNCH_TOO_LARGE, why);
        }
        Ok(())
    }

    /// # Safety
    /// `params` points to a pointer for each of the kernel's parameters, or `extra`
    /// names a buffer, as the driver API demands.
    unsafe fn launch(
        &self,
        function: u64,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic: usize,
        stream: u64,
        params: *const *const c_void,
        extra: *const *const c_void,
        [cooperative, programmatic]: [bool; 2],
    ) -> Answer {
        let function: Arc<Function> = self.functions.get(function)?;
        // SAFETY: as the caller promises.
        let params = unsafe { self.params(&function, params, extra)? };
        let launch = Launch {
            function: function.clone(),
            grid,
            block,
            dynamic,
            params,
            cooperative,
            programmatic,
        };
        self.check_launch(&function, &launch)?;
        self.submit(stream, Work::Launch(launch))
    }

    /// # Safety
    /// As for [`Self::launch`].
    unsafe fn params(
        &self,
        function: &Function,
        params: *const *const c_void,
        extra: *const *const c_void,
    ) -> Result<Vec<u8>, i32> {
        let kernel = &function.kernel;
        let mut out = vec![0; kernel.param_bytes];
        if !extra.is_null() {
            // 1: the buffer, 2: a pointer to its size, 0: the end.
            let (mut buffer, mut size, mut i) = (std::ptr::null::<u8>(), 0, 0);
            // SAFETY: the list ends with a null pointer.
            unsafe {
                while !(*extra.add(i)).is_null() {
                    match *extra.add(i) as usize {
                        1 => buffer = (*extra.add(i + 1)).cast(),
                        2 => size = *(*extra.add(i + 1)).cast::<usize>(),
                        _ => return Err(code::INVALID_VALUE),
                    }
                    i += 2;
                }
                if buffer.is_null() || size < out.len() {
                    let why = format!("`{}` takes {} bytes of parameters", kernel.name, out.len());
                    return self.refuse(code::INVALID_VALUE, why);
                }
                out.as_mut_ptr().copy_from_nonoverlapping(buffer, kernel.param_bytes);
            }
            return Ok(out);
        }
        if params.is_null() && !kernel.params.is_empty() {
            return self
                .refuse(code::INVALID_VALUE, format!("`{}` got no parameters", kernel.name));
        }
        for (i, &(offset, bytes)) in kernel.params.iter().enumerate() {
            // SAFETY: there is a pointer for each parameter, to a value of its size.
            unsafe {
                let from = *params.add(i);
                if from.is_null() {
                    return Err(code::INVALID_VALUE);
                }
                out[offset..offset + bytes]
                    .as_mut_ptr()
                    .copy_from_nonoverlapping(from.cast::<u8>(), bytes);
            }
        }
        Ok(out)
    }
}

entry_points! {
    /// Launches a kernel.
    fn cuLaunchKernel(
        function: u64,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        dynamic: c_uint,
        stream: u64,
        params: *const *const c_void,
        extra: *const *const c_void,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let driver = in_context()?;
        // SAFETY: the caller's parameters, as the driver API demands.
        unsafe { driver.launch(function, grid, block, dynamic as usize, stream, params, extra, [false; 2]) }
    }

    /// Launches a kernel whose blocks may wait for each other.
    fn cuLaunchCooperativeKernel(
        function: u64,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        dynamic: c_uint,
        stream: u64,
        params: *const *const c_void,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let (driver, none) = (in_context()?, std::ptr::null());
        // SAFETY: as above.
        unsafe { driver.launch(function, grid, block, dynamic as usize, stream, params, none, [true, false]) }
    }

    /// Launches a kernel with attributes: clusters are refused, hints ignored.
    fn cuLaunchKernelEx(
        config: *const Config,
        function: u64,
        params: *const *const c_void,
        extra: *const *const c_void,
    ) {
        let driver = in_context()?;
        if config.is_null() {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: the caller's configuration.
        let config = unsafe { &*config };
        let (mut cooperative, mut programmatic) = (false, false);
        for i in 0..config.count as usize {
            // SAFETY: the array has `count` elements.
            let attribute = unsafe { &*config.attributes.add(i) };
            match attribute.id {
                2 => cooperative = attribute.value[0] != 0,
                6 if attribute.value[0] != 0 && !driver.has_programmatic_launches() => {
                    let why = "programmatic launches need a device of capability 9.0";
                    return driver.refuse(code::NOT_SUPPORTED, why);
                }
                6 => programmatic = attribute.value[0] != 0,
                4 if attribute.value[..3].iter().any(|&n| n > 1) => {
                    return driver.refuse(code::NOT_SUPPORTED, "clusters of blocks are not supported");
                }
                _ => {}
            }
        }
        let (grid, block, dynamic) = (config.grid, config.block, config.dynamic as usize);
        // SAFETY: as above.
        unsafe {
            let how = [cooperative, programmatic];
            driver.launch(function, grid, block, dynamic, config.stream, params, extra, how)
        }
    }

    /// Blocks that a multiprocessor holds at once.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int,
        function: u64,
        threads: c_int,
        dynamic: usize,
    ) {
        let driver = in_context()?;
        let function = driver.functions.get(function)?;
        // SAFETY: the caller's pointer.
        unsafe { put(blocks, driver.occupancy(&function, threads as u32, dynamic) as c_int) }
    }

    /// Blocks that a multiprocessor holds at once.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut c_int,
        function: u64,
        threads: c_int,
        dynamic: usize,
        _flags: c_uint,
    ) {
        let driver = in_context()?;
        let function = driver.functions.get(function)?;
        // SAFETY: the caller's pointer.
        unsafe { put(blocks, driver.occupancy(&function, threads as u32, dynamic) as c_int) }
    }
}
