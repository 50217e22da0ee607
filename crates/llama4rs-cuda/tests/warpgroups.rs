//! Hopper's products of warpgroups on a simulated device of capability 9.0 (or on a card of that): the bits of
//! `mma`'s, for random shapes.

mod support;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use llama4rs_cuda::{Cuda, PromptProducts};
use llama4rs_tensor::WeightFormat;
use proptest::prelude::*;
use support::operations::{feed_forward, format, halves, layer, matmul, mixture, SUMS};
use support::{assert_bits, assert_close, cpu, hopper, launches, nvrtc_folders, Random};

/// A device with products of warpgroups, and one without; one test at a time, as launches are counted.
fn devices() -> Option<(&'static [Cuda; 2], MutexGuard<'static, ()>)> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    static DEVICES: OnceLock<Option<[Cuda; 2]>> = OnceLock::new();
    let open = || {
        hopper()?;
        let open = || Cuda::open(0, &nvrtc_folders()).unwrap().with_tensor_cores(true).unwrap();
        let with = open();
        if with.info().capability.0 != 9 {
            println!("skipped: no device of capability 9.0");
            return None;
        }
        assert_eq!(with.prompt_products(), &PromptProducts::Warpgroups);
        Some([with, open().without_warpgroups()])
    };
    Some((DEVICES.get_or_init(open).as_ref()?, turn))
}

#[test]
fn products_of_every_format() {
    let Some(([with, without], _turn)) = devices() else { return };
    let random = &mut Random(1);
    for (format, rows, cols, tokens) in [
        (WeightFormat::Bf16, 270, 264, 140),
        (WeightFormat::Int8 { group: 64 }, 257, 72, 193),
        (WeightFormat::Int4 { group: 32 }, 770, 96, 65),
        (WeightFormat::Int4 { group: 64 }, 260, 520, 130),
        (WeightFormat::Int4 { group: 128 }, 258, 1288, 129),
    ] {
        let weights = random.weights(format, 1, rows, cols);
        let x = halves(random, tokens * cols);
        let before = launches("matmul_wgmma");
        let got = matmul(with, &x, cols, &[&weights]);
        assert_eq!(launches("matmul_wgmma"), before.map(|count| count + 1), "{format}");
        assert_close(&format!("{format}"), &matmul(cpu(), &x, cols, &[&weights])[0], &got[0], SUMS);
        assert_bits(&format!("{format}"), &matmul(without, &x, cols, &[&weights])[0], &got[0]);
        assert_eq!(launches("matmul_wgmma"), before.map(|count| count + 1), "{format}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, failure_persistence: None, max_shrink_iters: 8, ..Default::default() })]
    #[test]
    fn products(
        format in format(),
        outputs in prop::collection::vec(257usize..300, 1..3),
        cols in (1usize..60).prop_map(|n| n * 8),
        tokens in 129usize..200,
        part in any::<prop::sample::Index>(),
        seed in any::<u64>(),
    ) {
        let Some(([with, without], _turn)) = devices() else { return Ok(()) };
        let random = &mut Random(seed);
        let weights: Vec<_> = outputs.iter().map(|&rows| random.weights(format, 1, rows, cols)).collect();
        let weights: Vec<_> = weights.iter().collect();
        let x = halves(random, tokens * cols);
        let got = matmul(with, &x, cols, &weights);
        for (expected, got) in matmul(without, &x, cols, &weights).iter().zip(&got) {
            assert_bits(&format!("{format}"), expected, got);
        }
        let row = part.index(tokens);
        let alone = matmul(with, &x[row * cols..][..cols], cols, &weights);
        for ((alone, got), rows) in alone.iter().zip(&got).zip(&outputs) {
            assert_bits("a row alone", &got[row * rows..][..*rows], alone);
        }
    }

    #[test]
    fn dense_layers(
        formats in [format(), format()],
        hidden in (1usize..30).prop_map(|n| n * 8),
        inner in (32usize..40).prop_map(|n| n * 8),
        tokens in 129usize..200,
        seed in any::<u64>(),
    ) {
        let Some(([with, without], _turn)) = devices() else { return Ok(()) };
        let random = &mut Random(seed);
        let weights = layer(random, 1, formats, [hidden, inner]);
        let x = halves(random, tokens * hidden);
        let expected = feed_forward(without, &x, hidden, &weights);
        assert_bits(&format!("{formats:?}"), &expected, &feed_forward(with, &x, hidden, &weights));
    }

    #[test]
    fn mixtures(
        formats in [format(), format()],
        experts in 1usize..4,
        top_k in 1usize..=2,
        hidden in (1usize..30).prop_map(|n| n * 8),
        inner in (1usize..24).prop_map(|n| n * 8),
        tokens in 150usize..200,
        seed in any::<u64>(),
    ) {
        let Some(([with, without], _turn)) = devices() else { return Ok(()) };
        let (random, top_k) = (&mut Random(seed), top_k.min(experts));
        let router = random.weights(WeightFormat::F32, 1, experts, hidden);
        let shared = layer(random, 1, formats, [hidden, inner]);
        let routed = layer(random, experts, formats, [hidden, inner]);
        let x = halves(random, tokens * hidden);
        let all = [&shared, &routed];
        let before = launches("matmul_wgmma");
        let (chosen, expected) = mixture(without, &x, hidden, top_k, &router, all);
        let (got_chosen, got) = mixture(with, &x, hidden, top_k, &router, all);
        prop_assert_eq!(chosen, got_chosen);
        assert_bits(&format!("{formats:?}"), &expected, &got);
        // Gate and up of the routed experts, and down.
        prop_assert!(launches("matmul_wgmma") >= before.map(|count| count + 2));
    }
}
