//! Launches that may begin before those before them have ended, and what they must not touch then.

mod support;

use std::ffi::c_void;
use std::ptr::null;
use std::sync::{Mutex, PoisonError};

use llama4rs_cuda_sim::driver::launch::cuLaunchKernelEx;
use llama4rs_cuda_sim::driver::stream::cuStreamSynchronize;
use support::*;

const LOAD: &str = "ld.global.u32 %r2, [%rd5];";
const WAIT: &str = "griddepcontrol.wait;";
const NEXT: &str = "griddepcontrol.launch_dependents;";
const STORE: &str = "st.global.u32 [%rd4], %r2;";
const ADD: &str = "atom.global.add.u32 %r3, [%rd4], 1;";

/// A kernel that does something with word `tid` of x and of y.
fn program(name: &str, body: &[&str]) -> u64 {
    let ptx = format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n
        .visible .entry {name}(.param .u64 y, .param .u64 x)
        {{
        .reg .b32 %r<4>;
        .reg .b64 %rd<6>;
        .reg .pred %p<2>;
        ld.param.u64 %rd1, [y];
        ld.param.u64 %rd2, [x];
        mov.u32 %r1, %tid.x;
        mul.wide.u32 %rd3, %r1, 4;
        add.s64 %rd4, %rd1, %rd3;
        add.s64 %rd5, %rd2, %rd3;
        {}
        ret;
        }}\n",
        body.join("\n")
    );
    kernel(load(&ptx), name)
}

/// The driver's configuration of a launch, and an attribute of it.
#[repr(C)]
struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic: u32,
    stream: u64,
    attributes: *const Attribute,
    count: u32,
}

#[repr(C)]
struct Attribute {
    id: u32,
    pad: [u8; 4],
    value: [u32; 16],
}

/// One block of 64 threads that may begin early.
fn launch_early(function: u64, arguments: &[u64]) -> i32 {
    let pointers: Vec<*const c_void> = arguments.iter().map(|a| (a as *const u64).cast()).collect();
    let mut value = [0; 16];
    value[0] = 1;
    let attribute = Attribute { id: 6, pad: [0; 4], value };
    let config = Config {
        grid: [1; 3],
        block: [64, 1, 1],
        dynamic: 0,
        stream: 0,
        attributes: &attribute,
        count: 1,
    };
    // SAFETY: the structures are laid out as the driver's.
    unsafe { cuLaunchKernelEx((&raw const config).cast(), function, pointers.as_ptr(), null()) }
}

/// One test at a time: a host that waits for one's launches would wait for those of another.
static DEVICE: Mutex<()> = Mutex::new(());

/// Runs a kernel early, behind one that writes its input; the code and the report.
fn behind_a_writer(name: &str, body: &[&str], waits: bool) -> (i32, String) {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    std::env::set_var("LLAMA4RS_SIM_CAPABILITY", "9.0");
    start();
    let words: Vec<u32> = (0..64).collect();
    let (from, x, y) = (upload(&words), allocate(256), upload(&words));
    let writer = program("writer", &[LOAD, STORE]);
    assert_eq!(launch(writer, 1, 64, 0, &[x, from]), 0);
    if waits {
        // SAFETY: the default stream.
        assert_eq!(unsafe { cuStreamSynchronize(0) }, 0);
    }
    let code = launch_early(program(name, body), &[y, x]);
    if code == 0 && body.contains(&STORE) {
        assert_eq!(download::<u32>(y, 64), words, "{name}");
    }
    (code, report_of(name))
}

#[test]
fn who_waits_may_touch_everything() {
    for (name, body) in [
        ("reads", &[WAIT, NEXT, LOAD, STORE][..]),
        ("lets_go_first", &[NEXT, WAIT, LOAD, STORE]),
        ("adds", &[WAIT, ADD]),
        ("only_waits", &[WAIT]),
    ] {
        let (code, report) = behind_a_writer(name, body, false);
        assert_eq!(code, 0, "{name}: {report}");
    }
}

#[test]
fn what_was_there_before_may_be_read_early() {
    let (code, report) = behind_a_writer("after_the_host", &[LOAD, WAIT, STORE], true);
    assert_eq!(code, 0, "{report}");
}

#[test]
fn reads_before_the_wait_are_found() {
    let (code, report) = behind_a_writer("too_early", &[LOAD, WAIT, STORE], false);
    assert_eq!(code, 719, "{report}");
    for words in ["TooEarly", "thread (0, 0, 0)", "a launch before wrote", "allocation"] {
        assert!(report.contains(words), "`{words}` is missing in: {report}");
    }
}

#[test]
fn writes_before_the_wait_are_found() {
    for (name, body) in
        [("stores_early", &["mov.u32 %r2, 7;", STORE, WAIT][..]), ("adds_early", &[ADD, WAIT])]
    {
        let (code, report) = behind_a_writer(name, body, true);
        assert_eq!(code, 719, "{name}: {report}");
        assert!(report.contains("writes at"), "{report}");
    }
}

#[test]
fn who_never_waits_is_found() {
    let half = ["setp.lt.u32 %p1, %r1, 40;", "@%p1 griddepcontrol.wait;"];
    for (name, body, thread) in
        [("forgets", &[NEXT][..], "thread (0, 0, 0)"), ("half_waits", &half, "thread (40, 0, 0)")]
    {
        let (code, report) = behind_a_writer(name, body, true);
        assert_eq!(code, 719, "{name}: {report}");
        for words in ["TooEarly", "never executed", thread] {
            assert!(report.contains(words), "`{words}` is missing in: {report}");
        }
    }
}
