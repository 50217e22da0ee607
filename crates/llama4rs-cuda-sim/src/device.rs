//! What the device says about itself.

use std::sync::OnceLock;
use std::time::Instant;

/// Name of the device; programs load PTX where they find it.
pub const NAME: &str = "llama4rs simulated device";
/// Multiprocessors that the device claims to have.
pub const MULTIPROCESSORS: u64 = 4;
/// Version of the driver.
pub const DRIVER_VERSION: i32 = 13000;

/// Nanoseconds since the first call.
pub fn nanoseconds() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
