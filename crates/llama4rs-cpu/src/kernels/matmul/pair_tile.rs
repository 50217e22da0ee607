//! The brick of products in pairs of bf16 numbers: `R` rows of factors times `P` panels.

use super::bricks::{bricks, Brick, Product};
use super::panels::{FAR, NEAR};
use crate::simd::pairs::SUM_SCALE;
use crate::simd::{Kernel, Simd, LANES};

/// `out[panel][row][lane] = x[row] · weights[panel, lane]` for `x` as factors
/// (see [`super::packed_rows`]). Call it inside of a kernel.
#[inline(always)]
pub fn multiply_pairs<S: Simd>(simd: S, mut product: Product<'_>) {
    // With few rows several panels hide the latency of the product, as far as
    // the registers hold their sums.
    bricks!(product, |R, P, brick| run::<S, R, P>(simd, brick), {
        1 x 4 if true;
        2 | 3 | 4 x 4 if S::MANY_REGISTERS;
        2 x 2 if true;
        3 | 4 | 5 | 6 x 2 if S::MANY_REGISTERS;
        1 | 2 | 3 | 4 x 1 if true;
        5 | 6 x 1 if S::TILE_ROWS >= 6;
        7 | 8 | 9 | 10 | 11 | 12 x 1 if S::TILE_ROWS >= 12;
    });
}

fn run<S: Simd, const R: usize, const P: usize>(simd: S, brick: Brick<'_>) {
    let panels = brick.panels();
    let Brick { matrix, apart, x, out, .. } = brick;
    let lines = matrix.cols.div_ceil(2);
    assert!(x.len() >= R * lines * S::PAIR_WORDS, "tile inputs");
    simd.run(PairTile::<R, P> { panels, lines, x, out, apart })
}

/// See the comment of [`super`] for the order of operations.
struct PairTile<'a, const R: usize, const P: usize> {
    panels: [&'a [u8]; P],
    lines: usize,
    x: &'a [u32],
    out: &'a mut [f32],
    apart: usize,
}

impl<const R: usize, const P: usize> Kernel for PairTile<'_, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { panels, lines, x, out, apart } = self;
        let mut sums = [[simd.splat(0.0); R]; P];
        let mut x = x.as_ptr();
        for at in (0..lines * 64).step_by(64) {
            // SAFETY: a panel holds 64 bytes for each of the `lines`.
            let mut line = [unsafe { simd.line(panels[0].as_ptr().add(at)) }; P];
            for p in 0..P {
                simd.prefetch_far(panels[p].as_ptr().wrapping_add(at + FAR / P));
                simd.prefetch(panels[p].as_ptr().wrapping_add(at + NEAR));
                // SAFETY: as above.
                line[p] = simd.normal_pairs(unsafe { simd.line(panels[p].as_ptr().add(at)) });
            }
            for r in 0..R {
                for p in 0..P {
                    // SAFETY: `x` has a pair of factors for every line and row.
                    sums[p][r] = unsafe { simd.dot_pairs(sums[p][r], line[p], x.add(r), R) };
                }
            }
            x = x.wrapping_add(S::PAIR_WORDS * R);
        }
        for p in 0..P {
            for r in 0..R {
                let sum = simd.mul(sums[p][r], simd.splat(SUM_SCALE));
                let out = &mut out[(p * apart * R + r) * LANES..][..LANES];
                // SAFETY: `out` has 16 floats.
                unsafe { simd.store(sum, out.as_mut_ptr()) };
            }
        }
    }
}
