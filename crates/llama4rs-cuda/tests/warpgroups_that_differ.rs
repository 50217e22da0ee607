//! A simulated device whose `wgmma` adds in another order than `mma`: it is found out and not used.

mod support;

use llama4rs_cuda::{Cuda, PromptProducts};
use llama4rs_tensor::WeightFormat;
use support::operations::{halves, matmul};
use support::{assert_bits, hopper, launches, nvrtc_folders, Random};

#[test]
fn other_bits_are_not_used() {
    std::env::set_var("LLAMA4RS_SIM_PRODUCTS", "backwards");
    let Some(device) = hopper() else { return };
    if !device.info().is_simulated() {
        return println!("skipped: no simulated device");
    }
    let cuda = Cuda::open(0, &nvrtc_folders()).unwrap().with_tensor_cores(true).unwrap();
    let PromptProducts::Warps(why) = cuda.prompt_products() else {
        panic!("it went unnoticed that results differ")
    };
    assert!(why.contains("adds in another way here"), "{why}");
    let checked = launches("matmul_wgmma");
    assert_eq!(checked, Some(1));
    let (random, rows, cols, tokens) = (&mut Random(1), 520, 72, 140);
    let weights = random.weights(WeightFormat::Int4 { group: 64 }, 1, rows, cols);
    let x = halves(random, tokens * cols);
    let all = matmul(&cuda, &x, cols, &[&weights]);
    for row in [0, 63, 139] {
        let alone = matmul(&cuda, &x[row * cols..][..cols], cols, &[&weights]);
        assert_bits("a row alone", &all[0][row * rows..][..rows], &alone[0]);
    }
    assert_eq!(launches("matmul_wgmma"), checked);
}
