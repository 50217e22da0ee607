//! The brick of products in floats: `R` rows of activations times `P` panels.

use std::marker::PhantomData;

use super::bricks::{bricks, Brick, Product};
use super::codes::Codes;
use super::panels::{FAR, NEAR};
use crate::simd::{Kernel, Simd, LANES};

/// `out[panel][row][lane] = x[row] · weights[panel, lane]` for `x` as
/// `[input][rows]` floats. Call it inside of a kernel.
#[inline(always)]
pub fn multiply_floats<S: Simd, C: Codes>(simd: S, mut product: Product<'_>) {
    // With few rows several panels hide the latency of the multiply-add, as
    // far as the registers hold their sums.
    bricks!(product, |R, P, brick| run::<S, C, R, P>(simd, brick), {
        1 x 4 if true;
        2 x 4 if S::MANY_REGISTERS;
        2 x 2 if true;
        3 | 4 x 2 if S::MANY_REGISTERS;
        1 | 2 | 3 | 4 x 1 if true;
        5 | 6 x 1 if S::TILE_ROWS >= 6;
        7 | 8 | 9 | 10 | 11 | 12 x 1 if S::TILE_ROWS >= 12;
    });
}

fn run<S: Simd, C: Codes, const R: usize, const P: usize>(simd: S, brick: Brick<'_>) {
    let panels = brick.panels();
    let Brick { matrix, apart, x, out, .. } = brick;
    let padded_cols = matrix.format.padded_cols(matrix.cols);
    let group = matrix.format.group().unwrap_or(padded_cols);
    assert!(x.len() >= R * padded_cols, "tile inputs");
    assert!(!C::SCALED || group.is_multiple_of(C::LINE_COLS), "whole lines per group");
    let codes = PhantomData::<C>;
    simd.run(TileProduct::<C, R, P> { panels, padded_cols, group, x, out, apart, codes })
}

/// See the comment of [`super`] for the order of operations.
struct TileProduct<'a, C: Codes, const R: usize, const P: usize> {
    panels: [&'a [u8]; P],
    padded_cols: usize,
    group: usize,
    x: &'a [u32],
    out: &'a mut [f32],
    apart: usize,
    codes: PhantomData<C>,
}

/// One input of every panel times one input of every row.
macro_rules! input {
    ($j:literal, $simd:ident, $lines:ident, $x:ident, $part:ident) => {
        if $j < C::LINE_COLS {
            let mut weights = [C::code::<S, $j>($simd, $lines[0]); P];
            for p in 1..P {
                weights[p] = C::code::<S, $j>($simd, $lines[p]);
            }
            for r in 0..R {
                // SAFETY: a line has `LINE_COLS` inputs, and `x` has `R` floats for each.
                let x = $simd.splat(f32::from_bits(unsafe { *$x.add($j * R + r) }));
                for p in 0..P {
                    $part[p][r] = $simd.fma(weights[p], x, $part[p][r]);
                }
            }
        }
    };
}

impl<C: Codes, const R: usize, const P: usize> Kernel for TileProduct<'_, C, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { panels, padded_cols, group, x, out, apart, codes: _ } = self;
        let code_bytes = padded_cols / C::LINE_COLS * 64;
        let zero = simd.splat(0.0);
        let mut total = [[zero; R]; P];
        let mut x = x.as_ptr();
        let mut line = 0;
        for g in 0..padded_cols / group {
            let mut part = [[zero; R]; P];
            for _ in 0..group / C::LINE_COLS {
                for panel in panels {
                    simd.prefetch_far(panel.as_ptr().wrapping_add(line + FAR / P));
                    simd.prefetch(panel.as_ptr().wrapping_add(line + NEAR));
                }
                // SAFETY: a panel holds `code_bytes` of lines, and `line` is below that.
                let mut lines = [unsafe { simd.line(panels[0].as_ptr().add(line)) }; P];
                for p in 1..P {
                    // SAFETY: as above.
                    lines[p] = unsafe { simd.line(panels[p].as_ptr().add(line)) };
                }
                input!(0, simd, lines, x, part);
                input!(1, simd, lines, x, part);
                input!(2, simd, lines, x, part);
                input!(3, simd, lines, x, part);
                input!(4, simd, lines, x, part);
                input!(5, simd, lines, x, part);
                input!(6, simd, lines, x, part);
                input!(7, simd, lines, x, part);
                line += 64;
                x = x.wrapping_add(C::LINE_COLS * R);
            }
            for p in 0..P {
                if C::SCALED {
                    // SAFETY: the scales, 32 bytes per group, follow the lines.
                    let scale = unsafe {
                        simd.load_bf16(panels[p].as_ptr().add(code_bytes + g * LANES * 2))
                    };
                    for r in 0..R {
                        total[p][r] = simd.fma(scale, part[p][r], total[p][r]);
                    }
                } else {
                    total[p] = part[p];
                }
            }
        }
        for p in 0..P {
            for r in 0..R {
                let out = &mut out[(p * apart * R + r) * LANES..][..LANES];
                // SAFETY: `out` has 16 floats.
                unsafe { simd.store(total[p][r], out.as_mut_ptr()) };
            }
        }
    }
}
