//! `out = x / sqrt(mean(x^2) + eps) * weight`, per row or per head.
//!
//! The order: squares are added with `fma`, input `i` in lane `i % 16`; the
//! lanes are added as a tree (8 apart, 4, 2, 1); `mean = sum / len`;
//! `factor = 1 / sqrt(mean + eps)`; `out = (x * factor) * weight`.

use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, Kernel, Simd, LANES};

/// Values that one thread does by itself.
const GRAIN: usize = 32 << 10;

/// Normalises every row of `cols` values of `x` into `out` and multiplies by `weight`.
pub fn rms_norm(
    dispatch: Dispatch,
    threads: &Threads,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let cols = weight.len();
    let out = Shared::new(out);
    threads.for_ranges(x.len() / cols, GRAIN / cols + 1, |rows| {
        let range = rows.start * cols..rows.end * cols;
        // SAFETY: ranges do not overlap.
        let out = unsafe { out.part(range.clone()) };
        dispatch.run(RmsNorm { x: &x[range], weight, eps, out });
    });
}

/// Normalises every `head_dim` values of `x` in place.
pub fn head_norm(dispatch: Dispatch, threads: &Threads, x: &mut [f32], head_dim: usize, eps: f32) {
    let heads = x.len() / head_dim;
    let x = Shared::new(x);
    threads.for_ranges(heads, GRAIN / head_dim + 1, |heads| {
        // SAFETY: ranges do not overlap.
        let x = unsafe { x.part(heads.start * head_dim..heads.end * head_dim) };
        dispatch.run(HeadNorm { x, head_dim, eps });
    });
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
fn factor<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let mut sum = simd.splat(0.0);
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        // SAFETY: 16 floats.
        let lanes = unsafe { simd.load(chunk.as_ptr()) };
        sum = simd.fma(lanes, lanes, sum);
    }
    let mut tail = [0.0; LANES];
    tail[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    // SAFETY: 16 floats.
    let lanes = unsafe { simd.load(tail.as_ptr()) };
    sum = simd.fma(lanes, lanes, sum);
    1.0 / (simd.sum(sum) / x.len() as f32 + eps).sqrt()
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cols = self.weight.len();
        for (x, out) in self.x.chunks_exact(cols).zip(self.out.chunks_exact_mut(cols)) {
            let factor = factor(simd, x, self.eps);
            for ((out, &x), &weight) in out.iter_mut().zip(x).zip(self.weight) {
                *out = (x * factor) * weight;
            }
        }
    }
}

struct HeadNorm<'a> {
    x: &'a mut [f32],
    head_dim: usize,
    eps: f32,
}

impl Kernel for HeadNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let factor = factor(simd, head, self.eps);
            head.iter_mut().for_each(|x| *x *= factor);
        }
    }
}
