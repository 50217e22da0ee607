//! `out = x · Wᵀ` with weights of any format.
//!
//! The order of operations, which defines every bit of the result; `fma` rounds
//! once. For `f32` and `bf16` weights an output is
//!
//! ```text
//! sum = 0;  for input i:  sum = fma(w[i], x[i], sum)
//! ```
//!
//! for the integer formats with [`Arithmetic::Exact`]
//!
//! ```text
//! sum = 0;  for group g:  part = 0;  for input i of g:  part = fma(code[i], x[i], part)
//!                         sum = fma(scale[g], part, sum)
//! ```
//!
//! and with [`Arithmetic::Fast`], where `q[i]` and `s[g]` are the activations of
//! the group as 8-bit integers and their scale ([`quantise`]),
//!
//! ```text
//! sum = 0;  for group g:  dot = Σ code[i] * q[i], an integer
//!                         sum = fma(dot, scale[g] * s[g], sum)
//! ```
//!
//! Inputs run in order; codes, scales and `dot` are exact floats. Zero codes fill
//! up the last group; they add nothing, because the inputs there are zero, too.
//! Rows with inputs that are not finite have outputs that are not, either.
//!
//! ```text
//!               panels of 16 outputs
//!             ┌────┬────┬────┬────┬───
//!   rows of x │    │ a task: some panels, all or some tiles;
//!   in tiles  ├────┼──  a panel stays in the cache while the tiles pass
//!   of 1..12  │    │
//! ```
//!
//! Rows are brought into the form that the weights need ([`packed_rows`]) once
//! per call. A tile keeps one accumulator per row and panel in registers; each
//! line of weights is unpacked once per tile.

mod codes;
mod integer_tile;
mod packed_rows;
mod panels;
mod quantise;
#[cfg(test)]
pub mod reference;
mod shapes;
mod tile;
mod tiles;

use std::ops::Range;

use llama4rs_tensor::{PackedMatrix, Result, WeightFormat};

use codes::{Bf16, Int4, Int8, F32};
use integer_tile::{multiply_integers, Bytes, Nibbles};
pub use packed_rows::{Form, PackedRows, SharedRows};
pub use panels::Panels;
pub use quantise::MAX_GROUP;
use tile::multiply_floats;
pub use tiles::{add_tiles, Tile};

use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, IntegerKernel, Integers, Simd, LANES};
use crate::{Arithmetic, Tensor};

/// Working memory of [`matmul`].
#[derive(Default)]
pub struct MatmulScratch {
    tiles: Vec<Tile>,
    inputs: Inputs,
}

/// Rows of activations in every form that some matrices need.
#[derive(Default)]
pub struct Inputs {
    rows: Vec<PackedRows>,
    /// How many of `rows` are in use.
    forms: usize,
}

impl Inputs {
    /// Makes room for `rows` rows of `cols` inputs in the form for each of `matrices`.
    pub fn start(
        &mut self,
        arithmetic: Arithmetic,
        matrices: &[&PackedMatrix],
        rows: usize,
        cols: usize,
    ) -> Result<()> {
        self.forms = 0;
        for matrix in matrices {
            let form = Form::of(matrix.format(), arithmetic);
            if self.rows[..self.forms].iter().all(|rows| rows.form() != form) {
                if self.forms == self.rows.len() {
                    self.rows.push(PackedRows::default());
                }
                self.rows[self.forms].start(form, rows, cols)?;
                self.forms += 1;
            }
        }
        Ok(())
    }

    /// Fills the rows of `tiles` in every form: see [`PackedRows::fill`].
    pub fn fill<'x>(
        &mut self,
        dispatch: Dispatch,
        threads: &Threads,
        tiles: &[Tile],
        row: impl Fn(usize) -> &'x [f32] + Sync,
        scale: impl Fn(usize) -> f32 + Sync,
    ) {
        for rows in &mut self.rows[..self.forms] {
            rows.fill(dispatch, threads, tiles, &row, &scale);
        }
    }

    /// The rows in the form for `matrix`, which `start` was told of.
    pub fn rows_for(&self, matrix: &PackedMatrix, arithmetic: Arithmetic) -> &PackedRows {
        let form = Form::of(matrix.format(), arithmetic);
        let rows = self.rows[..self.forms].iter().find(|rows| rows.form() == form);
        rows.expect("a form that was asked for")
    }
}

/// `outs[i] = x · weights[i]ᵀ`; the shapes fit.
pub fn matmul(
    (dispatch, arithmetic): (Dispatch, Arithmetic),
    threads: &Threads,
    scratch: &mut MatmulScratch,
    x: &Tensor,
    weights: &[&PackedMatrix],
    outs: &mut [&mut Tensor],
) -> Result<()> {
    for (weights, out) in weights.iter().zip(outs.iter_mut()) {
        out.resize(x.rows(), weights.rows())?;
    }
    let MatmulScratch { tiles, inputs } = scratch;
    tiles.clear();
    add_tiles(tiles, 0, x.rows(), dispatch.tile_rows());
    inputs.start(arithmetic, weights, x.rows(), x.cols())?;
    inputs.fill(dispatch, threads, tiles, |r| x.row(r), |_| 1.0);

    let jobs: Vec<Job> = weights
        .iter()
        .zip(outs.iter_mut())
        .map(|(weights, out)| {
            let rows = inputs.rows_for(weights, arithmetic);
            Job::new(Panels::of(weights, 0), rows, tiles, out, threads.count())
        })
        .collect();
    threads.for_each(jobs.iter().map(Job::tasks).sum(), |mut task| {
        for job in &jobs {
            if task < job.tasks() {
                return dispatch.run_integers(job.task(task));
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
    tiles: &'a [Tile],
    out: Shared<'a, f32>,
    panels_per_task: usize,
    tiles_per_task: usize,
}

impl<'a> Job<'a> {
    fn new(
        matrix: Panels<'a>,
        rows: &'a PackedRows,
        tiles: &'a [Tile],
        out: &'a mut Tensor,
        threads: usize,
    ) -> Self {
        let wanted = if threads == 1 { 1 } else { threads * 4 };
        let panels_per_task = matrix.per_task(wanted, tiles.len() > 1);
        let panel_parts = matrix.count().div_ceil(panels_per_task);
        let tile_parts = wanted.div_ceil(panel_parts);
        let tiles_per_task = tiles.len().div_ceil(tile_parts).max(1);
        let out = Shared::new(out.values_mut());
        Self { matrix, rows, tiles, out, panels_per_task, tiles_per_task }
    }

    fn tile_parts(&self) -> usize {
        self.tiles.len().div_ceil(self.tiles_per_task)
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
            tiles: &self.tiles[tiles.start..tiles.end.min(self.tiles.len())],
            out: self.out,
        }
    }
}

/// Some panels times some tiles, into `out` `[rows, matrix.rows]`. No other task
/// has one of these panels and one of these tiles.
pub struct MatmulTask<'a> {
    pub matrix: Panels<'a>,
    pub panels: Range<usize>,
    pub rows: &'a PackedRows,
    pub tiles: &'a [Tile],
    pub out: Shared<'a, f32>,
}

impl IntegerKernel for MatmulTask<'_> {
    #[inline(always)]
    fn run<I: Integers>(self, integers: I) {
        let Self { matrix, panels, rows, tiles, out } = self;
        let simd = integers.simd();
        let mut buffer = [0.0; MAX_OUTPUTS];
        for &tile in tiles {
            let most = panels_at_once(tile.rows);
            for start in panels.clone().step_by(most) {
                let step = start..panels.end.min(start + most);
                multiply(integers, &matrix, step.clone(), rows, tile, &mut buffer);
                for (panel, values) in step.zip(buffer.chunks_exact(tile.rows * LANES)) {
                    let outputs = matrix.outputs(panel);
                    for (r, values) in values.chunks_exact(LANES).enumerate() {
                        let row = (tile.first + r) * matrix.rows;
                        // SAFETY: no other task has this panel and this tile.
                        let out = unsafe { out.part(row + outputs.start..row + outputs.end) };
                        if out.len() == LANES {
                            // SAFETY: both have 16 floats.
                            unsafe { simd.store(simd.load(values.as_ptr()), out.as_mut_ptr()) };
                        } else {
                            out.copy_from_slice(&values[..out.len()]);
                        }
                    }
                }
            }
        }
    }
}

/// Floats that [`multiply`] writes at most: twelve rows by a large group of outputs.
pub const MAX_OUTPUTS: usize = 12 * MAX_GROUP;

/// Panels to give to one call of [`multiply`], at most.
pub const fn panels_at_once(rows: usize) -> usize {
    MAX_OUTPUTS / (rows * LANES)
}

/// `out[panel][row][lane] = rows[tile][row] · matrix[panel, lane]` for at most
/// [`panels_at_once`] panels. Call it inside of a kernel.
pub fn multiply<I: Integers>(
    integers: I,
    matrix: &Panels,
    panels: Range<usize>,
    rows: &PackedRows,
    tile: Tile,
    out: &mut [f32; MAX_OUTPUTS],
) {
    let (simd, x, n) = (integers.simd(), rows.tile(tile), tile.rows);
    let out = &mut out[..panels.len() * n * LANES];
    match (matrix.format, rows.form()) {
        (WeightFormat::Int8 { .. }, Form::Codes { .. }) => {
            multiply_integers::<I, Bytes>(integers, matrix, panels, x, n, out)
        }
        (WeightFormat::Int4 { .. }, Form::Codes { .. }) => {
            multiply_integers::<I, Nibbles>(integers, matrix, panels, x, n, out)
        }
        (WeightFormat::F32, _) => multiply_floats::<_, F32>(simd, matrix, panels, x, n, out),
        (WeightFormat::Bf16, _) => multiply_floats::<_, Bf16>(simd, matrix, panels, x, n, out),
        (WeightFormat::Int8 { .. }, _) => {
            multiply_floats::<_, Int8>(simd, matrix, panels, x, n, out)
        }
        (WeightFormat::Int4 { .. }, _) => {
            multiply_floats::<_, Int4>(simd, matrix, panels, x, n, out)
        }
    }
}

#[cfg(test)]
mod tests {
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
    /// products differ from the exact ones by a bit more than half a percent.
    #[test]
    fn fast_arithmetic_is_close() {
        let mut random = Random(7);
        let normal: Vec<f32> =
            (0..8 * 2048).map(|_| random.values(12).iter().sum::<f32>() / 2.0).collect();
        let x = Tensor::from_values(&normal, 2048).unwrap();
        for (format, most) in [
            ("int4/g32", 0.0065),
            ("int4/g64", 0.0075),
            ("int4/g128", 0.0085),
            ("int8/g32", 0.0065),
            ("int8/g64", 0.0075),
            ("int8/g128", 0.0085),
        ] {
            let weights = random.matrix(format.parse().unwrap(), 1, 256, 2048);
            let (exact, fast) =
                (run(best_exact_cpu(), &x, &weights), run(best_cpu(), &x, &weights));
            let rms = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|value| value as f64 * value as f64).sum::<f64>().sqrt()
            };
            let error = rms(&mut exact.values().iter().zip(fast.values()).map(|(e, f)| e - f))
                / rms(&mut exact.values().iter().copied());
            println!("{format}: relative error {:.2} %", 100.0 * error);
            assert!((0.003..most).contains(&error), "{format}: {error}");
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
}
