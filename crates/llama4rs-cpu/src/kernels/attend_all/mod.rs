//! `out = softmax(scale · q kᵀ) v` per head, where all rows of a tile see each other.
//!
//! With two definitions: [`floats`] has single-precision products, [`integers`] rounds
//! `q`, `k`, `v` and the probabilities to 16-bit integers, for towers whose matrices round
//! activations to 8 bits or to bf16 anyway.
//!
//! In both a lane is a key in the first product and a column in the second, so no
//! product needs a sum across lanes. A task is one head of one tile (or a part of
//! its rows, where there are more threads than heads); it lays the keys out as
//! panels of 16, input by input, and goes through its rows in blocks, which take
//! a few panels (then a few rows of values) at a time out of the nearest cache.

mod floats;
mod integers;
#[cfg(test)]
mod reference;

use std::ops::Range;

use crate::parallel::{Shared, Spare, Threads};
use crate::simd::{Dispatch, LANES};
use crate::Tensor;

/// Queries that are multiplied at once.
const GROUP: usize = 6;
/// Queries of a block.
const BLOCK: usize = 4 * GROUP;
/// Tokens whose values stay in the nearest cache for a block.
const CHUNK: usize = 128;
/// Tasks per thread, so that none waits long for the last one.
const TASKS_PER_THREAD: usize = 4;

/// What the products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// Single precision.
    Floats,
    /// 16-bit integers.
    Integers,
}

/// Working memory of a task.
#[derive(Default)]
pub struct Scratch {
    floats: floats::Scratch,
    integers: integers::Scratch,
}

/// Attention within every `tile_rows` rows. The shapes fit: `q`, `k`, `v` and
/// `out` are alike, in whole tiles of rows and whole heads of columns.
pub fn attend_all(
    (dispatch, products): (Dispatch, Products),
    threads: &Threads,
    scratch: &Spare<Scratch>,
    [q, k, v]: [&Tensor; 3],
    tile_rows: usize,
    head_dim: usize,
    scale: f32,
    out: &mut Tensor,
) {
    let (tiles, heads) = (q.rows() / tile_rows, q.cols() / head_dim);
    if tiles * heads == 0 {
        return;
    }
    let parts = match threads.count() {
        1 => 1,
        count => (count * TASKS_PER_THREAD).div_ceil(tiles * heads),
    };
    let part_rows = tile_rows.div_ceil(parts).next_multiple_of(BLOCK);
    let parts = tile_rows.div_ceil(part_rows);
    let out = Shared::new(out.values_mut());
    let [q, k, v] = [q, k, v].map(Tensor::values);
    threads.for_each(tiles * heads * parts, |task| {
        let (pair, part) = (task / parts, task % parts);
        let sizes = Sizes {
            keys: tile_rows,
            head_dim,
            cols: heads * head_dim,
            origin: (pair / heads * tile_rows * heads + pair % heads) * head_dim,
        };
        let rows = part * part_rows..tile_rows.min((part + 1) * part_rows);
        let task = Task { q, k, v, sizes, rows, scale, out };
        scratch.with(|scratch| match products {
            Products::Floats => dispatch.run(floats::Attend { task, scratch: &mut scratch.floats }),
            Products::Integers => {
                dispatch.run_integers(integers::Attend { task, scratch: &mut scratch.integers })
            }
        });
    });
}

/// Some rows of one head of one tile.
struct Task<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    sizes: Sizes,
    /// Rows of the tile that this task computes.
    rows: Range<usize>,
    scale: f32,
    /// No other task has these rows of this head.
    out: Shared<'a, f32>,
}

/// What the steps of a task share.
#[derive(Clone, Copy)]
struct Sizes {
    /// Rows of a tile.
    keys: usize,
    /// Columns of a head.
    head_dim: usize,
    /// Columns of all heads.
    cols: usize,
    /// Where the head's first row of the tile starts.
    origin: usize,
}

impl Sizes {
    /// Where a row of the tile has this head.
    fn at(&self, row: usize) -> Range<usize> {
        let start = self.origin + row * self.cols;
        start..start + self.head_dim
    }

    /// The keys and what is missing of the last panel.
    fn padded_keys(&self) -> usize {
        self.keys.next_multiple_of(LANES)
    }

    /// The columns and what is missing of the last vector.
    fn width(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }
}
