//! Weights in the order in which tensor cores take them; `kernels/fragments.cuh` draws it.

use std::sync::Arc;

use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::{PackedMatrix, Result, WeightFormat};

use crate::arguments::{arguments, Arguments};
use crate::cuda::{Cuda, Launch};
use crate::gpu::Gpu;
use crate::kernels::{EMBED_FRAGMENTS, REPACK};
use crate::memory::Buffer;
use crate::tensor::{Matrix, Tensor};
use crate::upload::upload_in_pieces;

/// Inputs of a tile.
pub(crate) const TILE_COLS: usize = 256;
const THREADS: usize = 256;

/// A matrix, or a stack of them, in fragment order.
pub(crate) struct Fragments {
    pub codes: Buffer<u8>,
    pub scales: Buffer<u32>,
    /// Tiles of inputs.
    pub tiles: usize,
    /// Bytes of codes from one matrix to the next.
    pub code_stride: usize,
    /// Words of scales from one matrix to the next.
    pub scale_stride: usize,
}

/// How large the fragments of a matrix are.
pub(crate) struct Sizes {
    pub tiles: usize,
    pub code_stride: usize,
    pub scale_stride: usize,
}

impl Fragments {
    /// The sizes of `[rows, cols]`, which no format without fragments has.
    pub fn sizes(format: WeightFormat, rows: usize, cols: usize) -> Sizes {
        let tiles = cols.div_ceil(TILE_COLS);
        let tiles_of_all = rows.div_ceil(PANEL_ROWS) * tiles;
        let pieces = repacked_by(format).map_or(0, |(_, pieces)| pieces);
        let groups = format.group().map_or(0, |group| TILE_COLS / group);
        Sizes {
            tiles,
            code_stride: tiles_of_all * TILE_COLS / 64 * pieces * 512,
            scale_stride: tiles_of_all * 8 * groups,
        }
    }

    /// Room for the fragments of `stack` matrices, which are anything.
    pub fn new(gpu: &Arc<Gpu>, sizes: Sizes, stack: usize) -> Result<Self> {
        let Sizes { tiles, code_stride, scale_stride } = sizes;
        let codes = Buffer::new(gpu, stack * code_stride, "weights")?;
        let scales = Buffer::new(gpu, stack * scale_stride, "weights")?;
        Ok(Self { codes, scales, tiles, code_stride, scale_stride })
    }
}

/// What repacking a format needs to know: its kernel, and 16-byte pieces of a lane in a block.
fn repacked_by(format: WeightFormat) -> Option<(&'static str, usize)> {
    match format {
        WeightFormat::F32 => None,
        WeightFormat::Bf16 => Some(("repack_bf16", 4)),
        WeightFormat::Int8 { .. } => Some(("repack_int8", 2)),
        WeightFormat::Int4 { .. } => Some(("repack_int4", 1)),
    }
}

impl Cuda {
    /// The matrix in fragment order, if its format has one and its inputs are whole words of 16 bytes.
    ///
    /// It comes in pieces of whole panels: what is packed needs no room for itself on the device.
    pub(crate) fn upload_fragments(&self, packed: &PackedMatrix) -> Result<Option<Matrix>> {
        let (format, cols) = (packed.format(), packed.cols());
        let (Some((kernel, pieces)), true) = (repacked_by(format), cols.is_multiple_of(8)) else {
            return Ok(None);
        };
        let sizes = Fragments::sizes(format, packed.rows(), cols);
        let fragments = Fragments::new(&self.gpu, sizes, packed.stack())?;
        let Fragments { ref codes, ref scales, tiles, .. } = fragments;
        let [panel_bytes, code_bytes] = [format.panel_bytes(cols), format.panel_code_bytes(cols)];
        let panel_codes = tiles * TILE_COLS / 64 * pieces * 512;
        upload_in_pieces(&self.gpu, packed.bytes(), panel_bytes, |first, piece| {
            let panels = piece.len().min(packed.bytes().len() - first * panel_bytes) / panel_bytes;
            let threads = panels * panel_codes / 16;
            let all = arguments![
                codes.offset(first * panel_codes),
                piece,
                threads as u64,
                tiles,
                panel_bytes as u64,
                (code_bytes / 64) as u32
            ];
            self.launch_repack(kernel, threads, &all)?;
            let Some(group) = format.group() else { return Ok(()) };
            let panel_scales = tiles * 8 * (TILE_COLS / group);
            let words = panels * panel_scales;
            let all = arguments![
                scales.offset(first * panel_scales),
                piece,
                words as u64,
                TILE_COLS / group,
                tiles,
                panel_bytes as u64,
                code_bytes as u64,
                format.padded_cols(cols) / group
            ];
            self.launch_repack("repack_scales", words, &all)
        })?;
        self.gpu.note_weights();
        let (stack, rows) = (packed.stack(), packed.rows());
        let panels = Buffer::new(&self.gpu, 0, "weights")?;
        Ok(Some(Matrix { format, stack, rows, cols, panels, fragments: Some(fragments) }))
    }

    fn launch_repack(
        &self,
        kernel: &'static str,
        threads: usize,
        all: &impl Arguments,
    ) -> Result<()> {
        let launch = Launch {
            source: &REPACK,
            kernel,
            constants: &[],
            shared: 0,
            blocks: [threads.div_ceil(THREADS), 1, 1],
            threads: THREADS as u32,
        };
        self.launch(launch, all)
    }

    pub(crate) fn run_embed_fragments(
        &self,
        table: &Matrix,
        fragments: &Fragments,
        ids: &Buffer<u32>,
        count: usize,
        out: &mut Tensor,
    ) -> Result<()> {
        let all = arguments![
            out.address(),
            &fragments.codes,
            &fragments.scales,
            ids,
            table.cols,
            fragments.tiles
        ];
        let launch = Launch {
            source: &EMBED_FRAGMENTS,
            kernel: "embed_fragments",
            constants: &table.constants(),
            shared: 0,
            blocks: [count, 1, 1],
            threads: THREADS as u32,
        };
        self.launch(launch, &all)
    }
}
