//! Modules and their kernels.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use super::device::{shared_most, MAX_THREADS, SHARED_DEFAULT};
use super::state::{in_context, Driver};
use super::{code, entry_points, put, put_text, Answer};
use crate::decode;
use crate::memory::Purpose;
use crate::program::Kernel;
use crate::ptx::{self, PtxError, Space};

/// A loaded module.
pub struct Module {
    kernels: HashMap<String, Arc<Function>>,
    /// Address and size of each variable.
    variables: HashMap<String, (u64, usize)>,
}

/// A kernel and what the host has set for it.
pub struct Function {
    /// The kernel.
    pub kernel: Kernel,
    /// Most bytes of dynamic shared memory.
    pub dynamic_most: AtomicUsize,
}

impl Driver {
    /// Loads PTX text; the error is for the log and says what is wrong.
    fn load(&self, text: &str) -> Result<Module, (i32, String)> {
        let bad = |e: PtxError| (code::INVALID_PTX, e.to_string());
        let tree = ptx::parse(text).map_err(bad)?;
        self.check_target(&tree.target)?;
        let variables = self.place_variables(&tree)?;
        let addresses = variables.iter().map(|(name, &(at, _))| (name.clone(), at)).collect();
        let kernels = decode::kernels(&tree, &addresses).map_err(bad)?;
        let kernels = kernels.into_iter().map(|kernel| {
            let spare = SHARED_DEFAULT.saturating_sub(kernel.shared_bytes);
            let name = kernel.name.clone();
            (name, Arc::new(Function { kernel, dynamic_most: AtomicUsize::new(spare) }))
        });
        Ok(Module { kernels: kernels.collect(), variables })
    }

    /// PTX for a newer device does not run on an older one.
    fn check_target(&self, target: &str) -> Result<(), (i32, String)> {
        let (major, minor) = self.settings.capability;
        let digits: String = target.chars().filter(char::is_ascii_digit).collect();
        let wanted: i32 = digits.parse().unwrap_or(0);
        if wanted <= 10 * major + minor {
            return Ok(());
        }
        let why =
            format!("PTX for {target} does not run on a device of capability {major}.{minor}");
        Err((code::NO_BINARY_FOR_GPU, why))
    }

    fn place_variables(
        &self,
        tree: &ptx::Module,
    ) -> Result<HashMap<String, (u64, usize)>, (i32, String)> {
        let mut places = HashMap::new();
        let wanted = tree.variables.iter().filter(|v| v.space != Space::Shared && v.bytes > 0);
        for v in wanted.clone() {
            let Some(at) = self.memory.allocate(v.bytes as u64, Purpose::Variable) else {
                return Err((code::OUT_OF_MEMORY, format!("no room for variable `{}`", v.name)));
            };
            places.insert(v.name.clone(), (at, v.bytes));
        }
        for v in wanted {
            let (at, bytes) = places[&v.name];
            let mut value = v.init.clone();
            value.resize(bytes, 0);
            for (offset, name, addend) in &v.addresses {
                let Some(&(target, _)) = places.get(name) else {
                    return Err((code::INVALID_PTX, format!("variable `{name}` does not exist")));
                };
                let address = target.wrapping_add(*addend as u64).to_le_bytes();
                value[*offset..*offset + 8].copy_from_slice(&address);
            }
            let region = self.memory.region(at, bytes as u64).expect("it was just allocated");
            // SAFETY: the allocation has `bytes` bytes.
            unsafe { self.memory.host(&region, at).copy_from(value.as_ptr(), bytes) };
            self.memory.note_range(&region, at, bytes as u64, None);
        }
        Ok(places)
    }

    /// Loads an image and puts the reason of a refusal into `log`.
    ///
    /// # Safety
    /// `image` is text that ends with a zero, or a binary with its magic number.
    unsafe fn load_image(
        &self,
        module: *mut u64,
        image: *const c_void,
        log: &mut String,
    ) -> Answer {
        if image.is_null() {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: every image has at least four bytes or ends before with a zero.
        let first = unsafe { CStr::from_ptr(image.cast()) }.to_bytes();
        if first.starts_with(b"\x7fELF") || first.starts_with(&[0x50, 0xed, 0x55, 0xba]) {
            *log = "the simulated device runs PTX, not CUBINs: compile with \
                    --gpu-architecture=compute_XY and load the PTX"
                .to_string();
            return self.refuse(code::NO_BINARY_FOR_GPU, log.clone());
        }
        let loaded = match std::str::from_utf8(first) {
            Ok(text) => self.load(text),
            Err(_) => Err((code::INVALID_PTX, "the image is not text".to_string())),
        };
        match loaded {
            // SAFETY: the caller's pointer.
            Ok(loaded) => unsafe { put(module, self.modules.add(Arc::new(loaded))) },
            Err((code, why)) => {
                *log = why;
                self.refuse(code, log.clone())
            }
        }
    }
}

/// A name given by the caller.
///
/// # Safety
/// The pointer is null or a string that ends with a zero.
unsafe fn name<'a>(text: *const c_char) -> Result<&'a str, i32> {
    if text.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| code::INVALID_VALUE)
}

impl Function {
    fn attribute(&self, number: c_int) -> Option<c_int> {
        let kernel = &self.kernel;
        Some(match number {
            0 => kernel.max_threads.unwrap_or(MAX_THREADS).min(MAX_THREADS) as c_int,
            1 => kernel.shared_bytes as c_int,
            2 => 0,
            3 => kernel.local_bytes as c_int,
            // Registers of 32 bits, as far as names tell.
            4 => (kernel.registers[1] + 2 * kernel.registers[2]).min(255) as c_int,
            5 | 6 => 80,
            8 => self.dynamic_most.load(Ordering::Relaxed) as c_int,
            7 | 9..=15 => 0,
            _ => return None,
        })
    }
}

entry_points! {
    /// Loads PTX.
    fn cuModuleLoadData(module: *mut u64, image: *const c_void) {
        // SAFETY: the caller's image, as the driver API demands.
        unsafe { in_context()?.load_image(module, image, &mut String::new()) }
    }

    /// Loads PTX and tells what is wrong with it.
    fn cuModuleLoadDataEx(
        module: *mut u64,
        image: *const c_void,
        count: c_uint,
        options: *mut c_int,
        values: *mut *mut c_void,
    ) {
        let mut log = String::new();
        // SAFETY: the caller's image.
        let answer = unsafe { in_context()?.load_image(module, image, &mut log) };
        let (mut buffer, mut room) = (std::ptr::null_mut::<u8>(), 0);
        for i in 0..count as usize {
            // SAFETY: both arrays have `count` elements.
            let (option, value) = unsafe { (*options.add(i), *values.add(i)) };
            match option {
                5 => buffer = value.cast(),
                6 => room = value as usize,
                _ => {}
            }
        }
        // SAFETY: the caller's buffer of that size.
        unsafe { put_text(&log, buffer, room) };
        answer
    }

    /// Loads PTX from a file.
    fn cuModuleLoad(module: *mut u64, path: *const c_char) {
        let driver = in_context()?;
        // SAFETY: the caller's string.
        let path = unsafe { name(path)? };
        let Ok(mut text) = std::fs::read(path) else {
            return driver.refuse(code::FILE_NOT_FOUND, format!("{path} cannot be read"));
        };
        text.push(0);
        // SAFETY: the text ends with a zero.
        unsafe { driver.load_image(module, text.as_ptr().cast(), &mut String::new()) }
    }

    /// Forgets a module and its variables.
    fn cuModuleUnload(module: u64) {
        let driver = in_context()?;
        let module = driver.modules.remove(module)?;
        for (at, _) in module.variables.values() {
            driver.memory.free(*at);
        }
        Ok(())
    }

    /// The kernel of that name.
    fn cuModuleGetFunction(function: *mut u64, module: u64, text: *const c_char) {
        let driver = in_context()?;
        // SAFETY: the caller's string.
        let text = unsafe { name(text)? };
        let Some(found) = driver.modules.get(module)?.kernels.get(text).cloned() else {
            return driver.refuse(code::NOT_FOUND, format!("the module has no kernel `{text}`"));
        };
        // SAFETY: the caller's pointer.
        unsafe { put(function, driver.functions.add(found)) }
    }

    /// Address and size of a variable.
    fn cuModuleGetGlobal_v2(address: *mut u64, bytes: *mut usize, module: u64, text: *const c_char) {
        let driver = in_context()?;
        // SAFETY: the caller's string.
        let text = unsafe { name(text)? };
        let Some(&(at, size)) = driver.modules.get(module)?.variables.get(text) else {
            return driver.refuse(code::NOT_FOUND, format!("the module has no variable `{text}`"));
        };
        // SAFETY: the caller's pointers; either may be null.
        unsafe {
            if !address.is_null() {
                put(address, at)?;
            }
            if !bytes.is_null() {
                put(bytes, size)?;
            }
        }
        Ok(())
    }

    /// A property of a kernel.
    fn cuFuncGetAttribute(value: *mut c_int, number: c_int, function: u64) {
        let function = in_context()?.functions.get(function)?;
        let found = function.attribute(number).ok_or(code::INVALID_VALUE)?;
        // SAFETY: the caller's pointer.
        unsafe { put(value, found) }
    }

    /// Sets a property of a kernel; only the size of dynamic shared memory matters.
    fn cuFuncSetAttribute(function: u64, number: c_int, value: c_int) {
        let driver = in_context()?;
        let function = driver.functions.get(function)?;
        if number != 8 {
            return Ok(());
        }
        let most = shared_most(driver.settings.capability);
        let fixed = function.kernel.shared_bytes;
        match usize::try_from(value) {
            Ok(value) if value + fixed <= most => {
                function.dynamic_most.store(value, Ordering::Relaxed);
                Ok(())
            }
            _ => driver.refuse(
                code::INVALID_VALUE,
                format!(
                    "kernel `{}` asks for {value} bytes of dynamic shared memory; with {fixed} \
                     static bytes the device has {}",
                    function.kernel.name,
                    most.saturating_sub(fixed)
                ),
            ),
        }
    }

    /// Prefers a cache; there is none.
    fn cuFuncSetCacheConfig(function: u64, _config: c_int) {
        in_context()?.functions.get(function).map(|_| ())
    }
}
