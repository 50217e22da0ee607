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
    multiply, multiply_tiles, panels_at_once, PackedRows, Panels, SharedRows, MAX_OUTPUTS,
};
use super::route::Routing;
use super::swiglu::swiglu_lanes;
use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, Kernel, Simd, LANES};
use crate::{tensor, Tensor};

/// Working memory of [`experts`].
#[derive(Default)]
pub struct ExpertScratch {
    /// Scaled inputs.
    inputs: PackedRows,
    /// `silu(gate) * up`.
    hidden: PackedRows,
    /// Outputs of `down`, sorted by expert.
    outputs: Vec<f32>,
    active: Vec<ActiveExpert>,
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
    /// Its sorted places, then its tiles.
    tiles: Range<usize>,
}

/// Adds the routed experts of every row of `x` to `out`; the shapes fit.
pub fn experts(
    dispatch: Dispatch,
    threads: &Threads,
    scratch: &mut ExpertScratch,
    x: &Tensor,
    routing: &Routing,
    weights: ExpertWeights<'_, PackedMatrix>,
    out: &mut Tensor,
) -> Result<()> {
    let ExpertWeights { gate, up, down } = weights;
    scratch.sort(routing);
    scratch.plan(routing, x.cols(), gate.rows(), dispatch.tile_rows())?;
    tensor::resize(&mut scratch.outputs, routing.experts.len() * down.rows(), "expert outputs")?;
    let ExpertScratch { inputs, hidden, outputs, active, pairs, places, .. } = scratch;

    let pair = |place: usize| pairs[place] as usize;
    inputs.fill(threads, |p| x.row(pair(p) / routing.top_k), |p| routing.weights[pair(p)]);

    let wanted = (threads.count() * 4).div_ceil(active.len().max(1));
    let wanted = if threads.count() == 1 { 1 } else { wanted };
    let shared = hidden.shared();
    shared.zero_padding();
    let panels_per_task = Panels::of(gate, 0).per_task(wanted).div_ceil(2);
    let parts = Panels::of(gate, 0).count().div_ceil(panels_per_task);
    threads.for_each(active.len() * parts, |task| {
        let ActiveExpert { expert, tiles } = &active[task / parts];
        let gate = Panels::of(gate, *expert);
        let start = task % parts * panels_per_task;
        dispatch.run(GateUp {
            gate,
            up: Panels::of(up, *expert),
            panels: start..gate.count().min(start + panels_per_task),
            inputs,
            tiles: tiles.clone(),
            hidden: &shared,
        });
    });

    let panels_per_task = Panels::of(down, 0).per_task(wanted);
    let parts = Panels::of(down, 0).count().div_ceil(panels_per_task);
    let shared = Shared::new(outputs.as_mut_slice());
    threads.for_each(active.len() * parts, |task| {
        let ActiveExpert { expert, tiles } = &active[task / parts];
        let down = Panels::of(down, *expert);
        let start = task % parts * panels_per_task;
        dispatch.run(Down {
            down,
            panels: start..down.count().min(start + panels_per_task),
            hidden,
            tiles: tiles.clone(),
            outputs: shared,
        });
    });

    let cols = down.rows();
    let shared = Shared::new(out.values_mut());
    threads.for_ranges(routing.rows, (64 << 10) / cols + 1, |rows| {
        for row in rows {
            // SAFETY: every row is one task's.
            let out = unsafe { shared.part(row * cols..(row + 1) * cols) };
            for &place in &places[row * routing.top_k..(row + 1) * routing.top_k] {
                let y = &outputs[place as usize * cols..][..cols];
                out.iter_mut().zip(y).for_each(|(out, y)| *out += y);
            }
        }
    });
    Ok(())
}

impl ExpertScratch {
    /// Counting sort of the routed pairs by expert; rows keep their order.
    fn sort(&mut self, routing: &Routing) {
        self.starts.clear();
        self.starts.resize(routing.num_experts + 1, 0);
        for &expert in &routing.experts {
            self.starts[expert as usize + 1] += 1;
        }
        self.active.clear();
        for expert in 0..routing.num_experts {
            self.starts[expert + 1] += self.starts[expert];
            let rows = self.starts[expert]..self.starts[expert + 1];
            if !rows.is_empty() {
                self.active.push(ActiveExpert { expert, tiles: rows });
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

    /// Turns the rows of each active expert into tiles.
    fn plan(
        &mut self,
        routing: &Routing,
        cols: usize,
        intermediate: usize,
        tile_rows: usize,
    ) -> Result<()> {
        debug_assert_eq!(self.pairs.len(), routing.experts.len());
        self.inputs.start(cols);
        self.hidden.start(intermediate);
        for active in &mut self.active {
            let rows = active.tiles.len();
            active.tiles = self.inputs.plan(rows, tile_rows);
            self.hidden.plan(rows, tile_rows);
        }
        self.inputs.allocate()?;
        self.hidden.allocate()
    }
}

/// `silu(gate x) * (up x)` for some panels of one expert.
struct GateUp<'a> {
    gate: Panels<'a>,
    up: Panels<'a>,
    panels: Range<usize>,
    inputs: &'a PackedRows,
    tiles: Range<usize>,
    hidden: &'a SharedRows<'a>,
}

impl Kernel for GateUp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { gate, up, panels, inputs, tiles, hidden } = self;
        let (mut gates, mut ups) = ([0.0; MAX_OUTPUTS], [0.0; MAX_OUTPUTS]);
        for tile in tiles {
            let (tile, target) = (&inputs.tiles()[tile], &hidden.tiles[tile]);
            let step = panels_at_once::<S>(tile.rows);
            for start in panels.clone().step_by(step) {
                let step = start..panels.end.min(start + step);
                let x = inputs.values(tile);
                multiply(simd, &gate, step.clone(), x, tile.rows, &mut gates);
                multiply(simd, &up, step.clone(), x, tile.rows, &mut ups);
                let size = tile.rows * LANES;
                for (i, panel) in step.enumerate() {
                    let values = &mut gates[i * size..][..size];
                    activate(simd, values, &ups[i * size..][..size]);
                    let outputs = gate.outputs(panel);
                    // SAFETY: no other task has this panel and this tile.
                    let target = unsafe { hidden.inputs(target, outputs) };
                    for (lane, column) in target.chunks_exact_mut(tile.rows).enumerate() {
                        for r in 0..tile.rows {
                            column[r] = values[r * LANES + lane];
                        }
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

/// `down hidden` for some panels of one expert.
struct Down<'a> {
    down: Panels<'a>,
    panels: Range<usize>,
    hidden: &'a PackedRows,
    tiles: Range<usize>,
    outputs: Shared<'a, f32>,
}

impl Kernel for Down<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { down, panels, hidden, tiles, outputs } = self;
        // SAFETY: no other task has one of these panels and one of these tiles.
        unsafe { multiply_tiles(simd, &down, panels, hidden, &hidden.tiles()[tiles], outputs) };
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::{Backend, WeightFormat};
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::exp::reference::exp;
    use crate::kernels::matmul::reference::matmul_row;
    use crate::test_support::{all_cpus, any_format, assert_bits, best_cpu, Random};
    use crate::Cpu;

    fn reference(
        x: &Tensor,
        routing: &Routing,
        [gate, up, down]: [&PackedMatrix; 3],
        out: &Tensor,
    ) -> Vec<f32> {
        let mut result = out.values().to_vec();
        for (row, out) in result.chunks_exact_mut(x.cols()).enumerate() {
            for rank in 0..routing.top_k {
                let pair = row * routing.top_k + rank;
                let expert = routing.experts[pair] as usize;
                let x: Vec<f32> = x.row(row).iter().map(|x| x * routing.weights[pair]).collect();
                let mut hidden = matmul_row(&x, &Panels::of(gate, expert));
                let up = matmul_row(&x, &Panels::of(up, expert));
                for (gate, up) in hidden.iter_mut().zip(up) {
                    *gate = *gate / (1.0 + exp(-*gate)) * up;
                }
                let y = matmul_row(&hidden, &Panels::of(down, expert));
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
            let expected = reference(&x, &routing, weights, &before);
            for cpu in all_cpus() {
                let got = run(cpu, &x, &routing, weights, &before);
                assert_bits(&cpu.description(), &expected, &got);
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
