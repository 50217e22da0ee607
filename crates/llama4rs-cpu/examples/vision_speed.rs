//! Speed of the vision tower's own kernels at the size of Llama 4: 577 rows per
//! tile, 16 heads of 88.
//!
//! ```text
//! cargo run --release -p llama4rs-cpu --example vision_speed [threads] [tiles]
//! ```
//!
//! Compares some results with double precision first, then prints the best of
//! several runs per instruction set.

use std::time::Instant;

use llama4rs_cpu::{Cpu, InstructionSet, Tensor};
use llama4rs_tensor::{Backend, VisionBackend};

const TILE_ROWS: usize = 577;
const HEADS: usize = 16;
const HEAD_DIM: usize = 88;
const COLS: usize = HEADS * HEAD_DIM;
const WIDE: usize = 5632;
const RUNS: usize = 9;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|n| n.parse().expect("a number"));
    let (threads, tiles) = (numbers.next().unwrap_or(1), numbers.next().unwrap_or(1));
    println!("{tiles} tiles of {TILE_ROWS} rows, {HEADS} heads of {HEAD_DIM}");
    for set in InstructionSet::available() {
        if set == InstructionSet::Scalar {
            continue; // the reference: not made for speed
        }
        let cpu = Cpu::with_instruction_set(threads, set).expect("an available set");
        println!("\n{}", cpu.description());
        attention(&cpu, tiles);
        wide(&cpu, tiles);
    }
}

/// Repeatable values in -1..1.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The shortest of some runs, in seconds.
fn best(mut run: impl FnMut()) -> f64 {
    let times = (0..RUNS).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

fn attention(cpu: &Cpu, tiles: usize) {
    let upload = |seed| {
        let values = values(tiles * TILE_ROWS * COLS, seed);
        cpu.upload(&values, COLS).expect("whole rows")
    };
    let (q, k, v, mut out) = (upload(1), upload(2), upload(3), cpu.empty());
    let scale = 1.0 / (HEAD_DIM as f32).sqrt();
    let seconds = best(|| {
        cpu.attend_all(&q, &k, &v, TILE_ROWS, HEAD_DIM, scale, &mut out).expect("fitting shapes");
    });
    let rows = tiles * TILE_ROWS;
    for (row, head) in [(0, 0), (rows / 2, 7), (rows - 1, HEADS - 1)] {
        check(&q, &k, &v, scale as f64, &out, row, head);
    }
    let operations = 4.0 * (rows * TILE_ROWS * COLS) as f64;
    let rate = operations / seconds / 1e9;
    println!(
        "attend_all: {:.2} ms, {rate:.1} GFLOP/s, {:.1} per thread",
        seconds * 1e3,
        rate / cpu.num_threads() as f64
    );
}

/// Panics unless one row of one head of `out` is the formula's.
fn check(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, out: &Tensor, row: usize, head: usize) {
    let at = |x: &Tensor, row: usize, i: usize| x.values()[row * COLS + head * HEAD_DIM + i] as f64;
    let first = row / TILE_ROWS * TILE_ROWS;
    let keys = first..first + TILE_ROWS;
    let dot = |t| (0..HEAD_DIM).map(|i| at(q, row, i) * at(k, t, i)).sum::<f64>();
    let p: Vec<f64> = keys.clone().map(|t| (dot(t) * scale).exp()).collect();
    let sum: f64 = p.iter().sum();
    for i in 0..HEAD_DIM {
        let expected = keys.clone().zip(&p).map(|(t, p)| p * at(v, t, i)).sum::<f64>() / sum;
        let error = (at(out, row, i) - expected).abs();
        assert!(error < 1e-6, "row {row}, head {head}, column {i} is off by {error:.1e}");
    }
}

/// The operations on rows of the wide layer.
fn wide(cpu: &Cpu, tiles: usize) {
    let plain = values(tiles * TILE_ROWS * WIDE, 4);
    let x = cpu.upload(&plain, WIDE).expect("whole rows");
    let vector = |seed| cpu.vector(&values(WIDE, seed)).expect("a vector");
    let (weight, bias, mut out) = (vector(5), vector(6), cpu.empty());
    let seconds = best(|| {
        cpu.layer_norm(&x, &weight, &bias, 1e-5, &mut out).expect("fitting shapes");
    });
    let row = &plain[..WIDE];
    let mean = row.iter().map(|&x| x as f64).sum::<f64>() / WIDE as f64;
    let var = row.iter().map(|&x| (x as f64 - mean).powi(2)).sum::<f64>() / WIDE as f64;
    for i in 0..WIDE {
        let normal = (row[i] as f64 - mean) / (var + 1e-5).sqrt();
        let expected = normal * weight[i] as f64 + bias[i] as f64;
        let error = (out.values()[i] as f64 - expected).abs();
        assert!(error < 1e-5, "layer_norm: column {i} is off by {error:.1e}");
    }
    println!("layer_norm {} x {WIDE}: {:.2} ms", x.rows(), seconds * 1e3);

    let mut x = x;
    cpu.gelu(&mut x).expect("any shape");
    // gelu(x) - gelu(-x) = x
    let mut mirrored: Vec<f32> = plain.iter().map(|x| -x).collect();
    mirrored.truncate(WIDE);
    let mut mirrored = cpu.upload(&mirrored, WIDE).expect("whole rows");
    cpu.gelu(&mut mirrored).expect("any shape");
    for i in 0..WIDE {
        let error = (x.values()[i] - mirrored.values()[i] - plain[i]).abs();
        assert!(error < 1e-6, "gelu: column {i} is off by {error:.1e}");
    }
    let seconds = best(|| cpu.gelu(&mut x).expect("any shape"));
    println!("gelu {} x {WIDE}: {:.2} ms", x.rows(), seconds * 1e3);
}
