//! Launches that begin while those before them drain change no bit, and touch nothing too early: the
//! simulated device looks.

mod support;

use std::ffi::CString;

use llama4rs_cuda::Cuda;
use llama4rs_tensor::{Backend, KvDtype};
use support::scout::Model;
use support::{assert_bits, cuda, nvrtc_folders};

/// A device whose launches may begin early.
fn device(early: bool) -> Option<Cuda> {
    // What the simulated device shall be; a real one is what it is.
    std::env::set_var("LLAMA4RS_SIM_CAPABILITY", "9.0");
    cuda().filter(|cuda| cuda.info().capability >= (9, 0))?;
    let cuda = Cuda::open(0, &nvrtc_folders()).unwrap().with_tensor_cores(true).unwrap();
    Some(cuda.with_early_launches(early))
}

/// Logits of steps of a few sizes, each several times: launch by launch, captured, as a graph.
fn logits(cuda: &Cuda, dtype: KvDtype) -> Vec<Vec<f32>> {
    let mut model = Model::new(cuda, 4, dtype);
    let step = |rows| {
        cuda.step(rows, || model.run(cuda, rows)).unwrap();
        model.logits(cuda)
    };
    [70, 1, 1, 1, 20, 3, 3, 3, 1].map(step).to_vec()
}

#[test]
fn early_launches_change_no_bit() {
    let (Some(early), Some(late)) = (device(true), device(false)) else { return };
    for dtype in [KvDtype::Bf16, KvDtype::Int8] {
        let (expected, got) = (logits(&late, dtype), logits(&early, dtype));
        for (step, (expected, got)) in expected.iter().zip(&got).enumerate() {
            assert_bits(&format!("{dtype:?}, step {step}"), expected, got);
        }
    }
    assert_eq!(early.take_warning(), None);
    // In the same test: the failure is for whoever calls next.
    a_driver_that_refuses_is_asked_once(early, late);
}

fn a_driver_that_refuses_is_asked_once(early: Cuda, late: Cuda) {
    // SAFETY: the driver is loaded; the function is the stand-in's, of this type.
    unsafe {
        type Fail = unsafe extern "C" fn(*const std::ffi::c_char, u32, i32);
        let driver = libloading::Library::new("libcuda.so.1").unwrap();
        let Ok(fail) = driver.get::<Fail>(b"llama4rs_sim_fail") else { return };
        fail(CString::new("cuLaunchKernelEx").unwrap().as_ptr(), 1, 801);
    }
    let (expected, got) = (logits(&late, KvDtype::Bf16), logits(&early, KvDtype::Bf16));
    assert_eq!(expected, got);
    let warning = early.take_warning().unwrap();
    assert!(warning.contains("begin one after the other"), "{warning}");
    assert_eq!(early.take_warning(), None);
}
