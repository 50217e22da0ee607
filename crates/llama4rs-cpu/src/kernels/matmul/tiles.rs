//! Cutting rows of activations into tiles.

use std::ops::Range;

/// A block of rows whose product with a panel stays in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// First row, counted over all rows packed.
    pub first: usize,
    /// Number of rows, at least one.
    pub rows: usize,
}

/// Adds tiles of at most `most` rows, as equal as can be, for `count` rows from
/// `first` on; says which.
pub fn add_tiles(tiles: &mut Vec<Tile>, first: usize, count: usize, most: usize) -> Range<usize> {
    let parts = count.div_ceil(most);
    let start = tiles.len();
    for part in 0..parts {
        let (from, to) = (part * count / parts, (part + 1) * count / parts);
        tiles.push(Tile { first: first + from, rows: to - from });
    }
    start..tiles.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_all_rows_and_differ_by_one_at_most() {
        for count in 0..100 {
            let mut tiles = Vec::new();
            assert_eq!(add_tiles(&mut tiles, 7, count, 12), 0..tiles.len());
            let sizes = || tiles.iter().map(|tile| tile.rows);
            assert!(sizes().max() <= Some(12) && sizes().max() <= sizes().min().map(|n| n + 1));
            let mut next = 7;
            for tile in &tiles {
                assert_eq!(tile.first, next);
                next += tile.rows;
            }
            assert_eq!(next, 7 + count);
        }
    }
}
