//! Kernels that NVRTC made, run beside the same computation on the host.

mod support;

use std::ffi::c_void;

use llama4rs_cuda_sim::driver::launch::cuLaunchCooperativeKernel;
use llama4rs_cuda_sim::driver::module::{cuFuncSetAttribute, cuModuleGetGlobal_v2};
use support::*;

const PTX: &str = include_str!("kernels/warps.ptx");

fn inputs() -> Vec<u32> {
    (0..64u32).map(|i| i.wrapping_mul(2654435761) >> 20 & 0x3ff).collect()
}

/// What one block of the kernel makes of [`inputs`].
fn run(name: &str, words: usize) -> Vec<u32> {
    start();
    let kernel = kernel(load(PTX), name);
    let (x, y) = (upload(&inputs()), allocate(words * 4));
    let answer = launch(kernel, 1, 64, 0, &[y, x]);
    assert_eq!(answer, 0, "{}", report_of(name));
    let out = download(y, words);
    free(x);
    free(y);
    out
}

#[test]
fn collectives() {
    let (x, got) = (inputs(), run("collectives", 64));
    for t in 0..64 {
        let (warp, lane) = (t / 32 * 32, t % 32);
        let at = |l: usize| x[warp + l];
        let lanes = || (0..32).map(at);
        let mask =
            |f: &dyn Fn(u32) -> bool| (0..32).fold(0u32, |m, l| m | u32::from(f(at(l))) << l);
        let up = at(if lane < 3 { lane } else { lane - 3 });
        let down = at(if lane % 16 + 5 > 15 { lane } else { lane + 5 });
        let terms = [
            (1, lanes().sum()),
            (3, up),
            (5, down),
            (7, at(8)),
            (11, mask(&|v| v & 1 == 1)),
            (13, mask(&|v| v % 5 == at(lane) % 5)),
            (17, u32::from(lanes().any(|v| v == 7))),
            (19, u32::from(lanes().all(|v| v < 1000))),
            (23, lanes().max().unwrap()),
            (1, lane as u32),
        ];
        let want = terms.iter().fold(0u32, |s, &(f, v)| s.wrapping_add(v.wrapping_mul(f)));
        assert_eq!(got[t], want, "thread {t}");
    }
}

#[test]
fn lanes_part_and_meet() {
    let (x, got) = (inputs(), run("diverging", 64));
    let each = |v: u32| {
        let mut s = 0u32;
        for i in 0..v % 37 {
            if (i ^ v) & 1 == 1 {
                s = s.wrapping_add(i.wrapping_mul(v));
            } else if i % 3 == 0 {
                s ^= v << (i & 7);
            } else {
                s += 5;
                if !s.is_multiple_of(7) {
                    s += 1;
                }
            }
        }
        s
    };
    for t in 0..64 {
        let other = if t & 16 != 0 { each(x[t ^ 1]) } else { 0 };
        assert_eq!(got[t], each(x[t]).wrapping_add(other), "thread {t}");
    }
}

#[test]
fn functions_and_local_memory() {
    let (x, got) = (inputs(), run("calling", 64));
    let collatz = |mut v: u32| {
        let mut n = 0;
        while v != 1 {
            v = if v & 1 == 1 { 3 * v + 1 } else { v / 2 };
            n += 1;
        }
        n
    };
    for t in 0..64 {
        let (first, second) = (collatz(x[t] + 1), if t & 1 == 1 { collatz(x[t] + 2) } else { 0 });
        assert_eq!(got[t], 2 * (first + second) * 1000 + t as u32 + first + second);
    }
    let got = run("local_arrays", 64);
    for t in 0..64 {
        let mut a: Vec<u32> = (0..16).map(|i| i * x[i as usize]).collect();
        for i in 0..16 {
            a[x[(t + i) & 63] as usize & 15] += i as u32;
        }
        assert_eq!(got[t], a[t & 15] + a[x[t] as usize & 15]);
    }
}

#[test]
fn variables_have_values_and_addresses() {
    start();
    let (module, x) = (load(PTX), inputs());
    let (mut address, mut bytes) = (0, 0);
    // SAFETY: valid pointers.
    let code =
        unsafe { cuModuleGetGlobal_v2(&mut address, &mut bytes, module, c"counter".as_ptr()) };
    assert_eq!((code, bytes), (0, 4));
    let (dx, y) = (upload(&x), allocate(256));
    assert_eq!(
        launch(kernel(module, "variables"), 1, 64, 0, &[y, dx]),
        0,
        "{}",
        report_of("variables")
    );
    let want: Vec<u32> = x.iter().map(|v| 10 * (v & 3) + 10 + 5).collect();
    assert_eq!(download::<u32>(y, 64), want);
}

#[test]
fn atomics_of_many_blocks() {
    start();
    let kernel = kernel(load(PTX), "histogram");
    let (x, y) = (upload(&inputs()), upload(&[0u32; 8]));
    assert_eq!(launch(kernel, 1000, 64, 0, &[y, x]), 0, "{}", report_of("histogram"));
    let mut want = [0; 8];
    inputs().iter().for_each(|v| want[*v as usize & 7] += 1000);
    assert_eq!(download::<u32>(y, 8), want);
}

#[test]
fn blocks_wait_for_each_other() {
    start();
    let kernel = kernel(load(PTX), "grid_barrier");
    const BLOCKS: usize = 60;
    let (x, y, state) = (upload(&inputs()), allocate(BLOCKS * 256), upload(&[0u32; 2]));
    let arguments = [y, x, state];
    let pointers: Vec<*const c_void> = arguments.iter().map(|a| (a as *const u64).cast()).collect();
    let blocks = BLOCKS as u32;
    // SAFETY: valid pointers.
    let code = unsafe {
        cuLaunchCooperativeKernel(kernel, blocks, 1, 1, 64, 1, 1, 0, 0, pointers.as_ptr())
    };
    assert_eq!(code, 0, "{}", report_of("grid_barrier"));
    let total: u32 = (0..BLOCKS).map(|b| inputs()[b & 63]).sum();
    let got = download::<u32>(y, BLOCKS * 64);
    assert!((0..BLOCKS * 64).all(|i| got[i] == total + i as u32 % 64));
}

#[test]
fn named_barriers() {
    let (x, got) = (inputs(), run("producer", 128));
    for i in 0..128 {
        assert_eq!(got[i], x[31 - i % 32] + i as u32 / 32);
    }
}

#[test]
fn structures_as_parameters() {
    #[repr(C)]
    struct Parameters {
        x: u64,
        y: u64,
        add: [u32; 5],
        scale: f32,
    }
    start();
    let kernel = kernel(load(PTX), "struct_parameter");
    let (x, y) = (upload(&inputs()), allocate(256));
    let parameters = Parameters { x, y, add: [1, 2, 3, 4, 5], scale: 0.5 };
    let pointers: [*const c_void; 1] = [(&raw const parameters).cast()];
    // SAFETY: valid pointers.
    let code = unsafe {
        let (p, none) = (pointers.as_ptr(), std::ptr::null());
        llama4rs_cuda_sim::driver::launch::cuLaunchKernel(kernel, 1, 1, 1, 64, 1, 1, 0, 0, p, none)
    };
    assert_eq!(code, 0, "{}", report_of("struct_parameter"));
    let want: Vec<u32> =
        inputs().iter().enumerate().map(|(t, v)| (v + t as u32 % 5).div_ceil(2)).collect();
    assert_eq!(download::<u32>(y, 64), want);
}

#[test]
fn dynamic_shared_memory_needs_consent() {
    start();
    let kernel = kernel(load(PTX), "dynamic_shared");
    let (x, y, words) = (upload(&inputs()), allocate(256), 100u64 * 1024 / 4);
    let arguments = [y, x, words];
    assert_eq!(launch(kernel, 1, 64, 100 * 1024, &arguments), 1);
    assert!(report_of("dynamic_shared").contains("MAX_DYNAMIC_SHARED_SIZE_BYTES"));
    // SAFETY: a valid handle.
    unsafe {
        assert_eq!(cuFuncSetAttribute(kernel, 8, 200 * 1024), 1);
        assert_eq!(cuFuncSetAttribute(kernel, 8, 100 * 1024), 0);
    }
    assert_eq!(launch(kernel, 1, 64, 100 * 1024, &arguments), 0, "{}", report_of("dynamic_shared"));
    let got = download::<u32>(y, 64);
    for t in 0..64 {
        let at = |i: u64| inputs()[(i as usize + (t ^ 33)) & 63] + (i as u32 + (t as u32 ^ 33));
        assert_eq!(got[t], (0..words).step_by(64).map(at).sum::<u32>());
    }
}
