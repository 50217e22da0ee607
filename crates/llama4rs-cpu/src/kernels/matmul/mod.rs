//! `out = x · Wᵀ` with weights of any format.
//!
//! The order of operations, which defines every bit of the result; `fma` rounds
//! once. For `f32` weights, and `bf16` ones with [`Arithmetic::Exact`], an output is
//!
//! ```text
//! sum = 0;  for input i:  sum = fma(w[i], x[i], sum)
//! ```
//!
//! for `bf16` weights with [`Arithmetic::Fast`], where `f[i]` is `2^64 x[i]` rounded to bf16
//! and tiny weights count as zero ([`crate::simd::pairs`]; the second of two inputs comes first),
//!
//! ```text
//! sum = 0;  for inputs i, i + 1:  sum = fma(w[i], f[i], fma(w[i + 1], f[i + 1], sum))
//! out = sum / 2^64
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

mod bricks;
mod codes;
mod integer_tile;
mod packed_rows;
mod pair_tile;
mod panels;
mod quantise;
#[cfg(test)]
pub mod reference;
#[cfg(test)]
mod tests;
mod tile;
mod tiles;

use std::mem::MaybeUninit;
use std::ops::Range;

use llama4rs_tensor::{PackedMatrix, Result, WeightFormat};

use bricks::Product;
use codes::{Bf16, Int4, Int8, F32};
use integer_tile::{multiply_integers, Bytes, Nibbles};
pub use packed_rows::{Form, PackedRows, SharedRows};
use pair_tile::multiply_pairs;
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
        let mut buffer = OutputBuffer::new();
        for &tile in tiles {
            let most = panels_at_once(tile.rows);
            for start in panels.clone().step_by(most) {
                let step = start..panels.end.min(start + most);
                let buffer = buffer.zeros(step.len() * tile.rows * LANES);
                multiply(integers, &matrix, step.clone(), rows, tile, buffer);
                // Row by row: the rows of `out` are far from each other.
                for r in 0..tile.rows {
                    let row = (tile.first + r) * matrix.rows;
                    let panels = buffer.chunks_exact(tile.rows * LANES);
                    for (panel, values) in step.clone().zip(panels) {
                        let (outputs, values) = (matrix.outputs(panel), &values[r * LANES..]);
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

/// Outputs of [`multiply`] on the stack. A task of few rows uses little of it, so only that is
/// written first.
pub struct OutputBuffer([MaybeUninit<f32>; MAX_OUTPUTS]);

impl OutputBuffer {
    /// Memory that holds anything.
    #[inline(always)]
    pub fn new() -> Self {
        Self([MaybeUninit::uninit(); MAX_OUTPUTS])
    }

    /// The first `len` values, which are zero then.
    #[inline(always)]
    pub fn zeros(&mut self, len: usize) -> &mut [f32] {
        let values = &mut self.0[..len];
        values.fill(MaybeUninit::new(0.0));
        // SAFETY: all of them have just been written.
        unsafe { &mut *(values as *mut [MaybeUninit<f32>] as *mut [f32]) }
    }
}

/// Panels to give to one call of [`multiply`], at most.
pub const fn panels_at_once(rows: usize) -> usize {
    MAX_OUTPUTS / (rows * LANES)
}

/// `out[panel][row][lane] = rows[tile][row] · matrix[panel, lane]`, just as long. Call it inside
/// of a kernel.
pub fn multiply<I: Integers>(
    integers: I,
    matrix: &Panels,
    panels: Range<usize>,
    rows: &PackedRows,
    tile: Tile,
    out: &mut [f32],
) {
    let simd = integers.simd();
    assert_eq!(out.len(), panels.len() * tile.rows * LANES, "outputs of a tile");
    let product = Product { matrix, panels, x: rows.tile(tile), rows: tile.rows, out };
    match (matrix.format, rows.form()) {
        (WeightFormat::Int8 { .. }, Form::Codes { .. }) => {
            multiply_integers::<I, Bytes>(integers, product)
        }
        (WeightFormat::Int4 { .. }, Form::Codes { .. }) => {
            multiply_integers::<I, Nibbles>(integers, product)
        }
        (WeightFormat::Bf16, Form::Pairs) => multiply_pairs(simd, product),
        (WeightFormat::F32, _) => multiply_floats::<_, F32>(simd, product),
        (WeightFormat::Bf16, _) => multiply_floats::<_, Bf16>(simd, product),
        (WeightFormat::Int8 { .. }, _) => multiply_floats::<_, Int8>(simd, product),
        (WeightFormat::Int4 { .. }, _) => multiply_floats::<_, Int4>(simd, product),
    }
}
