//! Loaded code and its kernels.

use std::ffi::{c_uint, c_void, CString};

use cudarc::driver::{result, sys, DriverError};
use llama4rs_tensor::{Error, Result};

use crate::arguments::Packed;
use crate::error::{device, words, During};
use crate::gpu::Gpu;

/// Blocks of a grid along its second and third dimension.
const MOST_BLOCKS: usize = 65535;
/// Rows of a step: some kernels have one for each block along the second dimension.
pub const MOST_STEP_ROWS: usize = MOST_BLOCKS;

/// Loaded code. It lives as long as its device: [`Module::unload`] is for the end.
pub(crate) struct Module {
    handle: sys::CUmodule,
}

// SAFETY: a module's handle may be used by any thread with the context current.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a CUBIN or zero-terminated PTX; an error holds the loader's log.
    pub fn load(gpu: &Gpu, name: &str, code: &[u8]) -> Result<Self> {
        use sys::CUjit_option::{
            CU_JIT_ERROR_LOG_BUFFER as Log, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES as LogSize,
        };
        gpu.bind()?;
        let mut log = vec![0u8; 8192];
        let mut options = [Log, LogSize];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), log.len() as *mut c_void];
        let mut handle = std::ptr::null_mut();
        // SAFETY: `code` is what the compiler made for this device; the log has the size it says.
        let loaded = unsafe {
            sys::cuModuleLoadDataEx(
                &mut handle,
                code.as_ptr().cast(),
                options.len() as c_uint,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        loaded.result().map_err(|error| {
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_end_matches('\0');
            device(format!("CUDA cannot load {name}: {}\n{log}", words(error)))
        })?;
        Ok(Self { handle })
    }

    /// The kernel of a name, with leave to use `shared` bytes of dynamic shared memory.
    pub fn kernel(&self, gpu: &Gpu, name: &'static str, shared: usize) -> Result<Kernel> {
        gpu.bind()?;
        let text = CString::new(name).map_err(|_| device("a kernel's name has a zero byte"))?;
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(self.handle, text) }
            .during(&format!("find the kernel {name}"))?;
        if shared > 0 {
            if shared > gpu.info.shared_memory {
                let (limit, gpu) = (gpu.info.shared_memory, &gpu.info.name);
                return Err(Error::shape(
                    name,
                    format!("at most {limit} bytes of shared memory on {gpu}"),
                    shared,
                ));
            }
            use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as Most;
            // SAFETY: the function belongs to a loaded module.
            unsafe { result::function::set_function_attribute(function, Most, shared as i32) }
                .during(&format!("give {shared} bytes of shared memory to {name}"))?;
        }
        Ok(Kernel { name, function, shared })
    }

    /// Gives the code back; its kernels must not be launched any more.
    pub fn unload(self) {
        // SAFETY: loaded in `load`; the caller's promise. A failure has nobody to be told.
        let _ = unsafe { result::module::unload(self.handle) };
    }
}

/// A kernel that can be launched.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    name: &'static str,
    function: sys::CUfunction,
    shared: usize,
}

// SAFETY: a function's handle may be used by any thread with the context current.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// Whether a driver that does not know how to launch early answers like this.
fn is_refusal(error: DriverError) -> bool {
    use sys::CUresult::{
        CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_SUPPORTED, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
    };
    matches!(
        error.0,
        CUDA_ERROR_INVALID_VALUE | CUDA_ERROR_NOT_SUPPORTED | CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    )
}

impl Kernel {
    /// Queues `blocks` blocks of `threads` threads, at least one, on a stream.
    ///
    /// The arguments' types are those of the kernel's parameters, and every
    /// address has the room that the kernel uses: each caller checks its shapes.
    pub fn launch(
        &self,
        gpu: &Gpu,
        stream: sys::CUstream,
        blocks: [usize; 3],
        threads: u32,
        arguments: Packed<'_>,
    ) -> Result<()> {
        if blocks[0] > i32::MAX as usize || blocks[1].max(blocks[2]) > MOST_BLOCKS {
            let most = "2^31 x 65535 x 65535 blocks";
            return Err(Error::shape(self.name, most, format!("{blocks:?}")));
        }
        gpu.bind()?;
        let mut pointers = arguments.pointers();
        let mut refused = None;
        if gpu.may_begin_early(stream) {
            match self.launch_with(stream, blocks, threads, &mut pointers, true) {
                Err(error) if is_refusal(error) => refused = Some(error),
                outcome => return outcome.during(&format!("launch {}", self.name)),
            }
        }
        self.launch_with(stream, blocks, threads, &mut pointers, false)
            .during(&format!("launch {}", self.name))?;
        // An invalid launch, which is refused like this, too, has come out as an error above.
        if let Some(error) = refused {
            gpu.end_programmatic(device(words(error)));
        }
        Ok(())
    }

    /// A `programmatic` launch may begin while the one before it drains; every kernel waits for its end.
    fn launch_with(
        &self,
        stream: sys::CUstream,
        blocks: [usize; 3],
        threads: u32,
        arguments: &mut [*mut c_void],
        programmatic: bool,
    ) -> std::result::Result<(), DriverError> {
        let [x, y, z] = blocks.map(|count| count as c_uint);
        let shared = self.shared as c_uint;
        if !programmatic {
            // SAFETY: the arguments outlive the call, which copies them (a 4-byte one is
            // the low half of its 8 bytes); the callers checked what they point to.
            return unsafe {
                let (grid, block) = ((x, y, z), (threads, 1, 1));
                result::launch_kernel(self.function, grid, block, shared, stream, arguments)
            };
        }
        use sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION as Early;
        let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let mut attribute = sys::CUlaunchAttribute { id: Early, pad: [0; 4], value };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: stream,
            attrs: &mut attribute,
            numAttrs: 1,
        };
        let (arguments, extra) = (arguments.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: as above; the configuration and its attribute outlive the call.
        unsafe { sys::cuLaunchKernelEx(&config, self.function, arguments, extra) }.result()
    }
}
