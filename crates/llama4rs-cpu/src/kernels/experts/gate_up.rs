//! The first half of an expert: `silu(gate x) * (up x)`.

use std::ops::Range;

use crate::kernels::matmul::{
    multiply, panels_at_once, Form, OutputBuffer, PackedRows, Panels, SharedRows, Tile, MAX_GROUP,
};
use crate::kernels::swiglu::swiglu_lanes;
use crate::simd::{IntegerKernel, Integers, Simd, LANES};

/// Panels of `gate` and `up` whose outputs become inputs of `down` together: those
/// of a group, where they become codes.
pub fn panels_of_a_group(form: Form) -> usize {
    match form {
        Form::Floats | Form::Pairs => 4,
        Form::Codes { group, .. } => group / LANES,
    }
}

/// `silu(gate x) * (up x)` for some panels of one expert.
pub struct GateUp<'a> {
    pub gate: Panels<'a>,
    pub up: Panels<'a>,
    pub gate_rows: &'a PackedRows,
    pub up_rows: &'a PackedRows,
    pub panels: Range<usize>,
    pub tiles: &'a [Tile],
    pub hidden: SharedRows<'a>,
}

impl IntegerKernel for GateUp<'_> {
    #[inline(always)]
    fn run<I: Integers>(self, integers: I) {
        let Self { gate, up, gate_rows, up_rows, panels, tiles, hidden } = self;
        let (mut gates, mut ups) = (OutputBuffer::new(), OutputBuffer::new());
        let simd = integers.simd();
        let unit = panels_of_a_group(hidden.form());
        let mut row = [0.0; MAX_GROUP];
        for &tile in tiles {
            let most = panels_at_once(tile.rows) / unit * unit;
            for start in panels.clone().step_by(most) {
                let step = start..panels.end.min(start + most);
                let size = tile.rows * LANES;
                let gates = gates.zeros(step.len() * size);
                let ups = ups.zeros(step.len() * size);
                multiply(integers, &gate, step.clone(), gate_rows, tile, gates);
                multiply(integers, &up, step, up_rows, tile, ups);
                activate(simd, gates, ups);
                for (i, gates) in gates.chunks(unit * size).enumerate() {
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
