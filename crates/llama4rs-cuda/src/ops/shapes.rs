//! Which kernel takes which products: `matmul_decode.cu`, `matmul_tile.cu`, `matmul_wgmma.cu`.

use llama4rs_tensor::WeightFormat;

use super::products::Finish;
use crate::cuda::Cuda;
use crate::kernels::{KernelSource, MATMUL_DECODE, MATMUL_TILE, MATMUL_WGMMA};

/// Rows of a step whose products `matmul_decode.cu` computes.
pub(crate) const MOST_DECODE_ROWS: usize = 16;
/// Token tiles that share a pass over the rows in `matmul_tile.cu` and `matmul_wgmma.cu`.
const SPAN: usize = 8;

/// One of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `matmul_decode_8`
    Decode8,
    /// `matmul_decode_16`
    Decode16,
    /// `matmul_tile_32`
    Tile32,
    /// `matmul_tile_128`
    Tile128,
    /// `matmul_split_64`, then `add_slices`
    Split64,
    /// `matmul_wgmma`
    Wgmma128,
}

impl Shape {
    /// Tokens of a tile.
    pub(crate) fn tokens(self) -> usize {
        match self {
            Shape::Decode8 => 8,
            Shape::Decode16 => 16,
            Shape::Tile32 => 32,
            Shape::Split64 => 64,
            Shape::Tile128 | Shape::Wgmma128 => 128,
        }
    }

    pub(crate) fn is_decode(self) -> bool {
        matches!(self, Shape::Decode8 | Shape::Decode16)
    }

    /// Rows of each matrix that one block computes.
    pub(crate) fn rows(self, finish: Finish) -> usize {
        let all = match self {
            Shape::Decode8 | Shape::Decode16 => return 16,
            Shape::Wgmma128 => 256,
            _ => 128,
        };
        match finish {
            Finish::SwiGlu => all / 2,
            _ => all,
        }
    }

    /// Token tiles of a matrix that share a pass over its rows; of decode kernels all or none do.
    pub(crate) fn span(self) -> usize {
        if self.is_decode() {
            1
        } else {
            SPAN
        }
    }

    /// Bytes of dynamic shared memory.
    pub(crate) fn shared(self, format: WeightFormat) -> usize {
        let (stages, block) = match format {
            WeightFormat::F32 | WeightFormat::Bf16 => (3, 2048),
            WeightFormat::Int8 { .. } => (4, 1024),
            WeightFormat::Int4 { .. } => (4, 512),
        };
        let ring = stages * (self.tokens() * 128 + 8 * block);
        match self {
            Shape::Decode8 | Shape::Decode16 => 0,
            Shape::Split64 => ring,
            Shape::Tile32 | Shape::Tile128 => ring + self.tokens() * 512,
            Shape::Wgmma128 => 4 * 128 * 128 + 256 * 128 * 4,
        }
    }

    pub(crate) fn kernel(self) -> &'static str {
        match self {
            Shape::Decode8 => "matmul_decode_8",
            Shape::Decode16 => "matmul_decode_16",
            Shape::Tile32 => "matmul_tile_32",
            Shape::Tile128 => "matmul_tile_128",
            Shape::Split64 => "matmul_split_64",
            Shape::Wgmma128 => "matmul_wgmma",
        }
    }

    /// Where the kernel is.
    pub(crate) fn source(self) -> &'static KernelSource {
        match self {
            Shape::Decode8 | Shape::Decode16 => &MATMUL_DECODE,
            Shape::Wgmma128 => &MATMUL_WGMMA,
            _ => &MATMUL_TILE,
        }
    }
}

impl Cuda {
    /// The kernel for `rows` rows and matrices of `outputs` outputs in total.
    pub(crate) fn shape_for(&self, rows: usize, outputs: usize, format: WeightFormat) -> Shape {
        let fills = |shape: Shape| {
            let blocks = outputs.div_ceil(shape.rows(Finish::F32)) * rows.div_ceil(shape.tokens());
            rows > 64 && blocks >= self.info().multiprocessors as usize
        };
        match rows {
            0..=8 => Shape::Decode8,
            9..=MOST_DECODE_ROWS => Shape::Decode16,
            _ if self.prompt_products.by_warpgroups() && fills(Shape::Wgmma128) => Shape::Wgmma128,
            _ if fills(Shape::Tile128) => self.if_fits(Shape::Tile128, format),
            _ => self.if_fits(Shape::Split64, format),
        }
    }

    /// The kernel for gate and up of `inner` outputs each.
    pub(crate) fn gated_shape_for(&self, rows: usize, inner: usize, format: WeightFormat) -> Shape {
        match self.shape_for(rows, 2 * inner, format) {
            // Slices of their own have no SwiGLU.
            Shape::Split64 => Shape::Tile32,
            shape => shape,
        }
    }

    /// The kernel for `experts` experts that share `assignments` of `rows` rows.
    pub(crate) fn expert_shape_for(
        &self,
        rows: usize,
        assignments: usize,
        experts: usize,
        formats: &[WeightFormat],
    ) -> Shape {
        let shape = match assignments / experts {
            _ if rows <= 8 => Shape::Decode8,
            0..=4 => Shape::Decode8,
            5..=12 => Shape::Decode16,
            _ if rows <= MOST_DECODE_ROWS => Shape::Decode16,
            13..=48 => Shape::Tile32,
            _ if self.prompt_products.by_warpgroups() => Shape::Wgmma128,
            _ => Shape::Tile128,
        };
        formats.iter().fold(shape, |shape, &format| self.if_fits(shape, format))
    }

    /// `shape`, or the one with the least shared memory.
    fn if_fits(&self, shape: Shape, format: WeightFormat) -> Shape {
        match shape.shared(format) <= self.info().shared_memory {
            true => shape,
            false => Shape::Tile32,
        }
    }
}
