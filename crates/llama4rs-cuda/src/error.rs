//! From the driver's result codes to errors that say what to do.

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult;
use llama4rs_tensor::{Error, Result};

/// An error about the device.
pub(crate) fn device(message: impl Into<String>) -> Error {
    Error::Device(message.into())
}

/// The driver's own words for a result code.
pub(crate) fn words(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => format!("{} ({:?})", text.to_string_lossy(), error.0),
        Err(_) => format!("{:?}", error.0),
    }
}

/// Names the call that failed.
pub(crate) trait During<T> {
    /// `what` completes the sentence "CUDA cannot ...".
    fn during(self, what: &str) -> Result<T>;
}

impl<T> During<T> for std::result::Result<T, DriverError> {
    fn during(self, what: &str) -> Result<T> {
        self.map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Error::OutOfMemory { what: "CUDA's own structures on the GPU", bytes: 0 }
            }
            _ => device(format!("CUDA cannot {what}: {}", words(error))),
        })
    }
}
