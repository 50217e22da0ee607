//! Activations in the order in which a tile reads them.
//!
//! A tile of `R` rows holds, for every input one after another, what its rows
//! need there, together: as floats
//!
//! ```text
//! [input][R]                                     zeros up to a whole group of any format
//! ```
//!
//! as factors, for products with bf16 weights ([`crate::simd::pairs`]),
//!
//! ```text
//! [pair of inputs][Simd::PAIR_WORDS][R]          zero beside an odd last input
//! ```
//!
//! and as codes, for products with integer weights whose code 0 is stored as `zero`,
//!
//! ```text
//! [group] { start [R]   words [group / 4][R]   scale [R] }     zeros up to a whole group
//! ```
//!
//! where a word is four codes and `start = -zero * (sum of the codes)` is what
//! the dot product with the stored bytes begins with.

use std::ops::Range;

use llama4rs_tensor::format::GROUP_SIZES;
use llama4rs_tensor::{Result, WeightFormat};

use super::quantise::{quantise, MAX_GROUP};
use super::tiles::Tile;
use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, Kernel, Simd, LANES};
use crate::{tensor, Arithmetic};

/// Values that one thread does by itself.
const GRAIN: usize = 16 << 10;

/// What activations are for a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Single precision.
    Floats,
    /// Pairs of factors, rounded to bf16.
    Pairs,
    /// 8-bit integers in groups.
    Codes {
        /// Inputs that share a scale.
        group: usize,
        /// How the weights store the code 0.
        zero: i32,
    },
}

impl Form {
    /// What weights of `format` are multiplied by.
    pub fn of(format: WeightFormat, arithmetic: Arithmetic) -> Self {
        match (arithmetic, format) {
            (Arithmetic::Fast, WeightFormat::Bf16) => Form::Pairs,
            (Arithmetic::Fast, WeightFormat::Int8 { group }) => Form::Codes { group, zero: 128 },
            (Arithmetic::Fast, WeightFormat::Int4 { group }) => Form::Codes { group, zero: 8 },
            _ => Form::Floats,
        }
    }

    /// Words of a row, at most.
    fn row_words(self, cols: usize) -> usize {
        match self {
            Form::Floats => cols.next_multiple_of(GROUP_SIZES[GROUP_SIZES.len() - 1]),
            Form::Pairs => cols.next_multiple_of(2),
            Form::Codes { group, .. } => cols.div_ceil(group) * group_words(group),
        }
    }
}

/// Words of a row and group.
pub const fn group_words(group: usize) -> usize {
    group / 4 + 2
}

/// Rows of activations in one form.
pub struct PackedRows {
    form: Form,
    cols: usize,
    words: Vec<u32>,
}

impl Default for PackedRows {
    fn default() -> Self {
        Self { form: Form::Floats, cols: 0, words: Vec::new() }
    }
}

impl PackedRows {
    /// Makes room for rows of `cols` inputs; the words are then anything.
    pub fn start(&mut self, form: Form, rows: usize, cols: usize) -> Result<()> {
        (self.form, self.cols) = (form, cols);
        tensor::resize(&mut self.words, rows * form.row_words(cols), "packed activations")
    }

    /// What the rows are.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The words of a tile.
    #[inline(always)]
    pub fn tile(&self, tile: Tile) -> &[u32] {
        let words = self.form.row_words(self.cols);
        &self.words[tile.first * words..][..tile.rows * words]
    }

    /// All rows, to be written by several tasks.
    pub fn shared(&mut self) -> SharedRows<'_> {
        SharedRows { form: self.form, cols: self.cols, words: Shared::new(&mut self.words) }
    }

    /// Fills the rows of `tiles`: row `r` becomes `scale(r) * row(r)`.
    pub fn fill<'x>(
        &mut self,
        dispatch: Dispatch,
        threads: &Threads,
        tiles: &[Tile],
        row: impl Fn(usize) -> &'x [f32] + Sync,
        scale: impl Fn(usize) -> f32 + Sync,
    ) {
        let step = match self.form {
            // What is read and written meanwhile stays in the first cache.
            Form::Floats | Form::Pairs => 256,
            Form::Codes { group, .. } => group,
        };
        let steps = self.cols.div_ceil(step);
        let most = tiles.iter().map(|tile| tile.rows).max().unwrap_or(1);
        let rows = self.shared();
        threads.for_ranges(tiles.len() * steps, GRAIN / (step * most) + 1, |range| {
            let mut at = range.start;
            while at < range.end {
                let (tile, first) = (tiles[at / steps], at % steps);
                let last = steps.min(first + range.end - at);
                let inputs = first * step..rows.cols.min(last * step);
                let (row, scale) = (|r| row(tile.first + r), |r| scale(tile.first + r));
                dispatch.run(Fill { rows, tile, inputs, step, row, scale });
                at += last - first;
            }
        });
    }
}

/// [`PackedRows`] that are being written.
#[derive(Clone, Copy)]
pub struct SharedRows<'a> {
    form: Form,
    cols: usize,
    words: Shared<'a, u32>,
}

impl SharedRows<'_> {
    /// What the rows are.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Writes inputs of row `r` of a tile, from `from` on: `factor * x`. As codes
    /// they are one group, or what is left of the row; as pairs, `from` is even.
    /// Call it inside of a kernel.
    ///
    /// # Safety
    /// Nothing else reaches these inputs of the row meanwhile.
    #[inline(always)]
    pub unsafe fn write<S: Simd>(
        &self,
        simd: S,
        tile: Tile,
        r: usize,
        from: usize,
        x: &[f32],
        factor: f32,
    ) {
        let row_words = self.form.row_words(self.cols);
        assert!(from + x.len() <= self.cols && r < tile.rows, "inputs of a tile");
        let end = (tile.first + tile.rows) * row_words;
        assert!(end <= self.words.len(), "a tile of these rows");
        let row = tile.first * row_words + r;
        // SAFETY: all `at` are below `row_words`, and these words are nobody else's.
        let put = |at: usize, word: u32| unsafe { self.words.set(row + at * tile.rows, word) };
        match self.form {
            Form::Floats => {
                for (i, x) in x.iter().enumerate() {
                    put(from + i, (factor * x).to_bits());
                }
                if from + x.len() == self.cols {
                    (self.cols..row_words).for_each(|at| put(at, 0));
                }
            }
            Form::Pairs => {
                for (i, x) in x.chunks(LANES).enumerate() {
                    let mut sixteen = [0.0; LANES];
                    sixteen[..x.len()].copy_from_slice(x);
                    // SAFETY: 16 floats.
                    let x16 = unsafe { simd.load(sixteen.as_ptr()) };
                    let words = simd.factors(simd.mul(simd.splat(factor), x16));
                    let first = (from + i * LANES) / 2;
                    for (pair, word) in words[..x.len().div_ceil(2)].iter().enumerate() {
                        let at = (first + pair) * S::PAIR_WORDS;
                        if S::PAIR_WORDS == 1 {
                            put(at, *word);
                        } else {
                            put(at, word << 16);
                            put(at + 1, word & 0xFFFF_0000);
                        }
                    }
                }
            }
            Form::Codes { group, zero } => {
                let codes = if x.len() == group {
                    quantise(simd, x, factor)
                } else {
                    let mut padded = [0.0; MAX_GROUP];
                    padded[..x.len()].copy_from_slice(x);
                    quantise(simd, &padded[..group], factor)
                };
                let at = from / group * group_words(group);
                put(at, (-zero * codes.sum) as u32);
                for (i, &word) in codes.words[..group / 4].iter().enumerate() {
                    put(at + 1 + i, word);
                }
                put(at + 1 + group / 4, codes.scale.to_bits());
            }
        }
    }
}

/// Some inputs of a tile of [`PackedRows::fill`], `step` of all rows after another: these
/// share cache lines.
struct Fill<'a, X, C> {
    rows: SharedRows<'a>,
    tile: Tile,
    inputs: Range<usize>,
    step: usize,
    row: X,
    scale: C,
}

impl<'x, X: Fn(usize) -> &'x [f32], C: Fn(usize) -> f32> Kernel for Fill<'_, X, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, tile, inputs, step, row, scale } = self;
        for from in inputs.clone().step_by(step) {
            let end = inputs.end.min(from + step);
            for r in 0..tile.rows {
                // SAFETY: every row of a tile is filled once.
                unsafe { rows.write(simd, tile, r, from, &row(r)[from..end], scale(r)) };
            }
        }
    }
}
