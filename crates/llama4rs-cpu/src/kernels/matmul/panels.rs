//! One matrix as its panels.

use std::ops::Range;

use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::{PackedMatrix, WeightFormat};

/// Bytes ahead of their use that lines of weights are asked into the first cache.
pub const NEAR: usize = 256;
/// The same for the second cache, shared among the panels that are read together.
pub const FAR: usize = 4096;

/// One matrix of a [`PackedMatrix`].
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    pub format: WeightFormat,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    bytes: &'a [u8],
}

impl<'a> Panels<'a> {
    /// Matrix `index` of a stack.
    pub fn of(matrix: &'a PackedMatrix, index: usize) -> Self {
        Self {
            format: matrix.format(),
            rows: matrix.rows(),
            cols: matrix.cols(),
            bytes: matrix.matrix(index),
        }
    }

    /// Number of panels.
    pub fn count(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    /// The bytes of panel `index`.
    #[inline(always)]
    pub fn panel(&self, index: usize) -> &'a [u8] {
        let bytes = self.format.panel_bytes(self.cols);
        &self.bytes[index * bytes..(index + 1) * bytes]
    }

    /// The rows of the matrix that panel `index` holds; padding is left out.
    #[inline(always)]
    pub fn outputs(&self, index: usize) -> Range<usize> {
        index * PANEL_ROWS..self.rows.min((index + 1) * PANEL_ROWS)
    }

    /// The most panels of a task: if they are `reused` for several tiles, not more than
    /// stays in a core's cache.
    pub fn cached(&self, reused: bool) -> usize {
        let bytes = if reused { 256 << 10 } else { 1 << 20 };
        bytes / self.format.panel_bytes(self.cols)
    }

    /// How many panels make one task: few enough for `tasks` tasks, and [`Panels::cached`].
    pub fn per_task(&self, tasks: usize, reused: bool) -> usize {
        let fair = self.count() / tasks.max(1);
        match self.cached(reused).min(fair) {
            few @ 0..=3 => few.max(1),
            many => many / 4 * 4,
        }
    }
}
