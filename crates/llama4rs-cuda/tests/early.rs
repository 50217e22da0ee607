//! Launches that begin while those before them drain change no bit, and touch nothing too early: the
//! simulated device looks.

mod support;

use llama4rs_cuda::Cuda;
use llama4rs_tensor::{Backend, KvDtype};
use support::scout::Model;
use support::{assert_bits, calls, cuda, fail, nvrtc_folders};

/// Rows of the steps.
const STEPS: [usize; 10] = [2, 70, 1, 1, 1, 20, 3, 3, 3, 1];

/// A device whose launches may begin early, and whose steps may be graphs.
fn device(early: bool, graphs: bool) -> Option<Cuda> {
    // What the simulated device shall be; a real one is what it is.
    std::env::set_var("LLAMA4RS_SIM_CAPABILITY", "9.0");
    cuda().filter(|cuda| cuda.info().capability >= (9, 0))?;
    let cuda = Cuda::open(0, &nvrtc_folders()).unwrap().with_tensor_cores(true).unwrap();
    Some(cuda.with_early_launches(early).with_graphs(graphs))
}

fn step(cuda: &Cuda, model: &mut Model, rows: usize) -> Vec<f32> {
    cuda.step(rows, || model.run(cuda, rows)).unwrap();
    model.logits(cuda)
}

/// Logits of steps of a few sizes, each several times: launch by launch, captured, as a graph. The first one comes
/// right behind the weights.
fn logits(cuda: &Cuda, dtype: KvDtype) -> Vec<Vec<f32>> {
    let mut model = Model::new(cuda, 4, dtype);
    STEPS.map(|rows| step(cuda, &mut model, rows)).to_vec()
}

#[test]
fn early_launches_change_no_bit() {
    let Some(late) = device(false, true) else { return };
    for dtype in [KvDtype::Bf16, KvDtype::Int8] {
        let expected = logits(&late, dtype);
        for graphs in [true, false] {
            let early = device(true, graphs).unwrap();
            for (step, (expected, got)) in expected.iter().zip(logits(&early, dtype)).enumerate() {
                assert_bits(&format!("{dtype:?}, graphs: {graphs}, step {step}"), expected, &got);
            }
            assert_eq!(early.take_warning(), None);
        }
    }
    // In the same test: the failures are for whoever calls next.
    an_invalid_launch_is_no_refusal();
    a_driver_that_refuses_is_asked_once(late);
}

fn an_invalid_launch_is_no_refusal() {
    let early = device(true, false).unwrap();
    let ready = || {
        let model = Model::new(&early, 4, KvDtype::Bf16);
        // Right behind what writes weights no launch begins early.
        early.synchronize().unwrap();
        model
    };
    let mut model = ready();
    for launch in ["cuLaunchKernelEx", "cuLaunchKernel"] {
        if !fail(launch, 1, 1) {
            return;
        }
    }
    let error = early.step(1, || model.run(&early, 1)).err().unwrap().to_string();
    assert!(error.contains("CUDA cannot launch"), "{error}");
    assert_eq!(early.take_warning(), None);
    let mut model = ready();
    let before = calls("cuLaunchKernelEx").unwrap();
    early.step(1, || model.run(&early, 1)).unwrap();
    assert!(calls("cuLaunchKernelEx").unwrap() > before, "launches begin early still");
}

fn a_driver_that_refuses_is_asked_once(late: Cuda) {
    let expected = logits(&late, KvDtype::Bf16);
    // Without graphs: what is captured may always begin early.
    let early = device(true, false).unwrap();
    let mut model = Model::new(&early, 4, KvDtype::Bf16);
    if !fail("cuLaunchKernelEx", 1, 801) {
        return;
    }
    // Products read weights early: right behind what writes these the driver is not asked to begin early.
    let mut got = vec![step(&early, &mut model, STEPS[0])];
    assert_eq!(early.take_warning(), None);
    got.extend(STEPS[1..].iter().map(|&rows| step(&early, &mut model, rows)));
    assert_eq!(expected, got);
    let warning = early.take_warning().unwrap();
    assert!(warning.contains("begin one after the other"), "{warning}");
    assert_eq!(early.take_warning(), None);
}
