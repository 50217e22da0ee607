//! Streams, events, captures, graphs, limits, leaks, and modules that are refused.

mod support;

use std::ffi::{c_int, c_void, CString};
use std::ptr::null;

use llama4rs_cuda_sim::driver::{
    device::*, graph::*, launch::*, memory::*, module::*, sim::*, stream::*,
};
use support::*;

const BUGS: &str = include_str!("kernels/bugs.ptx");

fn stream() -> u64 {
    start();
    let mut stream = 0;
    // SAFETY: valid pointers and handles, here and below.
    assert_eq!(unsafe { cuStreamCreate(&mut stream, 1) }, 0);
    stream
}

/// Launches `plain_copy` of 64 words in a stream.
fn copy_in(stream: u64, kernel: u64, y: u64, x: u64) -> i32 {
    let arguments = [y, x, 0];
    let pointers: Vec<*const c_void> = arguments.iter().map(|a| (a as *const u64).cast()).collect();
    // SAFETY: as above.
    unsafe { cuLaunchKernel(kernel, 1, 1, 1, 64, 1, 1, 0, stream, pointers.as_ptr(), null()) }
}

#[test]
fn a_graph_does_its_work_again_and_again() {
    let (s, other) = (stream(), stream());
    let kernel = kernel(load(BUGS), "plain_copy");
    let (x, y, z) = (upload(&[7u32; 64]), upload(&[0u32; 64]), upload(&[0u32; 64]));
    let (mut graph, mut executable, mut fork, mut join, mut status) = (0, 0, 0, 0, 9);
    // SAFETY: as above.
    unsafe {
        assert_eq!(cuEventCreate(&mut fork, 2), 0);
        assert_eq!(cuEventCreate(&mut join, 2), 0);
        assert_eq!(cuStreamBeginCapture_v2(s, 1), 0);
        assert_eq!(cuStreamIsCapturing(s, &mut status), 0);
        assert_eq!(status, 1);
        assert_eq!(copy_in(s, kernel, y, x), 0);
        // A second stream joins the capture by events.
        assert_eq!(cuEventRecord(fork, s), 0);
        assert_eq!(cuStreamWaitEvent(other, fork, 0), 0);
        assert_eq!(copy_in(other, kernel, z, y), 0);
        assert_eq!(cuEventRecord(join, other), 0);
        assert_eq!(cuStreamWaitEvent(s, join, 0), 0);
        assert_eq!(cuStreamEndCapture(s, &mut graph), 0);
        assert_eq!(download::<u32>(z, 64), [0; 64], "nothing has run yet");
        assert_eq!(cuGraphInstantiateWithFlags(&mut executable, graph, 1), 0);
        for value in [3u32, 4] {
            assert_eq!(cuMemsetD32Async(x, value, 64, s), 0);
            assert_eq!(cuGraphLaunch(executable, s), 0);
            assert_eq!(download::<u32>(z, 64), [value; 64]);
        }
        assert_eq!(cuGraphExecDestroy(executable), 0);
        assert_eq!(cuGraphLaunch(executable, s), 400);
        assert_eq!(cuGraphDestroy(graph), 0);
    }
}

#[test]
fn what_may_not_be_captured_spoils_the_capture() {
    for call in 0..4 {
        let s = stream();
        let (mut address, mut graph, mut word) = (0, 0, 0u32);
        let x = upload(&[1u32]);
        // SAFETY: as above.
        unsafe {
            assert_eq!(cuStreamBeginCapture_v2(s, 1), 0);
            let answer = match call {
                0 => cuMemAlloc_v2(&mut address, 64),
                1 => cuMemAllocAsync(&mut address, 64, s),
                2 => cuStreamSynchronize(s),
                _ => cuMemcpyDtoH_v2((&raw mut word).cast(), x, 4),
            };
            assert_eq!(answer, 900, "call {call}");
            assert_eq!(cuStreamEndCapture(s, &mut graph), 901);
            // The stream is free again.
            assert_eq!(cuStreamSynchronize(s), 0);
        }
    }
}

#[test]
fn a_stream_that_is_not_waited_for_is_an_error() {
    let (s, other) = (stream(), stream());
    let (mut event, mut graph) = (0, 0);
    let x = upload(&[0u32; 64]);
    // SAFETY: as above.
    unsafe {
        assert_eq!(cuEventCreate(&mut event, 0), 0);
        assert_eq!(cuStreamBeginCapture_v2(s, 1), 0);
        assert_eq!(cuEventRecord(event, s), 0);
        assert_eq!(cuStreamWaitEvent(other, event, 0), 0);
        assert_eq!(cuMemsetD32Async(x, 1, 64, other), 0);
        assert_eq!(cuStreamEndCapture(s, &mut graph), 904);
        assert_eq!(cuStreamBeginCapture_v2(0, 1), 900, "the default stream");
    }
}

#[test]
fn limits_of_launches() {
    start();
    let kernel = kernel(load(BUGS), "plain_copy");
    let (x, y) = (upload(&[0u32; 64]), allocate(256));
    assert_eq!(launch(kernel, 1, 0, 0, &[y, x, 0]), 1);
    assert_eq!(launch(kernel, 0, 64, 0, &[y, x, 0]), 1);
    assert_eq!(launch(kernel, 1, 2048, 0, &[y, x, 0]), 1);
    assert_eq!(launch(kernel, 1, 128, 0, &[y, x, 0]), 701, "beyond the launch bounds");
    assert_eq!(launch(kernel, 1, 64, 64 << 10, &[y, x, 0]), 1);
    assert_eq!(launch(kernel + 16 * 100_000, 1, 64, 0, &[y, x, 0]), 400);
    let pointers: Vec<*const c_void> =
        [&y, &x, &0].iter().map(|a| (*a as *const u64).cast()).collect();
    // SAFETY: as above.
    let code = unsafe {
        cuLaunchCooperativeKernel(kernel, 10_000, 1, 1, 64, 1, 1, 0, 0, pointers.as_ptr())
    };
    assert_eq!(code, 720);
}

#[test]
fn memory_that_is_not_ours() {
    start();
    let x = upload(&[1u32; 16]);
    let mut out = [0u32; 17];
    // SAFETY: as above.
    unsafe {
        assert_eq!(cuMemcpyDtoH_v2(out.as_mut_ptr().cast(), x, 68), 1, "past the end");
        assert_eq!(cuMemsetD32_v2(x + 2, 0, 4), 1, "not aligned");
        assert_eq!(cuMemcpyDtoH_v2(out.as_mut_ptr().cast(), 0, 0), 0, "nothing from nowhere");
        assert_eq!(cuMemFree_v2(x + 4), 1, "not a start");
        assert_eq!(cuMemFree_v2(x), 0);
        assert_eq!(cuMemFree_v2(x), 1, "freed before");
        let (mut address, mut free, mut total) = (0, 0, 0);
        assert_eq!(cuMemGetInfo_v2(&mut free, &mut total), 0);
        assert_eq!(total, 2 << 30);
        assert_eq!(cuMemAlloc_v2(&mut address, total + 1), 2);
        assert!(reports().contains("are free"));
    }
    let y = allocate(1);
    assert!(llama4rs_sim_live_allocations() > 0);
    free(y);
}

#[test]
fn fresh_memory_is_poisoned_and_copies_keep_what_is_unwritten() {
    start();
    let kernel = kernel(load(BUGS), "plain_copy");
    let (a, b, y) = (allocate(256), allocate(256), allocate(256));
    assert_eq!(download::<u32>(a, 64), [u32::MAX; 64]);
    // SAFETY: as above.
    unsafe {
        assert_eq!(cuMemsetD32_v2(a, 5, 63), 0);
        assert_eq!(cuMemcpyDtoD_v2(b, a, 256), 0);
        assert_eq!(launch(kernel, 1, 64, 0, &[y, b, 0]), 719);
        assert!(report_of("plain_copy").contains("thread (63, 0, 0)"));
        assert_eq!(cuMemsetD32_v2(b + 252, 5, 1), 0);
    }
    assert_eq!(launch(kernel, 1, 64, 0, &[y, b, 0]), 0);
    assert_eq!(download::<u32>(y, 64), [5; 64]);
}

#[test]
fn host_memory_is_reached_by_the_device() {
    start();
    let kernel = kernel(load(BUGS), "plain_copy");
    let mut memory = std::ptr::null_mut();
    // SAFETY: as above; the host memory has 64 words.
    unsafe {
        assert_eq!(cuMemHostAlloc(&mut memory, 256, 0), 0);
        std::slice::from_raw_parts_mut(memory.cast::<u32>(), 64).fill(9);
        let y = allocate(256);
        assert_eq!(launch(kernel, 1, 64, 0, &[y, memory as u64, 0]), 0);
        assert_eq!(download::<u32>(y, 64), [9; 64]);
        assert_eq!(cuMemFreeHost(memory), 0);
        assert_eq!(launch(kernel, 1, 64, 0, &[y, memory as u64, 0]), 700);
    }
}

#[test]
fn modules_that_are_refused_say_why() {
    start();
    let refused = |image: &str, code: i32, word: &str| {
        let image = CString::new(image).unwrap();
        let (mut module, mut log) = (0, vec![0u8; 1024]);
        let mut options: [c_int; 2] = [5, 6];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), log.len() as *mut c_void];
        // SAFETY: as above.
        let answer = unsafe {
            cuModuleLoadDataEx(
                &mut module,
                image.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        let log = String::from_utf8_lossy(&log).into_owned();
        assert_eq!(answer, code, "{log}");
        assert!(log.contains(word), "{log}");
    };
    let kernel = |line: &str| {
        format!(
            ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{{\n\
             .reg .b32 %r<4>;\n{line}\nret;\n}}\n"
        )
    };
    refused("\u{7f}ELF", 209, "runs PTX, not CUBINs");
    refused(".version 9.0\n.target sm_90a\n", 209, "sm_90a");
    refused(&kernel("tex.2d.v4.f32 %r1, %r2;"), 218, "line 7: kernel `k`: instruction `tex");
    refused(&kernel("add.s32 %r1, %r2, %rd9;"), 218, "`%rd9` is not known");
    refused(&kernel("add.zz.s32 %r1, %r2, %r3;"), 218, "add.zz.s32");
    refused(&kernel("bra nowhere;"), 218, "nowhere");
    refused("something else", 218, "expected a directive");
}

#[test]
fn nothing_works_without_a_context() {
    start();
    std::thread::spawn(|| {
        let mut address = 0;
        // SAFETY: as above.
        assert_eq!(unsafe { cuMemAlloc_v2(&mut address, 64) }, 201);
    })
    .join()
    .unwrap();
}

#[test]
fn counters_count() {
    start();
    let kernel = kernel(load(BUGS), "race_write_after_read");
    let (x, y) = (upload(&[1u32; 64]), allocate(256));
    assert_eq!(launch(kernel, 3, 64, 0, &[y, x, 0]), 0);
    let mut text = vec![0u8; 1 << 16];
    // SAFETY: as above.
    let length = unsafe { llama4rs_sim_counters(text.as_mut_ptr().cast(), text.len()) };
    let text = String::from_utf8_lossy(&text[..length]).into_owned();
    let start = text.find("\"race_write_after_read\"").unwrap();
    let own = &text[start..text[start..].find('}').unwrap() + start];
    // Two warps of 128 bytes in each of three blocks: four sectors each; four shared
    // accesses without conflicts.
    let wanted = [
        "\"launches\":1",
        "\"blocks\":3",
        "\"bytes_read\":768",
        "\"bytes_written\":768",
        "\"sectors_read\":24",
        "\"distinct_sectors\":8",
        "\"sectors_written\":24",
        "\"shared_wavefronts\":24",
        "\"shared_ideal\":24",
    ];
    for w in wanted {
        assert!(own.contains(w), "{w} is not in {own}");
    }
}

#[test]
fn events_tell_time() {
    let s = stream();
    let (mut from, mut to, mut milliseconds) = (0, 0, -1f32);
    // SAFETY: as above.
    unsafe {
        assert_eq!(cuEventCreate(&mut from, 0), 0);
        assert_eq!(cuEventCreate(&mut to, 0), 0);
        assert_eq!(cuEventElapsedTime_v2(&mut milliseconds, from, to), 400, "never recorded");
        assert_eq!(cuEventRecord(from, s), 0);
        assert_eq!(cuEventRecord(to, s), 0);
        assert_eq!(cuEventSynchronize(to), 0);
        assert_eq!(cuEventElapsedTime_v2(&mut milliseconds, from, to), 0);
        assert!(milliseconds >= 0.0);
        let (mut major, mut minor) = (0, 0);
        assert_eq!(cuDeviceGetAttribute(&mut major, 75, 0), 0);
        assert_eq!(cuDeviceGetAttribute(&mut minor, 76, 0), 0);
        assert_eq!((major, minor), (8, 0));
    }
}
