//! Operations without an order: `x += y`, `x[t] *= scale[t]`, `out[i] = x[rows[i]]`.

use crate::parallel::{Shared, Threads};
use crate::Tensor;

/// Values that one thread does by itself.
const GRAIN: usize = 64 << 10;

/// `x += y`.
pub fn add(threads: &Threads, x: &mut [f32], y: &[f32]) {
    let len = x.len();
    let x = Shared::new(x);
    threads.for_ranges(len, GRAIN, |range| {
        // SAFETY: ranges do not overlap.
        let x = unsafe { x.part(range.clone()) };
        x.iter_mut().zip(&y[range]).for_each(|(x, y)| *x += y);
    });
}

/// Multiplies row `t` of `x` by `scales[t]`.
pub fn scale_rows(threads: &Threads, x: &mut Tensor, scales: &[f32]) {
    let cols = x.cols();
    let x = Shared::new(x.values_mut());
    threads.for_ranges(scales.len(), GRAIN / cols.max(1) + 1, |rows| {
        for row in rows {
            // SAFETY: every row is one task's.
            let x = unsafe { x.part(row * cols..(row + 1) * cols) };
            x.iter_mut().for_each(|x| *x *= scales[row]);
        }
    });
}

/// `out[i] = x[rows[i]]`; `out` has its shape.
pub fn select_rows(threads: &Threads, x: &Tensor, rows: &[u32], out: &mut Tensor) {
    let cols = x.cols();
    let out = Shared::new(out.values_mut());
    threads.for_ranges(rows.len(), GRAIN / cols.max(1) + 1, |range| {
        for i in range {
            // SAFETY: every row is one task's.
            let out = unsafe { out.part(i * cols..(i + 1) * cols) };
            out.copy_from_slice(x.row(rows[i] as usize));
        }
    });
}
