//! Kernels are compiled before they are needed.

mod support;

use std::ops::ControlFlow;

use llama4rs_cuda::Cuda;
use llama4rs_tensor::{Backend, KvDtype};
use support::scout::Model;
use support::{cuda, nvrtc_folders, skip_kernels};

#[test]
fn what_steps_of_any_size_need_is_expected() {
    if cuda().is_none() {
        return;
    }
    // Nobody looks at what they compute.
    skip_kernels(true);
    for dtype in [KvDtype::Bf16, KvDtype::Int8] {
        let cuda = Cuda::open(0, &nvrtc_folders()).unwrap().with_tensor_cores(true).unwrap();
        let mut model = Model::new(&cuda, 4, dtype);
        let mut seen = Vec::new();
        cuda.get_ready(&mut |done, all| {
            seen.push((done, all));
            ControlFlow::Continue(())
        });
        let &(done, all) = seen.last().unwrap();
        assert!(done == all && all > 12, "{seen:?}");
        assert!(seen.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{seen:?}");
        let before = cuda.unexpected_kernels();
        // For few rows, for experts of few rows, for tiles, for slices.
        for rows in [1, 5, 9, 16, 17, 40, 65, 150] {
            cuda.step(rows, || model.run(&cuda, rows)).unwrap();
            cuda.synchronize().unwrap();
        }
        assert_eq!(cuda.unexpected_kernels(), before);
    }
}

#[test]
fn whoever_does_not_wait_gets_the_same() {
    if cuda().is_none() {
        return;
    }
    skip_kernels(true);
    let cuda = Cuda::open(0, &nvrtc_folders()).unwrap().with_tensor_cores(true).unwrap();
    let mut model = Model::new(&cuda, 4, KvDtype::Bf16);
    let mut calls = 0;
    cuda.get_ready(&mut |_, _| {
        calls += 1;
        ControlFlow::Break(())
    });
    assert_eq!(calls, 1);
    cuda.step(3, || model.run(&cuda, 3)).unwrap();
    cuda.synchronize().unwrap();
}
