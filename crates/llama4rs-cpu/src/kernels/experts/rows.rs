//! Which rows go through which experts.

use std::ops::Range;

use crate::kernels::matmul::{add_tiles, Inputs, PackedRows, Tile};
use crate::kernels::route::Routing;

/// Rows sorted by expert: those of one expert are tiles one after another.
#[derive(Default)]
pub struct SortedRows {
    /// Experts that some row goes to.
    pub active: Vec<ActiveExpert>,
    pub tiles: Vec<Tile>,
    /// What goes into `gate` and `up`.
    pub inputs: Inputs,
    /// `silu(gate) * up`.
    pub hidden: PackedRows,
}

/// An expert that some row goes to.
#[derive(Clone)]
pub struct ActiveExpert {
    pub expert: usize,
    pub tiles: Range<usize>,
    /// Number of rows.
    pub rows: usize,
}

impl SortedRows {
    /// All of `count` rows go to the first expert.
    pub fn take_all(&mut self, count: usize, tile_rows: usize) {
        self.clear();
        self.add(0, 0, count, tile_rows);
    }

    fn clear(&mut self) {
        self.active.clear();
        self.tiles.clear();
    }

    fn add(&mut self, expert: usize, first: usize, rows: usize, tile_rows: usize) {
        if rows > 0 {
            let tiles = add_tiles(&mut self.tiles, first, rows, tile_rows);
            self.active.push(ActiveExpert { expert, tiles, rows });
        }
    }
}

/// The order of routed pairs of rows and experts.
#[derive(Default)]
pub struct Sorting {
    /// Where each expert's rows start in the sorted order.
    starts: Vec<usize>,
    /// Sorted place -> routed pair (`row * top_k + rank`).
    pub pairs: Vec<u32>,
    /// Routed pair -> sorted place.
    pub places: Vec<u32>,
}

impl Sorting {
    /// Counting sort of the routed pairs by expert; rows keep their order. Then
    /// the rows of every expert become tiles of `sorted`.
    pub fn sort(&mut self, routing: &Routing, sorted: &mut SortedRows, tile_rows: usize) {
        self.starts.clear();
        self.starts.resize(routing.num_experts + 1, 0);
        for &expert in &routing.experts {
            self.starts[expert as usize + 1] += 1;
        }
        sorted.clear();
        for expert in 0..routing.num_experts {
            let (start, count) = (self.starts[expert], self.starts[expert + 1]);
            self.starts[expert + 1] += start;
            sorted.add(expert, start, count, tile_rows);
        }
        self.pairs.clear();
        self.pairs.resize(routing.experts.len(), 0);
        self.places.clear();
        for (pair, &expert) in routing.experts.iter().enumerate() {
            let place = &mut self.starts[expert as usize];
            self.pairs[*place] = pair as u32;
            self.places.push(*place as u32);
            *place += 1;
        }
    }
}
