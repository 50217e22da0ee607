//! Products with packed weights: `matmul_exact.cu`.

use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::Result;

use crate::arguments::{arguments, Arguments};
use crate::cuda::{Cuda, Launch};
use crate::kernels::MATMUL_EXACT;
use crate::memory::Buffer;
use crate::tensor::{Matrix, Tensor};

/// Rows of x that one block takes; the sums do not depend on it.
const TOKENS: [usize; 4] = [1, 2, 4, 8];

/// Sorted rows and their tiles: what [`Cuda::run_matmul_experts`] needs to know.
pub(crate) struct Tiles {
    /// `[count]` of expert, first row, rows.
    pub table: Buffer<u32>,
    pub count: usize,
    /// Rows of a tile.
    pub tokens: usize,
}

/// The least tile that takes `rows` rows, or the largest.
pub(crate) fn tile_for(rows: usize) -> usize {
    TOKENS.into_iter().find(|&tokens| tokens >= rows).unwrap_or(TOKENS[TOKENS.len() - 1])
}

impl Cuda {
    /// `out = x · weightsᵀ`.
    pub(crate) fn run_matmul(&self, x: &Tensor, weights: &Matrix, out: &mut Tensor) -> Result<()> {
        out.resize(&self.gpu, x.rows(), weights.rows)?;
        let tokens = tile_for(x.rows());
        let arguments = arguments![
            out.address(),
            x.address(),
            &weights.panels,
            x.rows(),
            weights.rows,
            weights.cols,
            weights.panel_bytes(),
            weights.code_bytes()
        ];
        let tiles = x.rows().div_ceil(tokens);
        self.launch_panels("matmul_exact", weights, tokens, tiles, &arguments)
    }

    /// Each tile of sorted rows times its expert's matrix; `x` and `out` are addresses.
    pub(crate) fn run_matmul_experts(
        &self,
        out: &Buffer<f32>,
        x: &Buffer<f32>,
        weights: &Matrix,
        tiles: &Tiles,
    ) -> Result<()> {
        let arguments = arguments![
            out,
            x,
            &weights.panels,
            &tiles.table,
            tiles.count,
            weights.rows,
            weights.cols,
            weights.panel_bytes(),
            weights.code_bytes()
        ];
        self.launch_panels("matmul_experts_exact", weights, tiles.tokens, tiles.count, &arguments)
    }

    fn launch_panels(
        &self,
        kernel: &'static str,
        weights: &Matrix,
        tokens: usize,
        tiles: usize,
        arguments: &impl Arguments,
    ) -> Result<()> {
        let [format, group] = weights.constants();
        let vector = weights.cols.is_multiple_of(8) as u32;
        let constants = [format, group, ("TOKENS", tokens as u32), ("VECTOR", vector)];
        let launch = Launch {
            source: &MATMUL_EXACT,
            kernel,
            constants: &constants,
            shared: 0,
            blocks: [weights.rows.div_ceil(PANEL_ROWS) * tiles, 1, 1],
            threads: 256,
        };
        self.launch(launch, arguments)
    }
}
