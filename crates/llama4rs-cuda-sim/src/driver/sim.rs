//! What only this driver offers: reports, counts, failures on demand.

use std::ffi::{c_char, c_int, c_uint, CStr};
use std::sync::atomic::Ordering;

use super::state::driver;
use super::{calls, put_text};
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

/// Calls of the driver's functions as JSON; returns its length in bytes.
///
/// # Safety
/// `to` is null or has room for `room` bytes.
#[no_mangle]
pub unsafe extern "C" fn llama4rs_sim_calls(to: *mut c_char, room: usize) -> usize {
    let text = calls::json();
    // SAFETY: as the caller promises.
    unsafe { put_text(&text, to.cast(), room) };
    text.len()
}

/// Lets the next `times` calls of the function `name` do nothing and answer `code`.
///
/// # Safety
/// `name` is null or a text that ends with a zero.
#[no_mangle]
pub unsafe extern "C" fn llama4rs_sim_fail(name: *const c_char, times: c_uint, code: c_int) {
    if !name.is_null() {
        // SAFETY: as the caller promises.
        let name = unsafe { CStr::from_ptr(name) };
        calls::fail(&name.to_string_lossy(), times, code);
    }
}

/// Sets all counts to zero.
#[no_mangle]
pub extern "C" fn llama4rs_sim_reset_counters() {
    calls::reset();
    if let Ok(driver) = driver() {
        driver.counts().clear();
    }
}

/// Number of device allocations that the program has not freed.
#[no_mangle]
pub extern "C" fn llama4rs_sim_live_allocations() -> usize {
    driver().map_or(0, |d| d.memory.live_buffers().len())
}

/// From now on launches do nothing (1), or run (0): to measure what is around them.
#[no_mangle]
pub extern "C" fn llama4rs_sim_skip_kernels(skip: c_int) {
    if let Ok(driver) = driver() {
        driver.skips_kernels.store(skip != 0, Ordering::Relaxed);
    }
}
