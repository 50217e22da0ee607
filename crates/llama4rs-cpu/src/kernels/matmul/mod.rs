//! `out = x · Wᵀ` with single-precision activations and weights of any format.
//!
//! The order of operations, which defines every bit of the result. For `f32`
//! and `bf16` weights an output is
//!
//! ```text
//! sum = 0;  for input i:  sum = fma(w[i], x[i], sum)
//! ```
//!
//! and for the integer formats
//!
//! ```text
//! sum = 0;  for group g:  part = 0;  for input i of g:  part = fma(code[i], x[i], part)
//!                         sum = fma(scale[g], part, sum)
//! ```
//!
//! Inputs run in order, `fma` rounds once, codes and scales are exact floats.
//! Zero codes fill up the last group; they add nothing, because the inputs there
//! are zero, too.
//!
//! ```text
//!               panels of 16 outputs
//!             ┌────┬────┬────┬────┬───
//!   rows of x │    │ a task: some panels, all or some tiles;
//!   in tiles  ├────┼──  a panel stays in the cache while the tiles pass
//!   of 1..12  │    │
//! ```
//!
//! A tile keeps one accumulator per row and panel in registers; each line of
//! weights is unpacked once per tile.

mod codes;
mod packed_rows;
mod panels;
#[cfg(test)]
pub mod reference;
mod tile;

use std::ops::Range;

use llama4rs_tensor::{PackedMatrix, Result};

pub use packed_rows::{PackedRows, SharedRows, Tile};
pub use panels::Panels;
pub use tile::{multiply, panels_at_once, MAX_OUTPUTS};

use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, Kernel, Simd, LANES};
use crate::Tensor;

/// `outs[i] = x · weights[i]ᵀ`; the shapes fit.
pub fn matmul(
    dispatch: Dispatch,
    threads: &Threads,
    scratch: &mut PackedRows,
    x: &Tensor,
    weights: &[&PackedMatrix],
    outs: &mut [&mut Tensor],
) -> Result<()> {
    for (weights, out) in weights.iter().zip(outs.iter_mut()) {
        out.resize(x.rows(), weights.rows())?;
    }
    scratch.start(x.cols());
    scratch.plan(x.rows(), dispatch.tile_rows());
    scratch.allocate()?;
    scratch.fill(threads, |r| x.row(r), |_| 1.0);
    let rows = &*scratch;

    let jobs: Vec<Job> = weights
        .iter()
        .zip(outs.iter_mut())
        .map(|(weights, out)| Job::new(Panels::of(weights, 0), rows, out, threads.count()))
        .collect();
    threads.for_each(jobs.iter().map(Job::tasks).sum(), |mut task| {
        for job in &jobs {
            if task < job.tasks() {
                return dispatch.run(job.task(task));
            }
            task -= job.tasks();
        }
    });
    Ok(())
}

/// One matrix of a call, cut into tasks.
struct Job<'a> {
    matrix: Panels<'a>,
    rows: &'a PackedRows,
    out: Shared<'a, f32>,
    panels_per_task: usize,
    tiles_per_task: usize,
}

impl<'a> Job<'a> {
    fn new(matrix: Panels<'a>, rows: &'a PackedRows, out: &'a mut Tensor, threads: usize) -> Self {
        let wanted = if threads == 1 { 1 } else { threads * 4 };
        let panels_per_task = matrix.per_task(wanted);
        let panel_parts = matrix.count().div_ceil(panels_per_task);
        let tile_parts = wanted.div_ceil(panel_parts);
        let tiles_per_task = rows.tiles().len().div_ceil(tile_parts).max(1);
        Self { matrix, rows, out: Shared::new(out.values_mut()), panels_per_task, tiles_per_task }
    }

    fn tile_parts(&self) -> usize {
        self.rows.tiles().len().div_ceil(self.tiles_per_task)
    }

    fn tasks(&self) -> usize {
        self.matrix.count().div_ceil(self.panels_per_task) * self.tile_parts()
    }

    fn task(&self, task: usize) -> MatmulTask<'_> {
        let (panels, tiles) = (task / self.tile_parts(), task % self.tile_parts());
        let panels = panels * self.panels_per_task..(panels + 1) * self.panels_per_task;
        let tiles = tiles * self.tiles_per_task..(tiles + 1) * self.tiles_per_task;
        MatmulTask {
            matrix: self.matrix,
            panels: panels.start..panels.end.min(self.matrix.count()),
            rows: self.rows,
            tiles: &self.rows.tiles()[tiles.start..tiles.end.min(self.rows.tiles().len())],
            out: self.out,
        }
    }
}

struct MatmulTask<'a> {
    matrix: Panels<'a>,
    panels: Range<usize>,
    rows: &'a PackedRows,
    tiles: &'a [Tile],
    out: Shared<'a, f32>,
}

impl Kernel for MatmulTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { matrix, panels, rows, tiles, out } = self;
        // SAFETY: no other task has one of these panels and one of these tiles.
        unsafe { multiply_tiles(simd, &matrix, panels, rows, tiles, out) };
    }
}

/// Some panels times some tiles, into `out` `[rows, matrix.rows]`.
///
/// # Safety
/// Nothing else reaches the outputs of these panels in the rows of these tiles.
#[inline(always)]
pub unsafe fn multiply_tiles<S: Simd>(
    simd: S,
    matrix: &Panels,
    panels: Range<usize>,
    rows: &PackedRows,
    tiles: &[Tile],
    out: Shared<'_, f32>,
) {
    let mut buffer = [0.0; MAX_OUTPUTS];
    for tile in tiles {
        let step = panels_at_once::<S>(tile.rows);
        for start in panels.clone().step_by(step) {
            let step = start..panels.end.min(start + step);
            multiply(simd, matrix, step.clone(), rows.values(tile), tile.rows, &mut buffer);
            for (panel, values) in step.zip(buffer.chunks_exact(tile.rows * LANES)) {
                let outputs = matrix.outputs(panel);
                for (r, values) in values.chunks_exact(LANES).take(tile.live).enumerate() {
                    let row = (tile.first + r) * matrix.rows;
                    // SAFETY: the caller's promise.
                    unsafe { out.part(row + outputs.start..row + outputs.end) }
                        .copy_from_slice(&values[..outputs.len()]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::{Backend, WeightFormat};
    use proptest::prelude::*;

    use super::*;
    use crate::test_support::{
        all_cpus, any_format, any_size, assert_bits, assert_close, best_cpu, Random, FORMATS,
    };

    fn run(cpu: &crate::Cpu, x: &Tensor, weights: &PackedMatrix) -> Tensor {
        let mut out = cpu.empty();
        cpu.matmul(x, &[weights], &mut [&mut out]).unwrap();
        out
    }

    fn reference_rows(x: &Tensor, weights: &PackedMatrix) -> Vec<f32> {
        let panels = Panels::of(weights, 0);
        (0..x.rows()).flat_map(|r| reference::matmul_row(x.row(r), &panels)).collect()
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
            let expected = reference_rows(&x, &weights);
            assert_close("reference", &exact_rows(&x, &weights), &expected, 1e-5);
            for cpu in all_cpus() {
                assert_bits(&cpu.description(), &expected, run(cpu, &x, &weights).values());
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
                let expected = reference_rows(&x, &weights);
                assert_close("reference", &exact_rows(&x, &weights), &expected, 1e-5);
                assert_bits("best", &expected, run(best_cpu(), &x, &weights).values());
            }
        }
    }

    #[test]
    fn every_number_of_rows_gives_the_same_rows() {
        let mut random = Random(2);
        for format in FORMATS {
            let weights = random.matrix(format, 1, 77, 130);
            let x = random.tensor(53, 130);
            let expected = reference_rows(&x, &weights);
            for rows in 1..=x.rows() {
                let part = Tensor::from_values(&x.values()[..rows * 130], 130).unwrap();
                let got = run(best_cpu(), &part, &weights);
                assert_bits(&format!("{rows} rows"), &expected[..rows * 77], got.values());
            }
        }
    }

    #[test]
    fn several_matrices_of_one_input() {
        let mut random = Random(3);
        let x = random.tensor(5, 200);
        let formats = ["int4", "f32", "int8/g32"].map(|name| name.parse::<WeightFormat>().unwrap());
        let weights: Vec<_> =
            formats.iter().zip([40, 7, 300]).map(|(&f, n)| random.matrix(f, 1, n, 200)).collect();
        for cpu in all_cpus() {
            let mut outs: Vec<Tensor> = weights.iter().map(|_| cpu.empty()).collect();
            cpu.matmul(
                &x,
                &weights.iter().collect::<Vec<_>>(),
                &mut outs.iter_mut().collect::<Vec<_>>(),
            )
            .unwrap();
            for (weights, out) in weights.iter().zip(&outs) {
                assert_bits(&cpu.description(), &reference_rows(&x, weights), out.values());
            }
        }
    }

    #[test]
    fn no_rows_give_no_rows() {
        let weights = Random(4).matrix(WeightFormat::F32, 1, 20, 10);
        let out = run(best_cpu(), &Tensor::from_values(&[], 10).unwrap(), &weights);
        assert_eq!((out.rows(), out.cols()), (0, 20));
    }
}
