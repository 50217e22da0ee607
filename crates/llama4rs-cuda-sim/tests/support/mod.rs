//! A program that uses the driver: a context, buffers, launches.

// No test uses all of this.
#![allow(dead_code)]

use std::ffi::{c_void, CString};
use std::ptr::null_mut;

use llama4rs_cuda_sim::driver::{device::*, launch::*, memory::*, module::*, sim::*};

/// Makes the device ready for this thread.
pub fn start() {
    static SETTINGS: std::sync::Once = std::sync::Once::new();
    SETTINGS.call_once(|| {
        std::env::set_var("LLAMA4RS_SIM_TIMEOUT", "3");
        std::env::set_var("LLAMA4RS_SIM_FOOTPRINT", "1");
    });
    // SAFETY: valid pointers, here and below: what the driver API demands.
    unsafe {
        let mut context = 0;
        assert_eq!(cuInit(0), 0);
        assert_eq!(cuDevicePrimaryCtxRetain(&mut context, 0), 0);
        assert_eq!(cuCtxSetCurrent(context), 0);
    }
}

/// Loads PTX text.
pub fn load(ptx: &str) -> u64 {
    let (text, mut module) = (CString::new(ptx).unwrap(), 0);
    // SAFETY: as above.
    assert_eq!(unsafe { cuModuleLoadData(&mut module, text.as_ptr().cast()) }, 0, "{}", reports());
    module
}

/// A kernel of a module.
pub fn kernel(module: u64, name: &str) -> u64 {
    let (text, mut function) = (CString::new(name).unwrap(), 0);
    // SAFETY: as above.
    assert_eq!(unsafe { cuModuleGetFunction(&mut function, module, text.as_ptr()) }, 0);
    function
}

/// Fresh device memory.
pub fn allocate(bytes: usize) -> u64 {
    let mut address = 0;
    // SAFETY: as above.
    assert_eq!(unsafe { cuMemAlloc_v2(&mut address, bytes) }, 0);
    address
}

/// Gives device memory back.
pub fn free(address: u64) {
    // SAFETY: as above.
    assert_eq!(unsafe { cuMemFree_v2(address) }, 0);
}

/// A device copy of `values`.
pub fn upload<T: Copy>(values: &[T]) -> u64 {
    let address = allocate(size_of_val(values));
    // SAFETY: as above.
    let code = unsafe { cuMemcpyHtoD_v2(address, values.as_ptr().cast(), size_of_val(values)) };
    assert_eq!(code, 0);
    address
}

/// `count` values from the device.
pub fn download<T: Copy + Default>(address: u64, count: usize) -> Vec<T> {
    let mut values = vec![T::default(); count];
    let bytes = size_of_val(&values[..]);
    // SAFETY: as above.
    assert_eq!(unsafe { cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, bytes) }, 0);
    values
}

/// Launches `blocks` of `threads`; each argument is eight bytes, of which the kernel takes what it wants.
pub fn launch(function: u64, blocks: u32, threads: u32, dynamic: u32, arguments: &[u64]) -> i32 {
    let pointers: Vec<*const c_void> = arguments.iter().map(|a| (a as *const u64).cast()).collect();
    // SAFETY: as above.
    unsafe {
        let (p, none) = (pointers.as_ptr(), null_mut());
        cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, dynamic, 0, p, none)
    }
}

/// All reports so far, of all tests of this process.
pub fn reports() -> String {
    // SAFETY: as above.
    unsafe {
        let length = llama4rs_sim_report(null_mut(), 0);
        let mut text = vec![0u8; length + 4096];
        let length = llama4rs_sim_report(text.as_mut_ptr().cast(), text.len()).min(text.len() - 1);
        String::from_utf8_lossy(&text[..length]).into_owned()
    }
}

/// The last report of a kernel.
pub fn report_of(kernel: &str) -> String {
    let name = format!("`{kernel}`");
    let reports = reports();
    reports.lines().rfind(|line| line.contains(&name)).unwrap_or_default().to_string()
}

/// Runs a kernel without its bug, then with it, by one block: the code and words of the report.
pub fn planted(ptx: &str, name: &str, threads: usize, code: i32, words: &[&str]) {
    let kernel = kernel(load(ptx), name);
    let values: Vec<u32> = (0..threads as u32).collect();
    for bug in [0, 1] {
        let (x, y) = (upload(&values), allocate(4 * threads));
        let answer = launch(kernel, 1, threads as u32, 0, &[y, x, bug]);
        if bug == 0 {
            assert_eq!(answer, 0, "{name} without its bug: {}", report_of(name));
        } else {
            let report = report_of(name);
            assert_eq!(answer, code, "{name}: {report}");
            for word in words {
                assert!(report.contains(word), "{name}: `{word}` is missing in: {report}");
            }
        }
        free(x);
        free(y);
    }
}

/// A test of each planted bug, which the file's `caught` runs.
#[macro_export]
macro_rules! bugs {
    ($($name:ident: $code:literal, $($word:literal),*;)*) => {
        $(#[test]
        fn $name() {
            caught(stringify!($name), $code, &[$($word),*]);
        })*
    };
}
