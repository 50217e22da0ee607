//! As `compiling.rs`, where prompts are multiplied by warpgroups.

mod support;

use std::ops::ControlFlow;

use llama4rs_cuda::{Cuda, PromptProducts};
use llama4rs_tensor::{Backend, KvDtype};
use support::scout::Model;
use support::{hopper, nvrtc_folders, skip_kernels};

#[test]
fn what_prompts_need_is_expected() {
    if hopper().is_none() {
        return;
    }
    let cuda = Cuda::open(0, &nvrtc_folders()).unwrap().with_tensor_cores(true).unwrap();
    if cuda.prompt_products() != &PromptProducts::Warpgroups {
        return println!("skipped: no device of capability 9.0");
    }
    // Nobody looks at what they compute.
    skip_kernels(true);
    let mut model = Model::new(&cuda, 4, KvDtype::Bf16);
    cuda.get_ready(&mut |_, _| ControlFlow::Continue(()));
    let before = cuda.unexpected_kernels();
    for rows in [150, 500] {
        cuda.step(rows, || model.run(&cuda, rows)).unwrap();
        cuda.synchronize().unwrap();
    }
    assert_eq!(cuda.unexpected_kernels(), before);
}
