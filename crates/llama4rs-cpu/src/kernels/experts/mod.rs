//! Mixtures of experts: `out[t] += Σ_e down_e(silu(gate_e(w x)) * up_e(w x))`
//! with `x = x[t]` and `w` the weight of expert `e` for row `t`; a shared expert
//! takes every row with the weight one.
//!
//! The order: `w * x` is rounded; the products are those of [`super::matmul`],
//! silu those of [`super::swiglu`]; `out` begins with the shared expert, and the
//! routed ones of a row are added one after another, best first.
//!
//! ```text
//! rows sorted by expert:   expert 0 | expert 0 | expert 3 | ...
//! 1. scaled inputs         packed into tiles, each of one expert
//! 2. gate, up, silu        task = some panels of one expert, all of its tiles
//! 3. down                  the same
//! 4. add to the rows
//! ```
//!
//! Only experts that some row goes to are read. The shared expert has many rows
//! and computes, most routed ones have few and wait for memory, so both go
//! through a stage together, and threads begin at both ends.

mod gate_up;
mod rows;
mod tasks;
#[cfg(test)]
mod tests;

use llama4rs_tensor::{ExpertWeights, PackedMatrix, Result};

use super::matmul::{Form, MatmulTask, Panels};
use super::route::Routing;
use crate::parallel::{Shared, Threads};
use crate::simd::Dispatch;
use crate::{Arithmetic, Tensor};
use gate_up::{panels_of_a_group, GateUp};
use rows::{SortedRows, Sorting};
use tasks::{cut, Task};

/// Working memory of [`experts`], [`feed_forward`] and [`mixture`].
#[derive(Default)]
pub struct ExpertScratch {
    sorting: Sorting,
    routed: SortedRows,
    shared: SortedRows,
    /// Outputs of the routed experts, sorted.
    outputs: Tensor,
    tasks: Vec<Task>,
}

type How<'a> = (Dispatch, Arithmetic, &'a Threads);

/// Adds the routed experts of every row of `x` to `out`; the shapes fit.
pub fn experts(
    how: How<'_>,
    scratch: &mut ExpertScratch,
    x: &Tensor,
    routing: &Routing,
    weights: ExpertWeights<'_, PackedMatrix>,
    out: &mut Tensor,
) -> Result<()> {
    let ExpertScratch { sorting, routed, outputs, tasks, .. } = scratch;
    sorting.pack(how, routed, x, routing, &weights)?;
    outputs.resize(routing.experts.len(), weights.down.rows())?;
    run(how, tasks, [Side { weights, rows: routed, out: outputs }]);
    sorting.add(how, routing, outputs, out);
    Ok(())
}

/// `out[t]` is the one expert of `weights` for every row of `x`; the shapes fit.
pub fn feed_forward(
    how: How<'_>,
    scratch: &mut ExpertScratch,
    x: &Tensor,
    weights: ExpertWeights<'_, PackedMatrix>,
    out: &mut Tensor,
) -> Result<()> {
    let ExpertScratch { shared: rows, tasks, .. } = scratch;
    rows.pack_all(how, &weights, x)?;
    out.resize(x.rows(), weights.down.rows())?;
    run(how, tasks, [Side { weights, rows, out }]);
    Ok(())
}

/// `out` is the shared expert and the routed ones of every row of `x`; the shapes fit.
pub fn mixture(
    how: How<'_>,
    scratch: &mut ExpertScratch,
    x: &Tensor,
    routing: &Routing,
    [shared_weights, routed_weights]: [ExpertWeights<'_, PackedMatrix>; 2],
    out: &mut Tensor,
) -> Result<()> {
    let ExpertScratch { sorting, routed, shared, outputs, tasks } = scratch;
    shared.pack_all(how, &shared_weights, x)?;
    sorting.pack(how, routed, x, routing, &routed_weights)?;
    out.resize(x.rows(), shared_weights.down.rows())?;
    outputs.resize(routing.experts.len(), routed_weights.down.rows())?;
    let shared = Side { weights: shared_weights, rows: shared, out: &mut *out };
    run(how, tasks, [shared, Side { weights: routed_weights, rows: routed, out: outputs }]);
    sorting.add(how, routing, outputs, out);
    Ok(())
}

/// Experts of one shape, their rows, and where the outputs of these go.
struct Side<'a> {
    weights: ExpertWeights<'a, PackedMatrix>,
    rows: &'a mut SortedRows,
    out: &'a mut Tensor,
}

/// `out[place] = down(silu(gate x) * (up x))` for the packed inputs of every side.
fn run<const N: usize>(
    (dispatch, arithmetic, threads): How<'_>,
    tasks: &mut Vec<Task>,
    mut sides: [Side<'_>; N],
) {
    cut(
        tasks,
        threads,
        &sides.each_ref().map(|side| {
            let unit = panels_of_a_group(side.rows.hidden.form());
            (&side.rows.active[..], side.weights.gate, unit)
        }),
    );
    let halves = sides.each_mut().map(|side| {
        let (SortedRows { active, tiles, inputs, hidden }, weights) =
            (&mut *side.rows, &side.weights);
        let (gate, up) = (weights.gate, weights.up);
        let rows = [gate, up].map(|matrix| inputs.rows_for(matrix, arithmetic));
        (&*active, &*tiles, [gate, up], rows, hidden.shared())
    });
    threads.for_each_from_both_ends(tasks.len(), |task| {
        let Task { side, active, panels, .. } = &tasks[task];
        let (experts, tiles, matrices, [gate_rows, up_rows], hidden) = &halves[*side];
        let expert = &experts[*active];
        let [gate, up] = matrices.map(|matrix| Panels::of(matrix, expert.expert));
        let (panels, tiles, hidden) = (panels.clone(), &tiles[expert.tiles.clone()], *hidden);
        dispatch.run_integers(GateUp { gate, up, gate_rows, up_rows, panels, tiles, hidden });
    });

    cut(
        tasks,
        threads,
        &sides.each_ref().map(|side| (&side.rows.active[..], side.weights.down, 1)),
    );
    let halves = sides
        .each_mut()
        .map(|side| (&*side.rows, side.weights.down, Shared::new(side.out.values_mut())));
    threads.for_each_from_both_ends(tasks.len(), |task| {
        let Task { side, active, panels, .. } = &tasks[task];
        let (SortedRows { active: experts, tiles, hidden, .. }, down, out) = &halves[*side];
        let expert = &experts[*active];
        let matrix = Panels::of(down, expert.expert);
        let (panels, tiles, out) = (panels.clone(), &tiles[expert.tiles.clone()], *out);
        dispatch.run_integers(MatmulTask { matrix, panels, rows: hidden, tiles, out });
    });
}

impl SortedRows {
    /// Packs the rows of `x` as they are, all for the first expert.
    fn pack_all(
        &mut self,
        how: How<'_>,
        weights: &ExpertWeights<'_, PackedMatrix>,
        x: &Tensor,
    ) -> Result<()> {
        self.take_all(x.rows(), how.0.tile_rows());
        self.pack(how, weights, x, |row| row, |_| 1.0)
    }

    /// Packs `scale(place) * x[row(place)]` and makes room for what comes of it.
    fn pack(
        &mut self,
        (dispatch, arithmetic, threads): How<'_>,
        weights: &ExpertWeights<'_, PackedMatrix>,
        x: &Tensor,
        row: impl Fn(usize) -> usize + Sync,
        scale: impl Fn(usize) -> f32 + Sync,
    ) -> Result<()> {
        let ExpertWeights { gate, up, down } = weights;
        let Self { active, tiles, inputs, hidden } = self;
        let count = active.iter().map(|expert| expert.rows).sum();
        inputs.start(arithmetic, &[gate, up], count, x.cols())?;
        hidden.start(Form::of(down.format(), arithmetic), count, gate.rows())?;
        inputs.fill(dispatch, threads, tiles, |place| x.row(row(place)), scale);
        Ok(())
    }
}

impl Sorting {
    /// Sorts the rows of `x` by their experts and packs them, scaled.
    fn pack(
        &mut self,
        how: How<'_>,
        sorted: &mut SortedRows,
        x: &Tensor,
        routing: &Routing,
        weights: &ExpertWeights<'_, PackedMatrix>,
    ) -> Result<()> {
        self.sort(routing, sorted, how.0.tile_rows());
        let pair = |place: usize| self.pairs[place] as usize;
        let row = |place| pair(place) / routing.top_k;
        sorted.pack(how, weights, x, row, |place| routing.weights[pair(place)])
    }

    /// Adds the sorted `outputs` to the rows that they belong to.
    fn add(&self, (_, _, threads): How<'_>, routing: &Routing, outputs: &Tensor, out: &mut Tensor) {
        let cols = outputs.cols();
        let out = Shared::new(out.values_mut());
        threads.for_ranges(routing.rows, (64 << 10) / cols + 1, |rows| {
            for row in rows {
                // SAFETY: every row is one task's.
                let out = unsafe { out.part(row * cols..(row + 1) * cols) };
                for &place in &self.places[row * routing.top_k..(row + 1) * routing.top_k] {
                    let y = outputs.row(place as usize);
                    out.iter_mut().zip(y).for_each(|(out, y)| *out += y);
                }
            }
        });
    }
}
