//! Steps for which there is no memory to grow: the simulated driver refuses it to the whole process.

mod support;

use llama4rs_cuda::Cuda;
use llama4rs_tensor::{Backend, KvDtype};
use support::scout::Model;
use support::{calls, cuda, fail, nvrtc_folders, skip_kernels};

const OUT_OF_MEMORY: i32 = 2;

#[test]
fn memory_that_was_refused_is_not_asked_for_in_every_step() {
    // Nobody looks at what the kernels compute.
    if cuda().is_none() || !skip_kernels(true) {
        return;
    }
    let cuda = Cuda::open(0, &nvrtc_folders()).unwrap().with_graphs(true);
    let mut model = Model::new(&cuda, 4, KvDtype::Bf16);
    let mut run = |steps, rows| {
        for _ in 0..steps {
            // The same grids in all of them.
            model.tokens = 0;
            cuda.step(rows, || model.run(&cuda, rows)).unwrap();
            cuda.synchronize().unwrap();
        }
    };
    let count = |function: &str| calls(function).unwrap();
    run(3, 1);
    run(1, 100);
    // The arena asks, and asks again when free memory has gone back to the driver.
    fail("cuMemAlloc_v2", 2, OUT_OF_MEMORY);
    let asked = count("cuMemAlloc_v2");
    run(1, 100);
    assert!(count("cuMemAlloc_v2") > asked + 2);
    fail("cuMemAlloc_v2", u32::MAX, OUT_OF_MEMORY);
    let asked = count("cuMemAlloc_v2");
    run(2, 100);
    let launched = count("cuGraphLaunch");
    run(6, 100);
    assert_eq!(count("cuGraphLaunch"), launched + 6);
    assert_eq!(count("cuMemAlloc_v2"), asked);
}
