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
        let mut buffer = [0.0; MAX_OUTPUTS];
        for tile in tiles {
            let step = panels_at_once(tile.rows);
            for start in panels.clone().step_by(step) {
                let step = start..panels.end.min(start + step);
                multiply(simd, &matrix, step.clone(), rows.values(tile), tile.rows, &mut buffer);
                for (panel, values) in step.zip(buffer.chunks_exact(tile.rows * LANES)) {
                    let outputs = matrix.outputs(panel);
                    for (r, values) in values.chunks_exact(LANES).take(tile.live).enumerate() {
                        let row = (tile.first + r) * matrix.rows;
                        // SAFETY: no other task has this panel and this tile.
                        unsafe { out.part(row + outputs.start..row + outputs.end) }
                            .copy_from_slice(&values[..outputs.len()]);
                    }
                }
            }
        }
    }
}
