//! Where NVRTC is installed, the device takes what it makes of the kernels, and, from the
//! version that made the stored PTX, that is still what it makes.
//!
//! `LLAMA4RS_STORE_PTX=1 cargo test -p llama4rs-cuda-sim --test nvrtc` stores it again.

mod support;

use std::ffi::{c_char, c_int, CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

use libloading::Library;

/// The stored PTX is of this version.
const VERSION: (c_int, c_int) = (13, 0);

type Program = *mut std::ffi::c_void;

/// NVRTC of `make build`, if it is there.
fn nvrtc() -> Option<Library> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/lib");
    let pythons = std::fs::read_dir(root).ok()?.flatten();
    let mut folders = pythons.map(|p| p.path().join("site-packages/nvidia/cu13/lib"));
    let folder: PathBuf = folders.find(|folder| folder.is_dir())?;
    let mut files = std::fs::read_dir(&folder).ok()?.flatten().map(|file| file.path());
    let builtins = files.find(|path| path.to_string_lossy().contains("libnvrtc-builtins.so.13"))?;
    // SAFETY: loading NVRTC runs its constructors, which expect that. The library
    // finds its other half only if that is loaded before; it stays loaded.
    unsafe {
        std::mem::forget(Library::new(builtins).ok()?);
        Library::new(folder.join("libnvrtc.so.13")).ok()
    }
}

/// PTX of a source.
fn compile(nvrtc: &Library, architecture: &CStr, source: &str) -> String {
    type Create = unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int;
    type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
    type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
    type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
    let (mut program, mut size) = (null_mut(), 0);
    let source = CString::new(source).unwrap();
    let options = [architecture.as_ptr(), c"--std=c++17".as_ptr()];
    // SAFETY: the functions have these types, all texts end with zero, and the buffer
    // has the size that was asked for.
    unsafe {
        let create = nvrtc.get::<Create>(b"nvrtcCreateProgram").unwrap();
        let name = c"k.cu".as_ptr();
        assert_eq!(create(&mut program, source.as_ptr(), name, 0, null(), null()), 0);
        let compile = nvrtc.get::<Compile>(b"nvrtcCompileProgram").unwrap();
        assert_eq!(compile(program, options.len() as c_int, options.as_ptr()), 0);
        assert_eq!(nvrtc.get::<Size>(b"nvrtcGetPTXSize").unwrap()(program, &mut size), 0);
        let mut text = vec![0u8; size];
        let get = nvrtc.get::<Get>(b"nvrtcGetPTX").unwrap();
        assert_eq!(get(program, text.as_mut_ptr().cast()), 0);
        text.truncate(size - 1);
        String::from_utf8(text).unwrap()
    }
}

#[test]
fn what_nvrtc_makes_is_taken_and_stored() {
    std::env::set_var("LLAMA4RS_SIM_CAPABILITY", "9.0");
    support::start();
    let Some(nvrtc) = nvrtc() else {
        println!("skipped: NVRTC is not in .venv (make build)");
        return;
    };
    let mut version = (0, 0);
    type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    // SAFETY: as above.
    unsafe {
        let get = nvrtc.get::<Version>(b"nvrtcVersion").unwrap();
        assert_eq!(get(&mut version.0, &mut version.1), 0);
    }
    let store = std::env::var_os("LLAMA4RS_STORE_PTX").is_some();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    // Comments name the compiler's build.
    let code = |text: &str| {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.map(str::to_string).collect::<Vec<_>>()
    };
    let (ampere, hopper) = (c"--gpu-architecture=compute_80", c"--gpu-architecture=compute_90a");
    for (name, architecture) in
        [("bugs", ampere), ("products", ampere), ("warps", ampere), ("warpgroups", hopper)]
    {
        let source = std::fs::read_to_string(folder.join(format!("{name}.cu"))).unwrap();
        let made = compile(&nvrtc, architecture, &source);
        support::load(&made);
        let path = folder.join(format!("{name}.ptx"));
        if store {
            std::fs::write(&path, &made).unwrap();
        }
        if version != VERSION {
            println!("{name}.ptx is not compared: NVRTC {}.{}", version.0, version.1);
            continue;
        }
        let stored = std::fs::read_to_string(&path).unwrap();
        assert_eq!(code(&made), code(&stored), "{name}.ptx is not what {name}.cu compiles to");
    }
}
