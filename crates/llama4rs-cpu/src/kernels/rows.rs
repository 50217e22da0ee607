//! Whole rows: `x[t] += bias`, `x[rows[i]] = with[i]`.

use crate::parallel::{Shared, Threads};
use crate::Tensor;

/// Values that one thread does by itself.
const GRAIN: usize = 64 << 10;

/// Adds `bias` to every row of `x`; it has as many values as a row.
pub fn add_bias(threads: &Threads, x: &mut Tensor, bias: &[f32]) {
    let (rows, cols) = (x.rows(), x.cols());
    let x = Shared::new(x.values_mut());
    threads.for_ranges(rows, GRAIN / cols.max(1) + 1, |rows| {
        for row in rows {
            // SAFETY: every row is one task's.
            let x = unsafe { x.part(row * cols..(row + 1) * cols) };
            x.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
    });
}

/// `x[rows[i]] = with[i]`; of equal rows the last one stays.
pub fn replace_rows(threads: &Threads, x: &mut Tensor, rows: &[u32], with: &Tensor) {
    let cols = x.cols();
    let x = Shared::new(x.values_mut());
    let replace = |i: usize| {
        let row = rows[i] as usize;
        // SAFETY: either the rows ascend, and then every row is one task's, or
        // there is only one task.
        let x = unsafe { x.part(row * cols..(row + 1) * cols) };
        x.copy_from_slice(with.row(i));
    };
    if rows.windows(2).all(|pair| pair[0] < pair[1]) {
        threads.for_ranges(rows.len(), GRAIN / cols.max(1) + 1, |range| range.for_each(replace));
    } else {
        (0..rows.len()).for_each(replace);
    }
}
