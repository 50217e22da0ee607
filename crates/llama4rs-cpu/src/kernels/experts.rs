//! The routed experts: `out[t] += Σ_e down_e(silu(gate_e(w x)) * up_e(w x))`
//! with `x = x[t]` and `w` the weight of expert `e` for row `t`.
//!
//! The order: `w * x` is rounded; the products are those of [`super::matmul`],
//! silu those of [`super::swiglu`]; the experts of a row are added to `out` one
//! after another, best first.
//!
//! ```text
//! rows sorted by expert:   expert 0 | expert 0 | expert 3 | ...
//! 1. scaled inputs         packed into tiles, each of one expert
//! 2. gate, up, silu        task = some panels of one expert, all of its tiles
//! 3. down                  the same
//! 4. add to the rows
//! ```
//!
//! Only experts that some row goes to are read, and all threads share one expert
//! when there is only one.

use std::ops::Range;

use llama4rs_tensor::{ExpertWeights, PackedMatrix, Result};

use super::matmul::{
    add_tiles, multiply, panels_at_once, Form, Inputs, MatmulTask, PackedRows, Panels, SharedRows,
    Tile, MAX_GROUP, MAX_OUTPUTS,
};
use super::route::Routing;
use super::swiglu::swiglu_lanes;
use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, IntegerKernel, Integers, Simd, LANES};
use crate::{Arithmetic, Tensor};

/// Working memory of [`experts`].
#[derive(Default)]
pub struct ExpertScratch {
    /// Scaled inputs.
    inputs: Inputs,
    /// `silu(gate) * up`.
    hidden: PackedRows,
    /// Outputs of `down`, sorted by expert.
    outputs: Tensor,
    active: Vec<ActiveExpert>,
    tiles: Vec<Tile>,
    /// Where each expert's rows start in the sorted order.
    starts: Vec<usize>,
    /// Sorted place -> routed pair (`row * top_k + rank`).
    pairs: Vec<u32>,
    /// Routed pair -> sorted place.
    places: Vec<u32>,
}

/// An expert that some row goes to.
#[derive(Clone)]
struct ActiveExpert {
    expert: usize,
    tiles: Range<usize>,
}

/// Adds the routed experts of every row of `x` to `out`; the shapes fit.
pub fn experts(
    (dispatch, arithmetic): (Dispatch, Arithmetic),
    threads: &Threads,
    scratch: &mut ExpertScratch,
    x: &Tensor,
    routing: &Routing,
    weights: ExpertWeights<'_, PackedMatrix>,
    out: &mut Tensor,
) -> Result<()> {
    let ExpertWeights { gate, up, down } = weights;
    scratch.sort(routing, dispatch.tile_rows());
    let ExpertScratch { inputs, hidden, outputs, active, tiles, pairs, places, .. } = scratch;
    let count = routing.experts.len();
    inputs.start(arithmetic, &[gate, up], count, x.cols())?;
    hidden.start(Form::of(down.format(), arithmetic), count, gate.rows())?;
    outputs.resize(count, down.rows())?;

    let pair = |place: usize| pairs[place] as usize;
    let row = |place| x.row(pair(place) / routing.top_k);
    inputs.fill(dispatch, threads, tiles, row, |place| routing.weights[pair(place)]);

    let wanted = (threads.count() * 4).div_ceil(active.len().max(1));
    let wanted = if threads.count() == 1 { 1 } else { wanted };
    let reused = tiles.len() > active.len();
    let unit = panels_of_a_group(hidden.form());
    let panels_per_task = Panels::of(gate, 0).per_task(wanted, reused).div_ceil(2);
    let panels_per_task = panels_per_task.next_multiple_of(unit);
    let parts = Panels::of(gate, 0).count().div_ceil(panels_per_task);
    let (gate_rows, up_rows) = (inputs.rows_for(gate, arithmetic), inputs.rows_for(up, arithmetic));
    let shared = hidden.shared();
    threads.for_each(active.len() * parts, |task| {
        let ActiveExpert { expert, tiles: range } = &active[task / parts];
        let (gate, up) = (Panels::of(gate, *expert), Panels::of(up, *expert));
        let start = task % parts * panels_per_task;
        let panels = start..gate.count().min(start + panels_per_task);
        let (tiles, hidden) = (&tiles[range.clone()], shared);
        dispatch.run_integers(GateUp { gate, up, gate_rows, up_rows, panels, tiles, hidden });
    });

    let panels_per_task = Panels::of(down, 0).per_task(wanted, reused);
    let parts = Panels::of(down, 0).count().div_ceil(panels_per_task);
    let shared = Shared::new(outputs.values_mut());
    threads.for_each(active.len() * parts, |task| {
        let ActiveExpert { expert, tiles: range } = &active[task / parts];
        let matrix = Panels::of(down, *expert);
        let start = task % parts * panels_per_task;
        let panels = start..matrix.count().min(start + panels_per_task);
        let (tiles, rows) = (&tiles[range.clone()], &*hidden);
        dispatch.run_integers(MatmulTask { matrix, panels, rows, tiles, out: shared });
    });

    let cols = down.rows();
    let shared = Shared::new(out.values_mut());
    threads.for_ranges(routing.rows, (64 << 10) / cols + 1, |rows| {
        for row in rows {
            // SAFETY: every row is one task's.
            let out = unsafe { shared.part(row * cols..(row + 1) * cols) };
            for &place in &places[row * routing.top_k..(row + 1) * routing.top_k] {
                let y = outputs.row(place as usize);
                out.iter_mut().zip(y).for_each(|(out, y)| *out += y);
            }
        }
    });
    Ok(())
}

impl ExpertScratch {
    /// Counting sort of the routed pairs by expert; rows keep their order. Then
    /// the rows of every expert become tiles.
    fn sort(&mut self, routing: &Routing, tile_rows: usize) {
        self.starts.clear();
        self.starts.resize(routing.num_experts + 1, 0);
        for &expert in &routing.experts {
            self.starts[expert as usize + 1] += 1;
        }
        self.active.clear();
        self.tiles.clear();
        for expert in 0..routing.num_experts {
            let (start, count) = (self.starts[expert], self.starts[expert + 1]);
            self.starts[expert + 1] += start;
            if count > 0 {
                let tiles = add_tiles(&mut self.tiles, start, count, tile_rows);
                self.active.push(ActiveExpert { expert, tiles });
            }
        }
        self.pairs.clear();
        self.pairs.resize(routing.experts.len(), 0);
        self.places.clear();
        for (pair, &expert) in routing.experts.iter().enumerate() {
            let place = &mut self.starts[expert as usize];
            self.pairs[*place] = pair as u32;
            self.places.push(*place as u32);
            *place += 1;
        }
    }
}

/// Panels of `gate` and `up` whose outputs become inputs of `down` together: those
/// of a group, where they become codes.
fn panels_of_a_group(form: Form) -> usize {
    match form {
        Form::Floats => 4,
        Form::Codes { group, .. } => group / LANES,
    }
}

/// `silu(gate x) * (up x)` for some panels of one expert.
struct GateUp<'a> {
    gate: Panels<'a>,
    up: Panels<'a>,
    gate_rows: &'a PackedRows,
    up_rows: &'a PackedRows,
    panels: Range<usize>,
    tiles: &'a [Tile],
    hidden: SharedRows<'a>,
}

impl IntegerKernel for GateUp<'_> {
    #[inline(always)]
    fn run<I: Integers>(self, integers: I) {
        let Self { gate, up, gate_rows, up_rows, panels, tiles, hidden } = self;
        let (mut gates, mut ups) = ([0.0; MAX_OUTPUTS], [0.0; MAX_OUTPUTS]);
        let simd = integers.simd();
        let unit = panels_of_a_group(hidden.form());
        let mut row = [0.0; MAX_GROUP];
        for &tile in tiles {
            let most = panels_at_once(tile.rows) / unit * unit;
            for start in panels.clone().step_by(most) {
                let step = start..panels.end.min(start + most);
                multiply(integers, &gate, step.clone(), gate_rows, tile, &mut gates);
                multiply(integers, &up, step.clone(), up_rows, tile, &mut ups);
                let size = tile.rows * LANES;
                activate(simd, &mut gates[..step.len() * size], &ups);
                for (i, gates) in gates[..step.len() * size].chunks(unit * size).enumerate() {
                    let from = (start + i * unit) * LANES;
                    let end = gate.rows.min(from + unit * LANES);
                    for r in 0..tile.rows {
                        for (x, gates) in row.chunks_exact_mut(LANES).zip(gates.chunks_exact(size))
                        {
                            let gates = &gates[r * LANES..][..LANES];
                            // SAFETY: both have 16 floats.
                            unsafe { simd.store(simd.load(gates.as_ptr()), x.as_mut_ptr()) };
                        }
                        let x = &row[..end - from];
                        // SAFETY: no other task has these panels and this tile.
                        unsafe { hidden.write(simd, tile, r, from, x, 1.0) };
                    }
                }
            }
        }
    }
}

/// `gate = silu(gate) * up` for whole vectors.
#[inline(always)]
fn activate<S: Simd>(simd: S, gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.chunks_exact_mut(LANES).zip(up.chunks_exact(LANES)) {
        // SAFETY: both have 16 floats.
        unsafe {
            let result = swiglu_lanes(simd, simd.load(gate.as_ptr()), simd.load(up.as_ptr()));
            simd.store(result, gate.as_mut_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::{Backend, WeightFormat};
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::exp::reference::exp;
    use crate::kernels::matmul::reference::matmul_row;
    use crate::test_support::{all_cpus, any_format, assert_bits, best_cpu, exact_cpus, Random};
    use crate::Cpu;

    fn reference(
        x: &Tensor,
        routing: &Routing,
        [gate, up, down]: [&PackedMatrix; 3],
        out: &Tensor,
        arithmetic: Arithmetic,
    ) -> Vec<f32> {
        let mut result = out.values().to_vec();
        for (row, out) in result.chunks_exact_mut(x.cols()).enumerate() {
            for rank in 0..routing.top_k {
                let pair = row * routing.top_k + rank;
                let expert = routing.experts[pair] as usize;
                let x: Vec<f32> = x.row(row).iter().map(|x| x * routing.weights[pair]).collect();
                let mut hidden = matmul_row(&x, &Panels::of(gate, expert), arithmetic);
                let up = matmul_row(&x, &Panels::of(up, expert), arithmetic);
                for (gate, up) in hidden.iter_mut().zip(up) {
                    *gate = *gate / (1.0 + exp(-*gate)) * up;
                }
                let y = matmul_row(&hidden, &Panels::of(down, expert), arithmetic);
                out.iter_mut().zip(y).for_each(|(out, y)| *out += y);
            }
        }
        result
    }

    fn run(
        cpu: &Cpu,
        x: &Tensor,
        routing: &Routing,
        [gate, up, down]: [&PackedMatrix; 3],
        out: &Tensor,
    ) -> Vec<f32> {
        let mut out = out.clone();
        cpu.experts(x, routing, ExpertWeights { gate, up, down }, &mut out).unwrap();
        out.values().to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_set_and_thread_count_gives_the_reference(
            formats in (any_format(), any_format(), any_format()),
            rows in 1usize..50,
            num_experts in 1usize..6,
            extra in 0usize..3,
            hidden in prop::sample::select(vec![8, 33, 64, 100]),
            intermediate in prop::sample::select(vec![7, 16, 48, 130]),
            seed in any::<u64>(),
        ) {
            let random = &mut Random(seed);
            let top_k = (1 + extra).min(num_experts);
            let mut matrix = |format, rows, cols| random.matrix(format, num_experts, rows, cols);
            let gate = matrix(formats.0, intermediate, hidden);
            let up = matrix(formats.1, intermediate, hidden);
            let down = matrix(formats.2, hidden, intermediate);
            let weights = [&gate, &up, &down];
            let x = random.tensor(rows, hidden);
            let before = random.tensor(rows, hidden);
            let logits = random.tensor(rows, num_experts);
            let routing = best_cpu().route(&logits, top_k).unwrap();
            for cpus in [all_cpus(), exact_cpus()] {
                let expected = reference(&x, &routing, weights, &before, cpus[0].arithmetic());
                for cpu in cpus {
                    let got = run(cpu, &x, &routing, weights, &before);
                    assert_bits(&cpu.description(), &expected, &got);
                }
            }
        }
    }

    #[test]
    fn a_row_alone_gives_the_same_bits() {
        let random = &mut Random(7);
        let format = WeightFormat::Int4 { group: 32 };
        let gate = random.matrix(format, 4, 80, 96);
        let up = random.matrix(format, 4, 80, 96);
        let down = random.matrix(format, 4, 96, 80);
        let (x, before) = (random.tensor(30, 96), random.tensor(30, 96));
        let logits = random.tensor(30, 4);
        let cpu = best_cpu();
        let together = run(cpu, &x, &cpu.route(&logits, 2).unwrap(), [&gate, &up, &down], &before);
        for row in 0..30 {
            let only = |x: &Tensor| Tensor::from_values(x.row(row), x.cols()).unwrap();
            let routing = cpu.route(&only(&logits), 2).unwrap();
            let alone = run(cpu, &only(&x), &routing, [&gate, &up, &down], &only(&before));
            assert_bits("a row alone", &together[row * 96..][..96], &alone);
        }
    }
}
