//! What only this driver offers: reports and counts.

use std::ffi::c_char;

use super::put_text;
use super::state::driver;
use crate::counters;

/// All reports since the last clearing, one a line; returns their length in bytes.
///
/// # Safety
/// `to` is null or has room for `room` bytes.
#[no_mangle]
pub unsafe extern "C" fn llama4rs_sim_report(to: *mut c_char, room: usize) -> usize {
    let text = driver().map_or(String::new(), |d| d.reports().join("\n"));
    // SAFETY: as the caller promises.
    unsafe { put_text(&text, to.cast(), room) };
    text.len()
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
    unsafe { put_text(&text, to.cast(), room) };
    text.len()
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
