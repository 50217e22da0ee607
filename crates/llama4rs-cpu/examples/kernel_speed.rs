//! Speed of the matrix kernels next to the limits of the machine.
//!
//! ```text
//! cargo run --release -p llama4rs-cpu --example kernel_speed [threads]
//! ```
//!
//! Measures, in the same run: what the threads read from memory, what they reach
//! in multiply-adds out of registers, then a decode step (one row through a
//! stack of matrices too large for the caches) and a prompt (512 rows), per
//! instruction set. Every result is first compared with plain arithmetic.

use std::hint::black_box;
use std::time::Instant;

use llama4rs_cpu::{Cpu, InstructionSet};
use llama4rs_tensor::{
    AlignedBytes, Backend, ExpertWeights, KvDtype, KvGeometry, KvSpan, PackedMatrix, Slot,
    WeightFormat,
};

const OUTPUTS: usize = 8192;
const INPUTS: usize = 5120;
const DECODE_MATRICES: usize = 8;
const PREFILL_ROWS: usize = 512;

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    println!("{threads} threads; matrices of {OUTPUTS} x {INPUTS}");
    for set in InstructionSet::available() {
        let cpu = Cpu::with_instruction_set(threads, set).expect("an available set");
        if set == InstructionSet::Scalar {
            continue; // the reference: not made for speed
        }
        let peak = fma_peak(threads, set);
        let bandwidth = read_bandwidth(threads);
        println!("\n{}", cpu.description());
        println!("  limits: reads {bandwidth:.1} GB/s, multiplies and adds {peak:.0} GFLOP/s");
        for name in ["int4/g64", "int8/g64", "bf16", "f32"] {
            let format: WeightFormat = name.parse().expect("a format");
            decode(&cpu, format, bandwidth);
            prefill(&cpu, format, peak);
        }
        experts(&cpu, bandwidth, peak);
        attention(&cpu, bandwidth, peak);
        small_operations(&cpu);
    }
}

/// Bytes of random codes with sensible scales.
fn random_matrix(format: WeightFormat, stack: usize, rows: usize, cols: usize) -> PackedMatrix {
    let panel_bytes = format.panel_bytes(cols);
    let mut bytes = AlignedBytes::zeroed(stack * format.matrix_bytes(rows, cols).expect("a size"))
        .expect("memory");
    let mut state = 1u64;
    for panel in bytes.chunks_exact_mut(panel_bytes) {
        let codes = format.panel_code_bytes(cols);
        for word in panel[..codes].chunks_exact_mut(8) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            word.copy_from_slice(&(state ^ state >> 33).to_le_bytes());
        }
        match format {
            // Exponents near zero.
            WeightFormat::F32 => panel.chunks_exact_mut(4).for_each(|b| b[3] = b[3] & 0x80 | 0x3D),
            WeightFormat::Bf16 => panel.chunks_exact_mut(2).for_each(|b| b[1] = b[1] & 0x80 | 0x3D),
            // 2^-7 as bf16.
            _ => panel[codes..].chunks_exact_mut(2).for_each(|b| b.copy_from_slice(&[0x00, 0x3C])),
        }
    }
    PackedMatrix::new(format, stack, rows, cols, bytes.into()).expect("the right length")
}

fn random_values(count: usize) -> Vec<f32> {
    let mut state = 7u64;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Compares a few outputs of `x · weightsᵀ` with double precision.
fn check(x: &[f32], weights: &PackedMatrix, out: &[f32]) {
    let (rows, cols) = (weights.rows(), weights.cols());
    for i in (0..out.len()).step_by(out.len() / 16) {
        let x = &x[i / rows * cols..][..cols];
        let (mut sum, mut size) = (0.0, 0.0);
        for (col, &x) in x.iter().enumerate() {
            let weight = weights.format().weight(weights.matrix(0), cols, i % rows, col);
            sum += x as f64 * weight as f64;
            size += (x as f64 * weight as f64).abs();
        }
        assert!((out[i] as f64 - sum).abs() <= 1e-6 * size, "{i}: {} is not {sum}", out[i]);
    }
}

/// Seconds of the fastest and of the middle of several calls.
fn seconds(mut work: impl FnMut()) -> (f64, f64) {
    work();
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || start.elapsed().as_secs_f64() < 0.5 {
        let start = Instant::now();
        work();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}

/// One line: the middle speed, the best, and the best as a share of the limit.
fn report(label: &str, amount: f64, unit: &str, (best, middle): (f64, f64), limit: f64) {
    let [best, middle] = [best, middle].map(|seconds| amount / seconds / 1e9);
    let share = 100.0 * best / limit;
    println!("  {label:32} {middle:6.1} {unit:8} best {best:6.1} = {share:3.0} % of the limit");
}

fn decode(cpu: &Cpu, format: WeightFormat, bandwidth: f64) {
    let weights: Vec<PackedMatrix> =
        (0..DECODE_MATRICES).map(|_| random_matrix(format, 1, OUTPUTS, INPUTS)).collect();
    let bytes: usize = weights.iter().map(|w| w.bytes().len()).sum();
    for rows in [1, 2, 4, 8] {
        let values = random_values(rows * INPUTS);
        let x = cpu.upload(&values, INPUTS).expect("rows");
        let mut out = cpu.empty();
        cpu.matmul(&x, &[&weights[0]], &mut [&mut out]).expect("shapes that fit");
        check(&values, &weights[0], out.values());
        let times = seconds(|| {
            for weights in &weights {
                cpu.matmul(&x, &[weights], &mut [&mut out]).expect("shapes that fit");
            }
        });
        report(&format!("{format}, rows: {rows}"), bytes as f64, "GB/s", times, bandwidth);
    }
}

fn prefill(cpu: &Cpu, format: WeightFormat, peak: f64) {
    let weights = random_matrix(format, 1, OUTPUTS, INPUTS);
    let values = random_values(PREFILL_ROWS * INPUTS);
    let x = cpu.upload(&values, INPUTS).expect("rows");
    let mut out = cpu.empty();
    cpu.matmul(&x, &[&weights], &mut [&mut out]).expect("shapes that fit");
    check(&values, &weights, out.values());
    let times = seconds(|| {
        cpu.matmul(&x, &[&weights], &mut [&mut out]).expect("shapes that fit");
    });
    let operations = 2.0 * (PREFILL_ROWS * OUTPUTS * INPUTS) as f64;
    report(&format!("{format}, rows: {PREFILL_ROWS}"), operations, "GFLOP/s", times, peak);
}

/// A mixture of 16 experts, top 1, hidden 2048, intermediate 2048.
fn experts(cpu: &Cpu, bandwidth: f64, peak: f64) {
    let (count, width) = (16, 2048);
    let format: WeightFormat = "int4/g64".parse().expect("a format");
    let [gate, up, down] = [(); 3].map(|()| random_matrix(format, count, width, width));
    for rows in [1, 512] {
        let x = cpu.upload(&random_values(rows * width), width).expect("rows");
        let mut out = cpu.upload(&vec![0.0; rows * width], width).expect("rows");
        // Another expert each time, so that a single row's weights come from memory.
        let routings: Vec<_> = (0..count)
            .map(|shift| {
                let logits: Vec<f32> = (0..rows * count)
                    .map(|i| ((i / count * 7 + shift + i) % count) as f32)
                    .collect();
                cpu.route(&cpu.upload(&logits, count).expect("rows"), 1).expect("experts")
            })
            .collect();
        let calls = if rows == 1 { count } else { 1 };
        let times = seconds(|| {
            for routing in &routings[..calls] {
                let weights = ExpertWeights { gate: &gate, up: &up, down: &down };
                cpu.experts(&x, routing, weights, &mut out).expect("shapes that fit");
            }
        });
        let label = format!("experts {format}, rows: {rows}");
        if rows == 1 {
            report(&label, 3.0 * gate.bytes().len() as f64, "GB/s", times, bandwidth);
        } else {
            report(&label, 6.0 * (rows * width * width) as f64, "GFLOP/s", times, peak);
        }
    }
}

/// 40 query heads over 8 key/value heads of 128, bf16 pages of 64 tokens.
fn attention(cpu: &Cpu, bandwidth: f64, peak: f64) {
    let geometry = KvGeometry {
        num_layers: 1,
        num_kv_heads: 8,
        head_dim: 128,
        page_tokens: 64,
        dtype: KvDtype::Bf16,
    };
    let tokens = 32 << 10;
    let mut pool = cpu.kv_pool(geometry).expect("a pool");
    cpu.kv_reserve(&mut pool, tokens / 64).expect("pages");
    let slots: Vec<Slot> =
        (0..tokens as u32).map(|t| Slot { page: t / 64, offset: t % 64 }).collect();
    let values = cpu.upload(&random_values(tokens * 1024), 1024).expect("rows");
    cpu.write_kv(&mut pool, 0, &slots, &values, &values).expect("slots");
    for (rows, visible) in [(1, tokens), (512, 1), (512, 8000)] {
        let queries = cpu.upload(&random_values(rows * 5120), 5120).expect("rows");
        let pages = (0..(tokens / 64) as u32).collect();
        let spans = [KvSpan { rows: 0..rows, pages, visible }];
        let mut out = cpu.empty();
        let times = seconds(|| {
            cpu.attend(&pool, 0, &queries, &spans, 0.1, &mut out).expect("shapes that fit");
        });
        let keys = (rows * visible + rows * (rows - 1) / 2) as f64;
        let label = format!("attention, rows: {rows} after {}", visible - 1);
        if rows == 1 {
            report(&label, keys * 8.0 * 128.0 * 2.0 * 2.0, "GB/s", times, bandwidth);
        } else {
            report(&label, keys * 40.0 * 128.0 * 4.0, "GFLOP/s", times, peak);
        }
    }
}

/// What the operations of a decode step cost besides memory traffic.
fn small_operations(cpu: &Cpu) {
    let x = cpu.upload(&random_values(5120), 5120).expect("rows");
    let weight = cpu.vector(&vec![1.0; 5120]).expect("a vector");
    let router = random_matrix("bf16".parse().expect("a format"), 1, 64, 64);
    let small = cpu.upload(&random_values(64), 64).expect("rows");
    let mut out = cpu.empty();
    let (_, norm) = seconds(|| cpu.rms_norm(&x, &weight, 1e-5, &mut out).expect("shapes"));
    let (_, matmul) = seconds(|| cpu.matmul(&small, &[&router], &mut [&mut out]).expect("shapes"));
    println!("  one row: rms_norm {:.1} us, smallest matmul {:.1} us", norm * 1e6, matmul * 1e6);
}

/// GB/s that the threads read together from memory of their own.
fn read_bandwidth(threads: usize) -> f64 {
    const WORDS: usize = 16 << 20;
    let time = in_threads(threads, || {
        let words = vec![1u64; WORDS];
        move || {
            let sums = words.chunks_exact(32).fold([0u64; 32], |mut sums, chunk| {
                sums.iter_mut().zip(chunk).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
                sums
            });
            black_box(sums);
        }
    });
    (threads * WORDS * 8) as f64 / time / 1e9
}

/// Seconds of the best of some rounds that all threads do at the same time, from
/// the first start to the last end.
fn in_threads<W: FnMut()>(threads: usize, make: impl Fn() -> W + Sync) -> f64 {
    const ROUNDS: usize = 20;
    let barrier = std::sync::Barrier::new(threads);
    let rounds = std::sync::Mutex::new(vec![Vec::new(); ROUNDS]);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut work = make();
                work();
                for round in 0..ROUNDS {
                    barrier.wait();
                    let start = Instant::now();
                    work();
                    let end = Instant::now();
                    rounds.lock().expect("no panic")[round].push((start, end));
                }
            });
        }
    });
    let rounds = rounds.into_inner().expect("no panic");
    let seconds = |round: &Vec<(Instant, Instant)>| {
        let start = round.iter().map(|(start, _)| *start).min().expect("a thread");
        let end = round.iter().map(|(_, end)| *end).max().expect("a thread");
        (end - start).as_secs_f64()
    };
    rounds.iter().map(seconds).fold(f64::INFINITY, f64::min)
}

/// GFLOP/s of multiply-adds that never leave the registers.
fn fma_peak(threads: usize, set: InstructionSet) -> f64 {
    const STEPS: usize = 2_000_000;
    let width = if set == InstructionSet::Avx512 { 16 } else { 8 };
    let time = in_threads(threads, || {
        move || match set {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the set is available.
            InstructionSet::Avx512 => unsafe { multiply_add_512(STEPS) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the set is available.
            InstructionSet::Avx2 => unsafe { multiply_add_256(STEPS) },
            _ => (),
        }
    });
    (threads * STEPS * 10 * width * 2) as f64 / time / 1e9
}

macro_rules! multiply_add_loop {
    ($name:ident, $features:literal, $set1:ident, $fma:ident) => {
        /// Ten independent chains of multiply-adds.
        ///
        /// # Safety
        /// The processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $name(steps: usize) {
            use std::arch::x86_64::*;
            let (a, b) = (black_box($set1(0.5)), black_box($set1(0.25)));
            let mut sums = black_box([a; 10]);
            for _ in 0..steps {
                for sum in &mut sums {
                    *sum = $fma(a, b, *sum);
                }
            }
            black_box(sums);
        }
    };
}

multiply_add_loop!(multiply_add_512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps);
multiply_add_loop!(multiply_add_256, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps);
