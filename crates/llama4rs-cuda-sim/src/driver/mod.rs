//! The driver API: what a program that opens `libcuda.so.1` finds.
//!
//! Work runs when it is submitted, in the calling thread; streams only say whether
//! it is being captured. Every function checks its handles and addresses, and
//! says on standard error why it refuses something.

#![allow(clippy::missing_safety_doc)] // the driver API's own documentation holds

mod calls;
pub mod device;
mod errors;
pub mod graph;
pub mod launch;
pub mod memory;
pub mod module;
pub mod sim;
mod state;
pub mod stream;
mod work;

use std::panic::{catch_unwind, AssertUnwindSafe};

pub use errors::{cuGetErrorName, cuGetErrorString};

/// Success, or the driver's error code.
pub type Answer = Result<(), i32>;

/// Codes that occur in several places.
pub mod code {
    #![allow(missing_docs)] // the names are those of the driver API
    pub const INVALID_VALUE: i32 = 1;
    pub const OUT_OF_MEMORY: i32 = 2;
    pub const NOT_INITIALIZED: i32 = 3;
    pub const INVALID_DEVICE: i32 = 101;
    pub const INVALID_CONTEXT: i32 = 201;
    pub const NO_BINARY_FOR_GPU: i32 = 209;
    pub const INVALID_PTX: i32 = 218;
    pub const FILE_NOT_FOUND: i32 = 301;
    pub const INVALID_HANDLE: i32 = 400;
    pub const NOT_FOUND: i32 = 500;
    pub const NOT_READY: i32 = 600;
    pub const LAUNCH_OUT_OF_RESOURCES: i32 = 701;
    pub const COOPERATIVE_LAUNCH_TOO_LARGE: i32 = 720;
    pub const NOT_SUPPORTED: i32 = 801;
    pub const CAPTURE_UNSUPPORTED: i32 = 900;
    pub const CAPTURE_INVALIDATED: i32 = 901;
    pub const CAPTURE_UNMATCHED: i32 = 903;
    pub const CAPTURE_UNJOINED: i32 = 904;
    pub const CAPTURED_EVENT: i32 = 907;
    pub const UNKNOWN: i32 = 999;
}

/// Runs the body of the entry point `name`; a panic becomes an error code.
fn enter(name: &'static str, f: impl FnOnce() -> Answer) -> i32 {
    if let Some(code) = calls::note(name) {
        return code;
    }
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code,
        Err(_) => code::UNKNOWN,
    }
}

/// Writes a result through a caller's pointer.
///
/// # Safety
/// The pointer is null or may be written.
unsafe fn put<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: as the caller promises.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// Copies as much of `text` as fits, with a zero behind it.
///
/// # Safety
/// `to` is null or has room for `room` bytes.
unsafe fn put_text(text: &str, to: *mut u8, room: usize) {
    if !to.is_null() && room > 0 {
        let n = text.len().min(room - 1);
        // SAFETY: as the caller promises.
        unsafe {
            to.copy_from_nonoverlapping(text.as_ptr(), n);
            to.add(n).write(0);
        }
    }
}

/// Defines entry points: exported, with panics turned into codes.
macro_rules! entry_points {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$meta])*
            #[no_mangle]
            #[allow(non_snake_case)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> i32 {
                $crate::driver::enter(stringify!($name), || $body)
            }
        )*
    };
}
use entry_points;
