//! What the norms share: rows over threads, and sums over a row.

use crate::parallel::{Shared, Threads};
use crate::simd::{Simd, LANES};

/// Values that one thread does by itself.
pub const GRAIN: usize = 32 << 10;

/// Calls `work(x, out)` for some rows of `cols` values at a time, all of them together.
pub fn for_rows(
    threads: &Threads,
    x: &[f32],
    cols: usize,
    out: &mut [f32],
    work: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    let out = Shared::new(out);
    threads.for_ranges(x.len() / cols, GRAIN / cols + 1, |rows| {
        let range = rows.start * cols..rows.end * cols;
        // SAFETY: ranges do not overlap.
        let out = unsafe { out.part(range.clone()) };
        work(&x[range], out);
    });
}

/// `add(sum, lanes)` over the row, 16 values at a time, then the tree; what is
/// missing of the last 16 is `padding`.
#[inline(always)]
pub fn sum_of<S: Simd>(simd: S, x: &[f32], padding: f32, add: impl Fn(S::F, S::F) -> S::F) -> f32 {
    let mut sum = simd.splat(0.0);
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        // SAFETY: 16 floats.
        sum = add(sum, unsafe { simd.load(chunk.as_ptr()) });
    }
    let mut tail = [padding; LANES];
    tail[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    // SAFETY: 16 floats.
    sum = add(sum, unsafe { simd.load(tail.as_ptr()) });
    simd.sum(sum)
}
