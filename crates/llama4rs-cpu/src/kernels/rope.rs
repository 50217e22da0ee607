//! Rotates the pairs `(a, b)` of every head by the angle of its row:
//! `a' = a cos - b sin`, `b' = b cos + a sin`.
//!
//! The order: `a' = fma(-b, sin, a * cos)`, `b' = fma(a, sin, b * cos)`.

use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, Kernel, Simd};

/// Values that one thread does by itself.
const GRAIN: usize = 32 << 10;

/// Rotates `x` `[rows, cols]` by `rotations` `[rows, head_dim]`, which hold `cos, sin` per pair.
pub fn rope(
    dispatch: Dispatch,
    threads: &Threads,
    x: &mut [f32],
    cols: usize,
    rotations: &[f32],
    head_dim: usize,
) {
    let rows = x.len() / cols;
    let x = Shared::new(x);
    threads.for_ranges(rows, GRAIN / cols + 1, |rows| {
        // SAFETY: ranges do not overlap.
        let x = unsafe { x.part(rows.start * cols..rows.end * cols) };
        let rotations = &rotations[rows.start * head_dim..rows.end * head_dim];
        dispatch.run(Rope { x, cols, rotations, head_dim });
    });
}

struct Rope<'a> {
    x: &'a mut [f32],
    cols: usize,
    rotations: &'a [f32],
    head_dim: usize,
}

impl Kernel for Rope<'_> {
    type Output = ();

    /// Plain Rust: the compiler makes vectors of it, and every operation is rounded as written.
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Self { x, cols, rotations, head_dim } = self;
        for (row, rotation) in x.chunks_exact_mut(cols).zip(rotations.chunks_exact(head_dim)) {
            for head in row.chunks_exact_mut(head_dim) {
                for (pair, angle) in head.chunks_exact_mut(2).zip(rotation.chunks_exact(2)) {
                    let (a, b) = (pair[0], pair[1]);
                    let (cos, sin) = (angle[0], angle[1]);
                    pair[0] = (-b).mul_add(sin, a * cos);
                    pair[1] = a.mul_add(sin, b * cos);
                }
            }
        }
    }
}
