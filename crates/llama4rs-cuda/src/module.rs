//! Loaded code, its kernels, and launching them.

use std::ffi::{c_uint, c_void, CString};

use cudarc::driver::{result, sys};
use llama4rs_tensor::{Error, Result};

use crate::error::{device, words, During};
use crate::gpu::Gpu;
use crate::memory::Buffer;
use crate::tensor::RowNorm;

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

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        (self.function, self.shared) == (other.function, other.shared)
    }
}

// SAFETY: a function's handle may be used by any thread with the context current.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// One argument of a kernel.
#[derive(Clone)]
pub(crate) enum Argument {
    /// A number or an address.
    Word(u64),
    /// A parameter structure; see [`Structure`].
    Structure(Box<[u64]>),
}

impl Argument {
    /// Its bytes, and a few more.
    pub fn words(&self) -> &[u64] {
        match self {
            Argument::Word(word) => std::slice::from_ref(word),
            Argument::Structure(words) => words,
        }
    }
}

/// A kernel's parameter structure, field by field in C's layout.
pub(crate) struct Structure(Vec<u8>);

impl Default for Structure {
    fn default() -> Self {
        // Most have about so many bytes.
        Self(Vec::with_capacity(384))
    }
}

impl Structure {
    /// An address or another field of 8 bytes.
    pub fn long(mut self, value: u64) -> Self {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A field of 4 bytes.
    pub fn word(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A size.
    pub fn size(self, value: usize) -> Result<Self> {
        Ok(self.word(small(value)?))
    }

    /// A `RowNorm` of `kernels/norm.cuh`; null without one.
    pub fn row_norm(self, norm: Option<RowNorm>) -> Result<Self> {
        let RowNorm { squares, parts, eps } =
            norm.unwrap_or(RowNorm { squares: 0, parts: 0, eps: 0.0 });
        Ok(self.long(squares).size(parts)?.word(eps.to_bits()))
    }

    /// `count` bytes of zeros, such as unused elements of an array.
    pub fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}

impl AsArgument for Structure {
    fn argument(self) -> Result<Argument> {
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        };
        Ok(Argument::Structure(self.0.chunks(8).map(word).collect()))
    }
}

/// A size, which kernels take as `u32`.
fn small(size: usize) -> Result<u32> {
    u32::try_from(size).map_err(|_| Error::shape("kernel", "sizes below 2^32", size))
}

/// What can be an argument.
pub(crate) trait AsArgument {
    /// The argument's bytes.
    fn argument(self) -> Result<Argument>;
}

impl AsArgument for Option<RowNorm> {
    fn argument(self) -> Result<Argument> {
        Structure::default().row_norm(self)?.argument()
    }
}

impl<T: crate::memory::Plain> AsArgument for &Buffer<T> {
    fn argument(self) -> Result<Argument> {
        Ok(Argument::Word(self.address()))
    }
}

impl AsArgument for u64 {
    fn argument(self) -> Result<Argument> {
        Ok(Argument::Word(self))
    }
}

impl AsArgument for u32 {
    fn argument(self) -> Result<Argument> {
        Ok(Argument::Word(self.into()))
    }
}

impl AsArgument for f32 {
    fn argument(self) -> Result<Argument> {
        Ok(Argument::Word(self.to_bits().into()))
    }
}

impl AsArgument for usize {
    fn argument(self) -> Result<Argument> {
        Ok(Argument::Word(small(self)?.into()))
    }
}

/// Arguments in the order of the kernel's parameters; sizes become `u32`.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        [$($crate::module::AsArgument::argument($argument)?),*]
    };
}
pub(crate) use arguments;

impl Kernel {
    /// Queues `blocks` blocks of `threads` threads, at least one.
    ///
    /// The arguments' types are those of the kernel's parameters, and every
    /// address has the room that the kernel uses: each caller checks its shapes.
    pub fn launch(
        &self,
        gpu: &Gpu,
        blocks: [usize; 3],
        threads: u32,
        arguments: &[Argument],
    ) -> Result<()> {
        let address = |argument: &Argument| argument.words().as_ptr().cast_mut().cast();
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(address).collect();
        self.launch_on(gpu, gpu.stream(), blocks, threads, &mut pointers)
    }

    /// The same on any stream, with pointers to the arguments.
    pub fn launch_on(
        &self,
        gpu: &Gpu,
        stream: sys::CUstream,
        blocks: [usize; 3],
        threads: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        if blocks[0] > i32::MAX as usize || blocks[1] > 65535 || blocks[2] > 65535 {
            let most = "2^31 x 65535 x 65535 blocks";
            return Err(Error::shape(self.name, most, format!("{blocks:?}")));
        }
        gpu.bind()?;
        let [x, y, z] = blocks.map(|count| count as c_uint);
        // SAFETY: the arguments outlive the call, which copies them (a 4-byte one is
        // the low half of its 8 bytes); the callers checked what they point to.
        unsafe {
            result::launch_kernel(
                self.function,
                (x, y, z),
                (threads, 1, 1),
                self.shared as c_uint,
                stream,
                arguments,
            )
        }
        .during(&format!("launch {}", self.name))
    }
}

// An argument's first bytes are the low ones.
const _: () = assert!(cfg!(target_endian = "little"));
