//! NVRTC, NVIDIA's run-time compiler: found, loaded and called when a device is opened.
//!
//! Versions 12 and 13 have the same functions. The library of the Python packages
//! does not find its own `libnvrtc-builtins`, which is therefore loaded first.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr::null;

use libloading::Library;
use llama4rs_tensor::Result;

use crate::driver::DeviceInfo;
use crate::error::device;

/// The environment variable that names the library or its folder.
const PLACE: &str = "LLAMA4RS_NVRTC";
const LIBRARY: &str = "libnvrtc.so.";
const BUILTINS: &str = "libnvrtc-builtins.so.";
/// Newest first.
const MAJORS: [u32; 2] = [13, 12];
const HOW_TO_GET: &str =
    "pip install 'llama4rs[cuda]', or set LLAMA4RS_NVRTC to libnvrtc.so or its \
    folder; with a driver of CUDA 12: pip install nvidia-cuda-nvrtc-cu12";

/// What code is generated for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Machine code of exactly this device, such as `sm_90a`.
    Binary(String),
    /// PTX for this virtual architecture, such as `compute_80`: for the simulated device.
    Ptx(String),
}

impl Architecture {
    /// What suits a device.
    pub fn of(info: &DeviceInfo) -> Self {
        let (major, minor) = info.capability;
        // The architecture-specific instructions of Hopper and Blackwell have their own names.
        let suffix = if matches!(major, 9 | 10) { "a" } else { "" };
        match info.is_simulated() {
            true => Architecture::Ptx(format!("compute_{major}{minor}{suffix}")),
            false => Architecture::Binary(format!("sm_{major}{minor}{suffix}")),
        }
    }

    /// As the compiler's option names it.
    pub fn name(&self) -> &str {
        match self {
            Architecture::Binary(name) | Architecture::Ptx(name) => name,
        }
    }
}

/// What the compiler made of a program.
pub struct Compiled {
    /// A CUBIN, or PTX text that ends with a zero byte.
    pub code: Vec<u8>,
    /// Warnings, and the resources of each kernel (see [`crate::resources`]).
    pub log: String,
}

type Program = *mut c_void;
type Status = c_int;

/// The loaded compiler.
pub struct Nvrtc {
    version: (u32, u32),
    path: PathBuf,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    log: Output,
    binary: Output,
    ptx: Output,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
}

/// The two functions that give one output of a program.
#[derive(Clone, Copy)]
struct Output {
    size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    get: unsafe extern "C" fn(Program, *mut c_char) -> Status,
}

impl Nvrtc {
    /// Looks at `LLAMA4RS_NVRTC`, then into `folders`, then where the system has libraries.
    pub fn load(folders: &[PathBuf]) -> Result<Self> {
        if let Some(place) = std::env::var_os(PLACE).filter(|place| !place.is_empty()) {
            let place = PathBuf::from(place);
            let found = if place.is_dir() { in_folder(&place) } else { Some(place.clone()) };
            let found = found.ok_or_else(|| {
                device(format!("{PLACE}={}: no libnvrtc.so.12 or .13 there", place.display()))
            })?;
            return Self::open(&found);
        }
        let given = folders.iter().filter_map(|folder| in_folder(folder));
        let system = MAJORS.map(|major| PathBuf::from(format!("{LIBRARY}{major}")));
        let mut problem = "no libnvrtc.so.12 or .13 is to be found".to_owned();
        for path in given.chain(system) {
            match Self::open(&path) {
                Ok(nvrtc) => return Ok(nvrtc),
                // A library that is there says why it cannot be used.
                Err(error) if path.is_absolute() => problem = error.to_string(),
                Err(_) => {}
            }
        }
        Err(device(format!(
            "NVRTC, which compiles the kernels, is missing: {problem}: {HOW_TO_GET}"
        )))
    }

    fn open(path: &Path) -> Result<Self> {
        let refused = |error: libloading::Error| device(format!("{}: {error}", path.display()));
        if let Some(builtins) = path.parent().and_then(|folder| versioned(folder, BUILTINS)) {
            keep_loaded(&builtins).map_err(refused)?;
        }
        let library = keep_loaded(path).map_err(refused)?;
        // SAFETY: the types are those of nvrtc.h, the same in versions 12 and 13.
        unsafe {
            let mut version = (0, 0);
            let ask = symbol::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status>;
            ask(library, path, "nvrtcVersion")?(&mut version.0, &mut version.1);
            let version = (version.0 as u32, version.1 as u32);
            if !MAJORS.contains(&version.0) {
                return Err(device(format!(
                    "{} is NVRTC {}.{}, and 12 or 13 is needed",
                    path.display(),
                    version.0,
                    version.1
                )));
            }
            Ok(Self {
                version,
                path: path.to_owned(),
                create: symbol(library, path, "nvrtcCreateProgram")?,
                compile: symbol(library, path, "nvrtcCompileProgram")?,
                destroy: symbol(library, path, "nvrtcDestroyProgram")?,
                log: Output {
                    size: symbol(library, path, "nvrtcGetProgramLogSize")?,
                    get: symbol(library, path, "nvrtcGetProgramLog")?,
                },
                binary: Output {
                    size: symbol(library, path, "nvrtcGetCUBINSize")?,
                    get: symbol(library, path, "nvrtcGetCUBIN")?,
                },
                ptx: Output {
                    size: symbol(library, path, "nvrtcGetPTXSize")?,
                    get: symbol(library, path, "nvrtcGetPTX")?,
                },
                error_string: symbol(library, path, "nvrtcGetErrorString")?,
            })
        }
    }

    /// Such as `(13, 0)`.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Where the library was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error when the driver cannot load what this version compiles.
    pub fn check_driver(&self, driver: (u32, u32)) -> Result<()> {
        if self.version.0 <= driver.0 {
            return Ok(());
        }
        Err(device(format!(
            "the NVIDIA driver knows CUDA {}.{} and is too old for NVRTC {}.{} at {}: update the \
             driver, or pip install nvidia-cuda-nvrtc-cu{}",
            driver.0,
            driver.1,
            self.version.0,
            self.version.1,
            self.path.display(),
            driver.0
        )))
    }

    /// Compiles `source`; an error holds the compiler's log.
    pub fn compile(
        &self,
        name: &str,
        source: &str,
        architecture: &Architecture,
        options: &[String],
    ) -> Result<Compiled> {
        let text = |text: &str| {
            CString::new(text).map_err(|_| device(format!("{name}: a zero byte in {text:?}")))
        };
        let (title, source) = (text(name)?, text(source)?);
        let mut arguments = vec![text(&format!("--gpu-architecture={}", architecture.name()))?];
        for option in options {
            arguments.push(text(option)?);
        }
        let arguments: Vec<_> = arguments.iter().map(|option| option.as_ptr()).collect();
        let mut program = Owned { nvrtc: self, program: std::ptr::null_mut() };
        // SAFETY: the texts end with zero and outlive the calls; no headers are given.
        let status = unsafe {
            (self.create)(&mut program.program, source.as_ptr(), title.as_ptr(), 0, null(), null())
        };
        self.check(status, name, "")?;
        // SAFETY: the program exists, the options outlive the call.
        let status = unsafe {
            (self.compile)(program.program, arguments.len() as c_int, arguments.as_ptr())
        };
        let log = self.read(&program, self.log, name)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
        self.check(status, name, &log)?;
        let output = match architecture {
            Architecture::Binary(_) => self.binary,
            Architecture::Ptx(_) => self.ptx,
        };
        Ok(Compiled { code: self.read(&program, output, name)?, log })
    }

    fn read(&self, program: &Owned<'_>, output: Output, name: &str) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program exists and `size` is writable.
        let status = unsafe { (output.size)(program.program, &mut size) };
        self.check(status, name, "")?;
        let mut bytes = vec![0; size];
        // SAFETY: `bytes` has the size that was asked for.
        let status = unsafe { (output.get)(program.program, bytes.as_mut_ptr().cast()) };
        self.check(status, name, "")?;
        Ok(bytes)
    }

    fn check(&self, status: Status, name: &str, log: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: any code has a static text.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) }.to_string_lossy();
        Err(device(format!("NVRTC {:?} cannot compile {name}: {text}\n{log}", self.version)))
    }
}

/// A program that is destroyed when it goes.
struct Owned<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created by this library, destroyed once.
            unsafe { (self.nvrtc.destroy)(&mut self.program) };
        }
    }
}

/// Loads a library and never unloads it: its functions stay valid.
fn keep_loaded(path: &Path) -> std::result::Result<&'static Library, libloading::Error> {
    // SAFETY: loading NVIDIA's library runs its constructors, which expect that.
    let library = unsafe { Library::new(path) }?;
    Ok(Box::leak(Box::new(library)))
}

/// # Safety
/// `T` is the function's type.
unsafe fn symbol<T: Copy>(library: &'static Library, path: &Path, name: &str) -> Result<T> {
    // SAFETY: the caller knows the type.
    match unsafe { library.get::<T>(name.as_bytes()) } {
        Ok(symbol) => Ok(*symbol),
        Err(error) => Err(device(format!("{} has no {name}: {error}", path.display()))),
    }
}

/// The library in a folder.
fn in_folder(folder: &Path) -> Option<PathBuf> {
    MAJORS.iter().map(|major| folder.join(format!("{LIBRARY}{major}"))).find(|path| path.is_file())
}

/// The file `name` with a version behind it, such as `libnvrtc-builtins.so.13.0`.
fn versioned(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()));
    let found = names.filter(|entry| entry.starts_with(name)).max()?;
    Some(folder.join(found))
}
