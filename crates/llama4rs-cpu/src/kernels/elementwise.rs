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

#[cfg(test)]
mod tests {
    use llama4rs_tensor::Backend;

    use crate::test_support::{all_cpus, assert_bits, Random};

    #[test]
    fn every_thread_count_gives_the_formulas() {
        let random = &mut Random(10);
        for (rows, cols) in [(1, 1), (7, 31), (40, 5120)] {
            let (x, y) = (random.tensor(rows, cols), random.tensor(rows, cols));
            let scales = random.tensor(rows, 1);
            let chosen: Vec<u32> = (0..2 * rows).map(|_| random.below(rows) as u32).collect();
            let sum: Vec<f32> = x.values().iter().zip(y.values()).map(|(x, y)| x + y).collect();
            let scaled: Vec<f32> = (0..rows)
                .flat_map(|r| x.row(r).iter().map(move |x| (r, x)))
                .map(|(r, x)| x * scales.values()[r])
                .collect();
            let selected: Vec<f32> =
                chosen.iter().flat_map(|&r| x.row(r as usize).to_vec()).collect();
            for cpu in all_cpus() {
                let mut got = x.clone();
                cpu.add(&mut got, &y).unwrap();
                assert_bits("add", &sum, got.values());
                let mut got = x.clone();
                cpu.scale_rows(&mut got, &scales).unwrap();
                assert_bits("scale_rows", &scaled, got.values());
                let mut got = cpu.empty();
                cpu.select_rows(&x, &chosen, &mut got).unwrap();
                assert_bits("select_rows", &selected, got.values());
                assert_eq!((got.rows(), got.cols()), (2 * rows, cols));
            }
        }
    }
}
