//! Experts and mixtures against the definition, bit by bit.

use llama4rs_tensor::{Backend, FeedForwardScratch, MixtureWeights, WeightFormat};
use proptest::prelude::*;

use super::*;
use crate::kernels::exp::reference::exp;
use crate::kernels::matmul::reference::matmul_row;
use crate::test_support::{all_cpus, any_format, assert_bits, best_cpu, exact_cpus, pack, Random};
use crate::Cpu;

type Three<'a> = [&'a PackedMatrix; 3];

fn weights([gate, up, down]: Three<'_>) -> ExpertWeights<'_, PackedMatrix> {
    ExpertWeights { gate, up, down }
}

/// One expert of one row, as it is defined.
fn expert_row(
    x: &[f32],
    expert: usize,
    [gate, up, down]: Three<'_>,
    arithmetic: Arithmetic,
) -> Vec<f32> {
    let mut hidden = matmul_row(x, &Panels::of(gate, expert), arithmetic);
    let up = matmul_row(x, &Panels::of(up, expert), arithmetic);
    for (gate, up) in hidden.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
    matmul_row(&hidden, &Panels::of(down, expert), arithmetic)
}

fn reference(
    x: &Tensor,
    routing: &Routing,
    weights: Three<'_>,
    mut out: Vec<f32>,
    arithmetic: Arithmetic,
) -> Vec<f32> {
    for (row, out) in out.chunks_exact_mut(x.cols()).enumerate() {
        for rank in 0..routing.top_k {
            let pair = row * routing.top_k + rank;
            let x: Vec<f32> = x.row(row).iter().map(|x| x * routing.weights[pair]).collect();
            let y = expert_row(&x, routing.experts[pair] as usize, weights, arithmetic);
            out.iter_mut().zip(y).for_each(|(out, y)| *out += y);
        }
    }
    out
}

fn run(cpu: &Cpu, x: &Tensor, routing: &Routing, three: Three<'_>, out: &Tensor) -> Vec<f32> {
    let mut out = out.clone();
    cpu.experts(x, routing, weights(three), &mut out).unwrap();
    out.values().to_vec()
}

fn run_mixture(
    cpu: &Cpu,
    x: &Tensor,
    router: &PackedMatrix,
    top_k: usize,
    [shared, routed]: [Three<'_>; 2],
) -> (Routing, Vec<f32>) {
    let [mut out, mut gate, mut up, mut router_logits] = [(); 4].map(|()| cpu.empty());
    let (shared, routed) = (weights(shared), weights(routed));
    let weights = MixtureWeights { router, top_k, shared, routed };
    let scratch =
        FeedForwardScratch { gate: &mut gate, up: &mut up, router_logits: &mut router_logits };
    let routing = cpu.mixture(x, weights, scratch, &mut out).unwrap();
    (routing, out.values().to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_set_and_thread_count_gives_the_reference(
        formats in (any_format(), any_format(), any_format()),
        rows in 1usize..50,
        num_experts in 1usize..6,
        extra in 0usize..3,
        hidden in prop::sample::select(vec![8, 33, 64, 100]),
        intermediate in prop::sample::select(vec![7, 16, 48, 130]),
        seed in any::<u64>(),
    ) {
        let random = &mut Random(seed);
        let top_k = (1 + extra).min(num_experts);
        let mut matrix = |format, rows, cols| random.matrix(format, num_experts, rows, cols);
        let gate = matrix(formats.0, intermediate, hidden);
        let up = matrix(formats.1, intermediate, hidden);
        let down = matrix(formats.2, hidden, intermediate);
        let weights = [&gate, &up, &down];
        let x = random.tensor(rows, hidden);
        let before = random.tensor(rows, hidden);
        let logits = random.tensor(rows, num_experts);
        let routing = best_cpu().route(&logits, top_k).unwrap();
        for cpus in [all_cpus(), exact_cpus()] {
            let arithmetic = cpus[0].arithmetic();
                let before_values = before.values().to_vec();
                let expected = reference(&x, &routing, weights, before_values, arithmetic);
            for cpu in cpus {
                let got = run(cpu, &x, &routing, weights, &before);
                assert_bits(&cpu.description(), &expected, &got);
            }
        }
    }

    #[test]
    fn every_mixture_is_the_reference(
        shared_formats in (any_format(), any_format(), any_format()),
        formats in (any_format(), any_format(), any_format()),
        rows in 0usize..41,
        (num_experts, top_k) in (1usize..7).prop_flat_map(|n| (Just(n), 1..=n.min(2))),
        favourite in 0usize..6,
        hidden in prop::sample::select(vec![8, 33, 64, 100]),
        intermediate in prop::sample::select(vec![7, 16, 48, 130]),
        seed in any::<u64>(),
    ) {
        let random = &mut Random(seed);
        let mut three = |formats: (WeightFormat, WeightFormat, WeightFormat), stack| [
            random.matrix(formats.0, stack, intermediate, hidden),
            random.matrix(formats.1, stack, intermediate, hidden),
            random.matrix(formats.2, stack, hidden, intermediate),
        ];
        let (shared, routed) = (three(shared_formats, 1), three(formats, num_experts));
        let (shared, routed) = (shared.each_ref(), routed.each_ref());
        let mut router = random.values(num_experts * hidden);
        // Others go without rows, or nearly so.
        router[favourite % num_experts * hidden..][..hidden].iter_mut().for_each(|w| *w *= 9.0);
        let router = pack(&router, WeightFormat::F32, 1, num_experts, hidden);
        let x = random.tensor(rows, hidden);
        for cpus in [all_cpus(), exact_cpus()] {
            let arithmetic = cpus[0].arithmetic();
            let logits = (0..rows)
                .flat_map(|row| matmul_row(x.row(row), &Panels::of(&router, 0), arithmetic));
            let logits = Tensor::from_values(&logits.collect::<Vec<_>>(), num_experts).unwrap();
            let routing = cpus[0].route(&logits, top_k).unwrap();
            let dense: Vec<f32> = (0..rows)
                .flat_map(|row| expert_row(x.row(row), 0, shared, arithmetic))
                .collect();
            let expected = reference(&x, &routing, routed, dense.clone(), arithmetic);
            for cpu in cpus {
                let [mut gate, mut up, mut out] = [(); 3].map(|()| cpu.empty());
                cpu.feed_forward(&x, &weights(shared), [&mut gate, &mut up], &mut out).unwrap();
                assert_bits(&cpu.description(), &dense, out.values());
                let (routed_to, got) = run_mixture(cpu, &x, &router, top_k, [shared, routed]);
                prop_assert_eq!(&routed_to, &routing);
                assert_bits(&cpu.description(), &expected, &got);
            }
        }
    }
}

#[test]
fn a_row_alone_gives_the_same_bits() {
    let random = &mut Random(7);
    let format = WeightFormat::Int4 { group: 32 };
    let gate = random.matrix(format, 4, 80, 96);
    let up = random.matrix(format, 4, 80, 96);
    let down = random.matrix(format, 4, 96, 80);
    let (x, before) = (random.tensor(30, 96), random.tensor(30, 96));
    let logits = random.tensor(30, 4);
    let cpu = best_cpu();
    let together = run(cpu, &x, &cpu.route(&logits, 2).unwrap(), [&gate, &up, &down], &before);
    for row in 0..30 {
        let only = |x: &Tensor| Tensor::from_values(x.row(row), x.cols()).unwrap();
        let routing = cpu.route(&only(&logits), 2).unwrap();
        let alone = run(cpu, &only(&x), &routing, [&gate, &up, &down], &only(&before));
        assert_bits("a row alone", &together[row * 96..][..96], &alone);
    }
}
