//! What a decode step costs the host: `cargo test --release --test recording -- --ignored --nocapture`.
//!
//! One sequence of 8192 tokens; the matrices are small, which the host does not notice.

mod support;

use std::time::Duration;

use llama4rs_cuda::{Cuda, Routing};
use llama4rs_tensor::{Backend, Error, KvDtype, Result};
use support::scout::{Model, TOKENS};
use support::{cuda, nvrtc_folders, skip_kernels};

const LAYERS: usize = 48;

/// Processor time of this thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Median and least of `rounds` calls, in microseconds.
fn timed(rounds: usize, mut call: impl FnMut()) -> (f64, f64) {
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = thread_time();
            call();
            (thread_time() - start).as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[rounds / 2], times[0])
}

/// A step of the last token there is room for.
fn again(model: &mut Model, cuda: &Cuda) -> Result<Vec<Routing>> {
    model.tokens = TOKENS - 1;
    model.run(cuda, 1)
}

#[test]
#[ignore = "a measurement"]
fn a_step_of_48_layers() {
    if cuda().is_none() || !skip_kernels(true) {
        return;
    }
    let cuda =
        Cuda::open(0, &nvrtc_folders()).unwrap().with_tensor_cores(true).unwrap().with_graphs(true);
    let mut model = Model::new(&cuda, LAYERS, KvDtype::Bf16);
    for _ in 0..4 {
        cuda.step(1, || again(&mut model, &cuda)).unwrap();
        cuda.synchronize().unwrap();
    }
    let rounds = 1000;
    let whole = timed(rounds, || {
        cuda.step(1, || again(&mut model, &cuda)).unwrap();
        cuda.synchronize().unwrap();
    });
    let recorded = timed(rounds, || {
        let outcome: Result<()> = cuda.step(1, || {
            again(&mut model, &cuda)?;
            Err(Error::shape("test", "a step", "no step"))
        });
        assert!(outcome.is_err());
    });
    let empty = timed(rounds, || {
        cuda.step(1, || Ok::<(), Error>(())).unwrap();
        cuda.synchronize().unwrap();
    });
    println!("recorded: {:.1} us (at best {:.1})", recorded.0, recorded.1);
    println!("and submitted: {:.1} us (at best {:.1})", whole.0, whole.1);
    println!("an empty step: {:.1} us", empty.0);
    skip_kernels(false);
}
