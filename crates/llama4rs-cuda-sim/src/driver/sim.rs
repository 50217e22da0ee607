//! What only this driver offers: reports and counts.

use std::ffi::c_char;

use super::state::driver;
use crate::counters;

/// Copies text with a zero behind it; returns its whole length.
///
/// # Safety
/// `to` is null or has room for `room` bytes.
unsafe fn copy(text: &str, to: *mut c_char, room: usize) -> usize {
    if !to.is_null() && room > 0 {
        let n = text.len().min(room - 1);
        // SAFETY: as the caller promises.
        unsafe {
            to.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), n);
            to.add(n).write(0);
        }
    }
    text.len()
}

/// All reports since the last clearing, one a line; returns their length in bytes.
///
/// # Safety
/// `to` is null or has room for `room` bytes.
#[no_mangle]
pub unsafe extern "C" fn llama4rs_sim_report(to: *mut c_char, room: usize) -> usize {
    let text = driver().map_or(String::new(), |d| d.reports().join("\n"));
    // SAFETY: as the caller promises.
    unsafe { copy(&text, to, room) }
}

/// Forgets all reports.
#[no_mangle]
pub extern "C" fn llama4rs_sim_clear_report() {
    if let Ok(driver) = driver() {
        driver.reports().clear();
    }
}

/// Counts by kernel as JSON; returns its length in bytes.
///
/// # Safety
/// `to` is null or has room for `room` bytes.
#[no_mangle]
pub unsafe extern "C" fn llama4rs_sim_counters(to: *mut c_char, room: usize) -> usize {
    let text = driver().map_or("{}".to_string(), |d| counters::json(&d.counts()));
    // SAFETY: as the caller promises.
    unsafe { copy(&text, to, room) }
}

/// Sets all counts to zero.
#[no_mangle]
pub extern "C" fn llama4rs_sim_reset_counters() {
    if let Ok(driver) = driver() {
        driver.counts().clear();
    }
}

/// Number of device allocations that the program has not freed.
#[no_mangle]
pub extern "C" fn llama4rs_sim_live_allocations() -> usize {
    driver().map_or(0, |d| d.memory.live_buffers().len())
}
