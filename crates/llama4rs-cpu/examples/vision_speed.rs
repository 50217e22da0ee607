//! Where the time of one block of the vision tower goes, at the size of Llama 4:
//! 577 rows per tile, 1408 wide, 16 heads of 88, 5632 inside.
//!
//! ```text
//! cargo run --release -p llama4rs-cpu --example vision_speed [threads [tiles [format]]]
//! ```
//!
//! The operations of a block run one after the other, as in the model. The table
//! has the shortest time of each over some runs and its share of the machine's
//! peak, of integer dot products or of single precision as the weights are, which
//! is measured before each run.

#[path = "kernel_speed/data.rs"]
mod data;

use std::time::Instant;

use data::{check, random_matrix, random_values};
use llama4rs_cpu::{integer_dot_peak, multiply_add_peak, pair_dot_peak, Cpu, Tensor};
use llama4rs_tensor::{Backend, PackedMatrix, VisionBackend, WeightFormat};

const TILE_ROWS: usize = 577;
const HEAD_DIM: usize = 88;
const WIDTH: usize = 1408;
const WIDE: usize = 5632;
const RUNS: usize = 15;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| arguments.get(i).map_or(1, |n| n.parse().expect("a number"));
    let (threads, tiles) = (number(0), number(1));
    let format = arguments.get(2).map_or("int8", String::as_str).parse().expect("a format");
    let cpu = Cpu::with_instruction_set(threads, llama4rs_cpu::InstructionSet::detect())
        .expect("threads");
    println!("{}, {tiles} tiles of {TILE_ROWS} rows, {format} weights", cpu.description());
    let mut block = Block::new(&cpu, tiles, format);
    for _ in 0..RUNS {
        block.measure_peak();
        block.run();
    }
    block.check();
    block.report();
}

/// One block with its buffers and the times of its operations.
struct Block<'a> {
    cpu: &'a Cpu,
    tiles: usize,
    projections: [PackedMatrix; 4],
    fc1: PackedMatrix,
    fc2: PackedMatrix,
    /// What starts each run.
    start: Tensor,
    rotations: Tensor,
    /// Buffers that keep their memory: `h`, `q`, `k`, `v`, `heads`, `wide`.
    buffers: [Tensor; 6],
    /// Name, number of operations and seconds of each run.
    times: Vec<(&'static str, f64, Vec<f64>)>,
    /// Operations per second.
    peaks: Vec<f64>,
}

impl<'a> Block<'a> {
    fn new(cpu: &'a Cpu, tiles: usize, format: WeightFormat) -> Self {
        let rows = tiles * TILE_ROWS;
        let matrix = |rows, cols| random_matrix(format, 1, rows, cols);
        let upload = |cols| cpu.upload(&random_values(rows * cols), cols).expect("whole rows");
        Self {
            cpu,
            tiles,
            projections: [(); 4].map(|()| matrix(WIDTH, WIDTH)),
            fc1: matrix(WIDE, WIDTH),
            fc2: matrix(WIDTH, WIDE),
            start: upload(WIDTH),
            rotations: upload(HEAD_DIM),
            buffers: [(); 6].map(|()| cpu.empty()),
            times: Vec::new(),
            peaks: Vec::new(),
        }
    }

    fn measure_peak(&mut self) {
        let peak = match self.fc1.format() {
            WeightFormat::F32 => multiply_add_peak,
            WeightFormat::Bf16 => pair_dot_peak,
            _ => integer_dot_peak,
        };
        let found = peak(self.cpu.instruction_set(), self.cpu.num_threads(), 1);
        self.peaks.extend(found.expect("threads"));
    }

    fn run(&mut self) {
        let Self { cpu, tiles, projections, fc1, fc2, start, rotations, buffers, times, .. } = self;
        let mut index = 0;
        let mut time = |name: &'static str, operations: f64, work: &mut dyn FnMut()| {
            let start = Instant::now();
            work();
            if times.len() == index {
                times.push((name, operations, Vec::new()));
            }
            times[index].2.push(start.elapsed().as_secs_f64());
            index += 1;
        };
        let rows = (*tiles * TILE_ROWS) as f64;
        let square = 2.0 * rows * (WIDTH * WIDTH) as f64;
        let wide_operations = 2.0 * rows * (WIDTH * WIDE) as f64;
        let (one, bias, wide_bias) = (vec![1.0; WIDTH], vec![0.0; WIDTH], vec![0.5; WIDE]);
        let mut x = start.clone();
        let [h, q, k, v, heads, wide] = buffers;
        let [q_proj, k_proj, v_proj, o_proj] = projections;

        time("layer_norm", 0.0, &mut || cpu.layer_norm(&x, &one, &bias, 1e-5, h).unwrap());
        time("q, k, v", 3.0 * square, &mut || {
            cpu.matmul(h, &[q_proj, k_proj, v_proj], &mut [&mut *q, &mut *k, &mut *v]).unwrap()
        });
        time("biases", 0.0, &mut || {
            for x in [&mut *q, &mut *k, &mut *v] {
                cpu.add_bias(x, &bias).unwrap();
            }
        });
        time("rope", 0.0, &mut || {
            cpu.rope(q, rotations, HEAD_DIM).unwrap();
            cpu.rope(k, rotations, HEAD_DIM).unwrap();
        });
        let operations = 4.0 * rows * (TILE_ROWS * WIDTH) as f64;
        time("attend_all", operations, &mut || {
            cpu.attend_all(q, k, v, TILE_ROWS, HEAD_DIM, 0.01, o_proj, heads).unwrap();
        });
        time("o", square, &mut || cpu.matmul(heads, &[o_proj], &mut [h]).unwrap());
        time("bias", 0.0, &mut || cpu.add_bias(h, &bias).unwrap());
        time("add", 0.0, &mut || cpu.add(&mut x, h).unwrap());
        time("layer_norm", 0.0, &mut || cpu.layer_norm(&x, &one, &bias, 1e-5, h).unwrap());
        time("fc1", wide_operations, &mut || cpu.matmul(h, &[fc1], &mut [wide]).unwrap());
        time("bias, gelu", 0.0, &mut || cpu.gelu(wide, Some(&wide_bias)).unwrap());
        time("fc2", wide_operations, &mut || cpu.matmul(wide, &[fc2], &mut [h]).unwrap());
        time("bias", 0.0, &mut || cpu.add_bias(h, &bias).unwrap());
        time("add", 0.0, &mut || cpu.add(&mut x, h).unwrap());
    }

    /// Compares what the last product gave with double precision.
    fn check(&self) {
        let [h, .., wide] = &self.buffers;
        check(wide.values(), &self.fc2, h.values(), self.cpu.arithmetic());
    }

    fn report(&self) {
        let peak = self.peaks.iter().fold(0.0, |most: f64, peak| most.max(*peak));
        let (mut total, mut all) = (0.0, 0.0);
        let line = |name: &str, seconds: f64, operations: f64| {
            let milliseconds = 1e3 * seconds / self.tiles as f64;
            let share = 100.0 * operations / seconds / peak;
            println!("{name:12} {milliseconds:7.2} ms per tile  {share:3.0} %");
        };
        for (name, operations, times) in &self.times {
            let seconds = times.iter().fold(f64::INFINITY, |least, time| least.min(*time));
            line(name, seconds, *operations);
            (total, all) = (total + seconds, all + *operations);
        }
        line("together", total, all);
        println!("peak {:.0} Gop/s", peak / 1e9);
    }
}
