//! Which functions the program called, and calls that shall fail.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard};

/// What is known of one function.
#[derive(Default)]
struct Calls {
    made: u64,
    /// How many of the next calls fail, and with which code.
    failing: (u32, i32),
}

static CALLS: Mutex<BTreeMap<String, Calls>> = Mutex::new(BTreeMap::new());

fn calls() -> MutexGuard<'static, BTreeMap<String, Calls>> {
    CALLS.lock().unwrap_or_else(|e| e.into_inner())
}

/// Counts a call; the code with which it shall fail, if it shall.
pub fn note(name: &str) -> Option<i32> {
    let mut all = calls();
    let calls = match all.get_mut(name) {
        Some(calls) => calls,
        None => all.entry(name.to_owned()).or_default(),
    };
    calls.made += 1;
    let (left, code) = &mut calls.failing;
    *left = left.checked_sub(1)?;
    Some(*code)
}

/// Lets the next `times` calls of a function fail with `code`.
pub fn fail(name: &str, times: u32, code: i32) {
    calls().entry(name.to_owned()).or_default().failing = (times, code);
}

/// Calls by function, as JSON; those that were never made are left out.
pub fn json() -> String {
    let mut out = String::from("{");
    for (name, calls) in calls().iter().filter(|(_, calls)| calls.made > 0) {
        let comma = if out.len() > 1 { "," } else { "" };
        let _ = write!(out, "{comma}\"{name}\":{}", calls.made);
    }
    out.push('}');
    out
}

/// Sets all counts to zero.
pub fn reset() {
    calls().values_mut().for_each(|calls| calls.made = 0);
}
