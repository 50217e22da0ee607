//! Products of every format against the definition, bit by bit.

use llama4rs_tensor::{Backend, WeightFormat};
use proptest::prelude::*;

use super::*;
use crate::test_support::{
    all_cpus, any_format, any_size, assert_bits, assert_close, best_cpu, best_exact_cpu,
    exact_cpus, Random, FORMATS,
};

fn run(cpu: &crate::Cpu, x: &Tensor, weights: &PackedMatrix) -> Tensor {
    let mut out = cpu.empty();
    cpu.matmul(x, &[weights], &mut [&mut out]).unwrap();
    out
}

fn reference_rows(x: &Tensor, weights: &PackedMatrix, arithmetic: Arithmetic) -> Vec<f32> {
    let panels = Panels::of(weights, 0);
    (0..x.rows()).flat_map(|r| reference::matmul_row(x.row(r), &panels, arithmetic)).collect()
}

fn exact_rows(x: &Tensor, weights: &PackedMatrix) -> Vec<f64> {
    let plain = weights.decode(0);
    let mut out = Vec::new();
    for r in 0..x.rows() {
        for w in plain.chunks_exact(weights.cols()) {
            out.push(x.row(r).iter().zip(w).map(|(&x, &w)| x as f64 * w as f64).sum());
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_set_and_thread_count_gives_the_reference(
        format in any_format(),
        rows in 1usize..40,
        outputs in any_size(),
        cols in any_size(),
        seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let (x, weights) = (random.tensor(rows, cols), random.matrix(format, 1, outputs, cols));
        for cpus in [all_cpus(), exact_cpus()] {
            let expected = reference_rows(&x, &weights, cpus[0].arithmetic());
            if cpus[0].arithmetic() == Arithmetic::Exact {
                assert_close("reference", &exact_rows(&x, &weights), &expected, 1e-5);
            }
            for cpu in cpus {
                assert_bits(&cpu.description(), &expected, run(cpu, &x, &weights).values());
            }
        }
    }
}

#[test]
fn large_matrices_of_every_format() {
    let mut random = Random(1);
    for format in FORMATS {
        for (outputs, cols) in [(80, 5120), (1000, 257)] {
            let x = random.tensor(3, cols);
            let weights = random.matrix(format, 1, outputs, cols);
            let expected = reference_rows(&x, &weights, Arithmetic::Exact);
            assert_close("reference", &exact_rows(&x, &weights), &expected, 1e-5);
            assert_bits("exact", &expected, run(best_exact_cpu(), &x, &weights).values());
            let expected = reference_rows(&x, &weights, Arithmetic::Fast);
            assert_close("fast", &exact_rows(&x, &weights), &expected, 0.02);
            assert_bits("fast", &expected, run(best_cpu(), &x, &weights).values());
        }
    }
}

#[test]
fn every_number_of_rows_gives_the_same_rows() {
    let mut random = Random(2);
    for format in FORMATS {
        let weights = random.matrix(format, 1, 77, 130);
        let x = random.tensor(53, 130);
        let expected = reference_rows(&x, &weights, Arithmetic::Fast);
        for rows in 1..=x.rows() {
            let part = Tensor::from_values(&x.values()[..rows * 130], 130).unwrap();
            let got = run(best_cpu(), &part, &weights);
            assert_bits(&format!("{rows} rows"), &expected[..rows * 77], got.values());
        }
    }
}

#[test]
fn rows_that_are_not_finite_spoil_only_themselves() {
    let mut random = Random(5);
    for format in FORMATS {
        let weights = random.matrix(format, 1, 50, 100);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random.tensor(13, 100);
            x.values_mut()[7 * 100 + 99] = bad;
            for cpus in [all_cpus(), exact_cpus()] {
                let expected = reference_rows(&x, &weights, cpus[0].arithmetic());
                assert!(expected[7 * 50..8 * 50].iter().all(|y| !y.is_finite()));
                assert!(expected[..7 * 50].iter().all(|y| y.is_finite()));
                for cpu in cpus {
                    assert_bits(&cpu.description(), &expected, run(cpu, &x, &weights).values());
                }
            }
        }
    }
}

#[test]
fn tiny_and_huge_activations() {
    let mut random = Random(6);
    for format in FORMATS {
        let weights = random.matrix(format, 1, 20, 256);
        for size in [0.0, 1e-42, 1e-33, 1e-20, 1e20, 1e36] {
            let values: Vec<f32> = random.values(3 * 256).iter().map(|x| x * size).collect();
            let x = Tensor::from_values(&values, 256).unwrap();
            let expected = reference_rows(&x, &weights, Arithmetic::Fast);
            for cpu in all_cpus() {
                assert_bits(&cpu.description(), &expected, run(cpu, &x, &weights).values());
            }
        }
    }
}

/// The price of [`Arithmetic::Fast`]: on normally distributed activations the
/// products differ from the exact ones by a bit more than half a percent, those with
/// bf16 weights by a sixth of a percent.
#[test]
fn fast_arithmetic_is_close() {
    let mut random = Random(7);
    let normal: Vec<f32> =
        (0..8 * 2048).map(|_| random.values(12).iter().sum::<f32>() / 2.0).collect();
    let x = Tensor::from_values(&normal, 2048).unwrap();
    for (format, most) in [
        ("bf16", 0.0018),
        ("int4/g32", 0.0065),
        ("int4/g64", 0.0075),
        ("int4/g128", 0.0085),
        ("int8/g32", 0.0065),
        ("int8/g64", 0.0075),
        ("int8/g128", 0.0085),
    ] {
        let weights = random.matrix(format.parse().unwrap(), 1, 256, 2048);
        let (exact, fast) = (run(best_exact_cpu(), &x, &weights), run(best_cpu(), &x, &weights));
        let rms = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|value| value as f64 * value as f64).sum::<f64>().sqrt()
        };
        let error = rms(&mut exact.values().iter().zip(fast.values()).map(|(e, f)| e - f))
            / rms(&mut exact.values().iter().copied());
        println!("{format}: relative error {:.2} %", 100.0 * error);
        assert!((most / 3.0..most).contains(&error), "{format}: {error}");
    }
}

#[test]
fn several_matrices_of_one_input() {
    let mut random = Random(3);
    let x = random.tensor(5, 200);
    let formats = ["int4", "f32", "int8/g32", "int4/g32", "int4"]
        .map(|name| name.parse::<WeightFormat>().unwrap());
    let weights: Vec<_> = formats
        .iter()
        .zip([40, 7, 300, 16, 33])
        .map(|(&f, n)| random.matrix(f, 1, n, 200))
        .collect();
    for cpu in all_cpus() {
        let mut outs: Vec<Tensor> = weights.iter().map(|_| cpu.empty()).collect();
        cpu.matmul(
            &x,
            &weights.iter().collect::<Vec<_>>(),
            &mut outs.iter_mut().collect::<Vec<_>>(),
        )
        .unwrap();
        for (weights, out) in weights.iter().zip(&outs) {
            let expected = reference_rows(&x, weights, Arithmetic::Fast);
            assert_bits(&cpu.description(), &expected, out.values());
        }
    }
}

#[test]
fn no_rows_give_no_rows() {
    let weights = Random(4).matrix(WeightFormat::F32, 1, 20, 10);
    let out = run(best_cpu(), &Tensor::from_values(&[], 10).unwrap(), &weights);
    assert_eq!((out.rows(), out.cols()), (0, 20));
}
