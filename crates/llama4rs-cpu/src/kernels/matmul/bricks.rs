//! A tile's product with some panels, brick by brick.

use std::ops::Range;

use super::panels::Panels;
use crate::simd::LANES;

/// `out[panel][row][lane] = x[row] · matrix[panel, lane]` for some panels and the rows of a tile.
pub struct Product<'a> {
    pub matrix: &'a Panels<'a>,
    pub panels: Range<usize>,
    /// The rows in the form that the weights need ([`super::packed_rows`]).
    pub x: &'a [u32],
    pub rows: usize,
    pub out: &'a mut [f32],
}

/// The panels of a product that are computed side by side.
pub struct Brick<'a> {
    pub matrix: &'a Panels<'a>,
    /// The first of them.
    first: usize,
    /// How far each is from the one before.
    pub apart: usize,
    pub x: &'a [u32],
    /// Begins with the outputs of the first.
    pub out: &'a mut [f32],
}

impl<'a> Product<'a> {
    /// The brick of panels `start`, `start + apart`, ...
    #[inline(always)]
    pub fn brick(&mut self, start: usize, apart: usize) -> Brick<'_> {
        let Self { matrix, x, .. } = *self;
        let out = &mut self.out[start * self.rows * LANES..];
        Brick { matrix, first: self.panels.start + start, apart, x, out }
    }

    /// Goes on behind the first `panels`, which are done.
    #[inline(always)]
    pub fn advance(&mut self, panels: usize) {
        self.panels.start += panels;
        self.out = &mut std::mem::take(&mut self.out)[panels * self.rows * LANES..];
    }
}

impl<'a> Brick<'a> {
    /// The bytes of its panels.
    #[inline(always)]
    pub fn panels<const P: usize>(&self) -> [&'a [u8]; P] {
        std::array::from_fn(|p| self.matrix.panel(self.first + p * self.apart))
    }
}

/// Computes a [`Product`] by calls that compute a [`Brick`] of `$r` rows and `$p` panels; the first
/// line that fits the rows and the panels that are left says how many panels a brick has.
macro_rules! bricks {
    ($product:expr, |$r:ident, $p:ident, $brick:ident| $call:expr, {
        $($($n:literal)|+ x $panels:literal if $fits:expr;)+
    }) => {
        while !$product.panels.is_empty() {
            let left = $product.panels.len();
            match $product.rows {
                $($(
                    $n if left >= $panels && $fits => {
                        const $r: usize = $n;
                        const $p: usize = $panels;
                        let apart = left / $p;
                        for start in 0..apart {
                            let $brick = $product.brick(start, apart);
                            $call;
                        }
                        $product.advance(apart * $p);
                    }
                )+)+
                rows => unreachable!("no tile of {rows} rows"),
            }
        }
    };
}

pub(super) use bricks;
