//! Speed of the kernels next to the limits of the machine.
//!
//! ```text
//! cargo run --release -p llama4rs-cpu --example kernel_speed [threads [set [arithmetic [format]]]]
//! cargo run --release -p llama4rs-cpu --example kernel_speed 2 best fast int4/g64    (ten seconds)
//! ```
//!
//! Measures, in the same run: what the threads read from memory and what they
//! reach in arithmetic out of registers, then products with stacks of matrices
//! too large for the caches, from one row to a prompt, experts and attention, per
//! instruction set and arithmetic. Results are first compared with plain
//! arithmetic. `set`, `arithmetic` and `format` keep what has that name; `-` keeps
//! everything, and `best` is the set that would be chosen.
//!
//! A few rows are measured by the bytes of their weights, many by their
//! operations; with some rows in between both are shown.

mod data;

use std::time::Instant;

use data::{check, random_matrix, random_values};
use llama4rs_cpu::{
    integer_dot_peak, multiply_add_peak, read_bandwidth, Arithmetic, Cpu, InstructionSet,
};
use llama4rs_tensor::{
    AlignedBytes, Backend, ExpertWeights, KvDtype, KvGeometry, KvSpan, PackedMatrix, PageForm,
    PageId, Slot, WeightFormat,
};

const OUTPUTS: usize = 8192;
const INPUTS: usize = 5120;
/// Bytes of weights in a stack, at least: many times the caches.
const STACK_BYTES: usize = 170 << 20;

/// Rounds of a probe, of which the best counts.
const ROUNDS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = arguments.first().map_or(2, |n| n.parse().expect("a number of threads"));
    let wanted = |i: usize, name: &dyn ToString| {
        arguments.get(i).is_none_or(|wanted| wanted == "-" || *wanted == name.to_string())
    };
    let chosen = |set| wanted(1, &set) || arguments[1] == "best" && set == InstructionSet::detect();
    println!("{threads} threads; matrices of {OUTPUTS} x {INPUTS}");
    for set in InstructionSet::available() {
        // Plain Rust is the reference: not made for speed.
        if set == InstructionSet::Scalar || !chosen(set) {
            continue;
        }
        for arithmetic in [Arithmetic::Fast, Arithmetic::Exact] {
            if arithmetic == Arithmetic::Exact && set.without_dots() != set
                || !wanted(2, &arithmetic)
            {
                continue;
            }
            let cpu = Cpu::with_instruction_set(threads, set).expect("an available set");
            let bench = Bench { cpu: cpu.with_arithmetic(arithmetic), set };
            println!("\n{}", bench.cpu.description());
            let formats: &[&str] = match arithmetic {
                Arithmetic::Fast => &["int4/g64", "int4/g32", "int4/g128", "int8/g64", "bf16"],
                Arithmetic::Exact => &["int4/g64", "int8/g64", "bf16", "f32"],
            };
            for format in formats.iter().filter(|format| wanted(3, format)) {
                let format: WeightFormat = format.parse().expect("a format");
                bench.products(format);
                if format.group() == Some(64) {
                    bench.experts(format);
                }
            }
            if arithmetic == Arithmetic::Fast {
                bench.vision("int8/g64".parse().expect("a format"));
            }
            if arguments.get(3).is_none_or(|format| format == "-") {
                bench.attention();
                bench.small_operations();
            }
        }
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

/// One CPU to be measured.
struct Bench {
    cpu: Cpu,
    set: InstructionSet,
}

/// What the machine can do.
#[derive(Clone, Copy)]
struct Limits {
    /// GB/s read from memory in large pages, where the weights are, too.
    reads: f64,
    /// GFLOP/s of single-precision multiply-adds.
    floats: f64,
    /// GOP/s of integer dot products.
    integers: f64,
}

/// What a call reads and computes.
struct Work {
    bytes: f64,
    operations: f64,
    /// Whether the operations are integer dot products.
    integers: bool,
}

impl Bench {
    fn limits(&self) -> Limits {
        let threads = self.cpu.num_threads();
        let mut memory = AlignedBytes::zeroed(threads << 27).expect("memory");
        memory.fill(1);
        let best = |rates: llama4rs_tensor::Result<Vec<f64>>| {
            rates.expect("a probe").into_iter().fold(0.0, f64::max) / 1e9
        };
        let limits = Limits {
            reads: best(read_bandwidth(&memory, threads, ROUNDS)),
            floats: best(multiply_add_peak(self.set, threads, ROUNDS)),
            integers: best(integer_dot_peak(self.set, threads, ROUNDS)),
        };
        let Limits { reads, floats, integers } = limits;
        println!(
            "  limits now: reads {reads:.1} GB/s, single precision {floats:.0} GFLOP/s, \
             integers {integers:.0} GOP/s"
        );
        limits
    }

    /// Whether products with `format` are integer dot products.
    fn integers(&self, format: WeightFormat) -> bool {
        self.cpu.arithmetic() == Arithmetic::Fast && format.group().is_some()
    }

    /// One line: speed and share of the limits, of the middle call and of the best.
    fn report(&self, label: &str, work: Work, (best, middle): (f64, f64), limits: Limits) {
        let peak = if work.integers { limits.integers } else { limits.floats };
        let bytes = |seconds: f64| work.bytes / seconds / 1e9;
        let operations = |seconds: f64| work.operations / seconds / 1e9;
        // The time that the limits allow, as a share of the time taken.
        let least = (work.bytes / limits.reads).max(work.operations / peak) / 1e9;
        println!(
            "  {label:30} {:6.1} GB/s {:7.1} GOP/s   best {:6.1} {:7.1}   {:3.0} % of the limit, best {:3.0} %",
            bytes(middle), operations(middle), bytes(best), operations(best),
            100.0 * least / middle, 100.0 * least / best,
        );
    }

    /// Matrices out of memory, times few and many rows.
    fn products(&self, format: WeightFormat) {
        let limits = self.limits();
        let bytes = format.matrix_bytes(OUTPUTS, INPUTS).expect("a size");
        let weights: Vec<PackedMatrix> = (0..STACK_BYTES.div_ceil(bytes))
            .map(|_| random_matrix(format, 1, OUTPUTS, INPUTS))
            .collect();
        for rows in [1, 2, 3, 4, 5, 8, 12, 16, 32, 128, 512] {
            let stack = if rows > 32 { 1 } else { weights.len() };
            self.product(&weights[..stack], rows, limits);
        }
    }

    fn product(&self, weights: &[PackedMatrix], rows: usize, limits: Limits) {
        let (cpu, format) = (&self.cpu, weights[0].format());
        let (outputs, inputs) = (weights[0].rows(), weights[0].cols());
        let values = random_values(rows * inputs);
        let x = cpu.upload(&values, inputs).expect("rows");
        let mut out = cpu.empty();
        cpu.matmul(&x, &[&weights[0]], &mut [&mut out]).expect("shapes that fit");
        check(&values, &weights[0], out.values(), cpu.arithmetic());
        let times = seconds(|| {
            for weights in weights {
                cpu.matmul(&x, &[weights], &mut [&mut out]).expect("shapes that fit");
            }
        });
        let work = Work {
            bytes: weights.iter().map(|w| w.bytes().len()).sum::<usize>() as f64,
            operations: 2.0 * (rows * outputs * inputs * weights.len()) as f64,
            integers: self.integers(format),
        };
        self.report(&format!("{format}, rows: {rows}"), work, times, limits);
    }

    /// The widest product of the vision tower: 577 patches.
    fn vision(&self, format: WeightFormat) {
        println!("  577 rows of 1408 inputs to 5632 outputs:");
        self.product(&[random_matrix(format, 1, 5632, 1408)], 577, self.limits());
    }

    /// A mixture of 16 experts, top 1, hidden 2048, intermediate 2048: one row,
    /// two rows and 32 rows for each expert.
    fn experts(&self, format: WeightFormat) {
        let (cpu, count, width) = (&self.cpu, 16, 2048);
        let limits = self.limits();
        let [gate, up, down] = [(); 3].map(|()| random_matrix(format, count, width, width));
        for rows in [1, 32, 512] {
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
            let work = Work {
                bytes: 3.0 * gate.bytes().len() as f64,
                operations: 6.0 * (calls * rows * width * width) as f64,
                integers: self.integers(format),
            };
            let label = format!("16 experts {format}, rows: {rows}");
            self.report(&label, work, times, limits);
        }
    }

    /// 40 query heads over 8 key/value heads of 128, bf16 pages of 64 tokens.
    fn attention(&self) {
        let (cpu, limits) = (&self.cpu, self.limits());
        let geometry = KvGeometry {
            num_layers: 1,
            num_kv_heads: 8,
            head_dim: 128,
            page_tokens: 64,
            dtype: KvDtype::Bf16,
        };
        let tokens = 32 << 10;
        let mut pool = cpu.kv_pool(geometry).expect("a pool");
        cpu.kv_reserve(&mut pool, PageForm::Exact, tokens / 64).expect("pages");
        let slots: Vec<Slot> = (0..tokens as u32)
            .map(|t| Slot { page: PageId::exact(t / 64), offset: t % 64 })
            .collect();
        let values = cpu.upload(&random_values(tokens * 1024), 1024).expect("rows");
        cpu.write_kv(&mut pool, 0, &slots, &values, &values).expect("slots");
        for (rows, visible) in [(1, tokens), (512, 1), (512, 8000)] {
            let queries = cpu.upload(&random_values(rows * 5120), 5120).expect("rows");
            let pages = (0..(tokens / 64) as u32).map(PageId::exact).collect();
            let spans = [KvSpan { rows: 0..rows, pages, visible }];
            let mut out = cpu.empty();
            let times = seconds(|| {
                cpu.attend(&pool, 0, &queries, &spans, 0.1, &mut out).expect("shapes that fit");
            });
            let keys = (rows * visible + rows * (rows - 1) / 2) as f64;
            let work = Work {
                bytes: (visible + rows - 1) as f64 * 8.0 * 128.0 * 2.0 * 2.0,
                operations: keys * 40.0 * 128.0 * 4.0,
                integers: false,
            };
            self.report(
                &format!("attention, rows: {rows} after {}", visible - 1),
                work,
                times,
                limits,
            );
        }
    }

    /// What the operations of a decode step cost besides memory traffic.
    fn small_operations(&self) {
        let cpu = &self.cpu;
        let x = cpu.upload(&random_values(5120), 5120).expect("rows");
        let weight = cpu.vector(&vec![1.0; 5120]).expect("a vector");
        let router = random_matrix("bf16".parse().expect("a format"), 1, 64, 64);
        let small = cpu.upload(&random_values(64), 64).expect("rows");
        let narrow = random_matrix("int4/g64".parse().expect("a format"), 1, 16, 5120);
        let mut out = cpu.empty();
        let (_, norm) = seconds(|| cpu.rms_norm(&x, &weight, 1e-5, &mut out).expect("shapes"));
        let (_, matmul) =
            seconds(|| cpu.matmul(&small, &[&router], &mut [&mut out]).expect("shapes"));
        let (_, wide) = seconds(|| cpu.matmul(&x, &[&narrow], &mut [&mut out]).expect("shapes"));
        println!(
            "  one row: rms_norm of 5120 {:.1} us, matmul 64 to 64 {:.1} us, int4 5120 to 16 {:.1} us",
            norm * 1e6,
            matmul * 1e6,
            wide * 1e6
        );
    }
}
