//! Names of error codes.

use std::ffi::{c_char, CStr};

use super::{code, enter, put};

const NAMES: &[(i32, &CStr, &CStr)] = &[
    (0, c"CUDA_SUCCESS", c"no error"),
    (1, c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
    (2, c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
    (3, c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
    (101, c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
    (201, c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
    (209, c"CUDA_ERROR_NO_BINARY_FOR_GPU", c"no kernel image is available for the device"),
    (218, c"CUDA_ERROR_INVALID_PTX", c"a PTX compilation failed"),
    (301, c"CUDA_ERROR_FILE_NOT_FOUND", c"file not found"),
    (400, c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
    (500, c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
    (600, c"CUDA_ERROR_NOT_READY", c"device not ready"),
    (700, c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"),
    (701, c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", c"too many resources requested for launch"),
    (702, c"CUDA_ERROR_LAUNCH_TIMEOUT", c"the launch timed out and was terminated"),
    (710, c"CUDA_ERROR_ASSERT", c"device-side assert triggered"),
    (716, c"CUDA_ERROR_MISALIGNED_ADDRESS", c"misaligned address"),
    (
        719,
        c"CUDA_ERROR_LAUNCH_FAILED",
        c"unspecified launch failure; the simulated device printed why",
    ),
    (720, c"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", c"too many blocks in cooperative launch"),
    (801, c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
    (900, c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", c"operation not permitted while capturing"),
    (
        901,
        c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        c"the capture failed because of an earlier error",
    ),
    (903, c"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", c"the capture was not begun in this stream"),
    (904, c"CUDA_ERROR_STREAM_CAPTURE_UNJOINED", c"capturing streams have not been joined"),
    (907, c"CUDA_ERROR_CAPTURED_EVENT", c"operation not permitted on an event of a capture"),
    (999, c"CUDA_ERROR_UNKNOWN", c"unknown error"),
];

fn entry(error: i32) -> Result<(&'static CStr, &'static CStr), i32> {
    let found = NAMES.iter().find(|(code, ..)| *code == error);
    found.map(|&(_, name, text)| (name, text)).ok_or(code::INVALID_VALUE)
}

/// Name of an error code.
#[no_mangle]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetErrorName(error: i32, name: *mut *const c_char) -> i32 {
    // SAFETY: the caller's pointer, as the driver API demands.
    enter("cuGetErrorName", || unsafe { put(name, entry(error)?.0.as_ptr()) })
}

/// Description of an error code.
#[no_mangle]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetErrorString(error: i32, text: *mut *const c_char) -> i32 {
    // SAFETY: as above.
    enter("cuGetErrorString", || unsafe { put(text, entry(error)?.1.as_ptr()) })
}
