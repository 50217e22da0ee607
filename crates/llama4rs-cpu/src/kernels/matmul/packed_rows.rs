//! Activations in the order in which a tile reads them.

use std::ops::Range;

use llama4rs_tensor::format::GROUP_SIZES;
use llama4rs_tensor::Result;

use crate::parallel::{Shared, Threads};
use crate::tensor;

/// Rows that tiles exist for.
const TILE_ROWS: [usize; 8] = [1, 2, 3, 4, 6, 8, 10, 12];

/// A block of rows whose product with a panel stays in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// First row, counted over all rows packed.
    pub first: usize,
    /// Rows with values.
    pub live: usize,
    /// Rows stored: `live` and zero rows, one of the sizes that tiles exist for.
    pub rows: usize,
    /// Where the tile's floats start.
    offset: usize,
}

/// Rows of activations, cut into tiles.
///
/// A tile of `R` rows holds `[input][R]`: what the rows need at one input lies
/// together. Inputs are filled up with zeros to a whole group of any format.
#[derive(Default)]
pub struct PackedRows {
    data: Vec<f32>,
    tiles: Vec<Tile>,
    cols: usize,
    depth: usize,
    len: usize,
    rows: usize,
}

impl PackedRows {
    /// Forgets all rows; the next ones have `cols` inputs.
    pub fn start(&mut self, cols: usize) {
        self.tiles.clear();
        self.cols = cols;
        self.depth = cols.next_multiple_of(GROUP_SIZES[GROUP_SIZES.len() - 1]);
        (self.len, self.rows) = (0, 0);
    }

    /// Plans tiles of at most `tile_rows` for `count` more rows; says which.
    pub fn plan(&mut self, count: usize, tile_rows: usize) -> Range<usize> {
        let start = self.tiles.len();
        let parts = count.div_ceil(tile_rows);
        for part in 0..parts {
            let live = (part + 1) * count / parts - part * count / parts;
            let rows = *TILE_ROWS.iter().find(|&&rows| rows >= live).expect("tile_rows <= 12");
            self.tiles.push(Tile { first: self.rows, live, rows, offset: self.len });
            self.rows += live;
            self.len += rows * self.depth;
        }
        start..self.tiles.len()
    }

    /// Makes room for what was planned.
    pub fn allocate(&mut self) -> Result<()> {
        tensor::resize(&mut self.data, self.len, "packed activations")
    }

    /// The tiles.
    pub fn tiles(&self) -> &[Tile] {
        &self.tiles
    }

    /// The floats of a tile, `[depth][tile.rows]`.
    #[inline(always)]
    pub fn values(&self, tile: &Tile) -> &[f32] {
        &self.data[tile.offset..tile.offset + tile.rows * self.depth]
    }

    /// All tiles, to be written by several tasks.
    pub fn shared(&mut self) -> SharedRows<'_> {
        let (cols, depth) = (self.cols, self.depth);
        SharedRows { tiles: &self.tiles, data: Shared::new(&mut self.data), cols, depth }
    }

    /// Fills every tile: row `r` is `scale(r) * row(r)`.
    pub fn fill<'x>(
        &mut self,
        threads: &Threads,
        row: impl Fn(usize) -> &'x [f32] + Sync,
        scale: impl Fn(usize) -> f32 + Sync,
    ) {
        let shared = self.shared();
        threads.for_ranges(shared.tiles.len(), 2, |tiles| {
            for tile in &shared.tiles[tiles] {
                // SAFETY: tiles do not overlap, and each is filled once.
                let values = unsafe { shared.tile(tile) };
                for r in 0..tile.rows {
                    if r < tile.live {
                        let (row, scale) = (row(tile.first + r), scale(tile.first + r));
                        for (column, &x) in values.chunks_exact_mut(tile.rows).zip(row) {
                            column[r] = scale * x;
                        }
                    } else {
                        values.chunks_exact_mut(tile.rows).for_each(|column| column[r] = 0.0);
                    }
                }
                values[shared.cols * tile.rows..].fill(0.0);
            }
        });
    }
}

/// [`PackedRows`] whose tiles are being written.
pub struct SharedRows<'a> {
    /// The tiles.
    pub tiles: &'a [Tile],
    data: Shared<'a, f32>,
    cols: usize,
    depth: usize,
}

impl<'a> SharedRows<'a> {
    /// All floats of a tile.
    ///
    /// # Safety
    /// While the result lives, nothing else of the tile is reached.
    unsafe fn tile(&self, tile: &Tile) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.data.part(tile.offset..tile.offset + tile.rows * self.depth) }
    }

    /// The floats of some inputs of a tile, `[inputs][tile.rows]`.
    ///
    /// # Safety
    /// While the result lives, nothing else reaches these inputs of the tile.
    #[inline(always)]
    pub unsafe fn inputs(&self, tile: &Tile, inputs: Range<usize>) -> &'a mut [f32] {
        let at = |input: usize| tile.offset + input * tile.rows;
        // SAFETY: the caller's promise.
        unsafe { self.data.part(at(inputs.start)..at(inputs.end)) }
    }

    /// Zeroes the inputs that fill up the last group.
    pub fn zero_padding(&self) {
        for tile in self.tiles {
            // SAFETY: called before the tasks start, which never write to the padding.
            unsafe { self.inputs(tile, self.cols..self.depth) }.fill(0.0);
        }
    }
}
