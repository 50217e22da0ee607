//! One published matrix, read in blocks of rows and dealt out in panels.
//!
//! A block is read with positioned reads into a buffer of bounded size, so that
//! a tensor of any size costs the same memory. Inputs-first tensors (fused
//! experts) are read as one strip of every input's line.

use half::f16;
use llama4rs_tensor::format::PANEL_ROWS;
use rayon::prelude::*;
use std::ops::Range;

use crate::quantize::Lanes;
use crate::safetensors_file::{Dtype, SafetensorsFile};
use crate::Result;

/// Bytes of source that one block holds, unless a single panel is larger.
const BLOCK_BYTES: usize = 48 << 20;

/// Bytes that one thread reads at a time.
const READ_BYTES: usize = 2 << 20;

/// One matrix `[rows, cols]` of a published tensor.
pub(crate) struct SourceMatrix<'a> {
    pub file: &'a SafetensorsFile,
    /// Published name, for messages.
    pub tensor: &'a str,
    pub rows: usize,
    pub cols: usize,
    pub element: Element,
    /// Of the first element that belongs to this matrix, from the start of the file.
    pub offset: u64,
    pub order: Order,
    /// One factor per row, or one for all, or none.
    pub scales: Vec<f32>,
}

/// Which index runs fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[rows, cols]`, outputs first.
    RowMajor,
    /// `[cols, width]`, inputs first; the matrix is `rows` of the `width` columns.
    Transposed { width: usize },
}

/// Element types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
    F8E4m3,
}

/// Consecutive rows of a matrix as they lie in the file.
#[derive(Default)]
pub(crate) struct Block {
    bytes: Vec<u8>,
    rows: Range<usize>,
}

impl Block {
    /// Panels that the rows fill, the last perhaps in part.
    pub fn num_panels(&self) -> usize {
        self.rows.len().div_ceil(PANEL_ROWS)
    }
}

impl SourceMatrix<'_> {
    /// The rows of each block; all but the last are whole panels.
    pub fn blocks(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let row_bytes = self.cols * self.element.bytes();
        let panels = (BLOCK_BYTES / PANEL_ROWS / row_bytes).max(1);
        let step = panels * PANEL_ROWS;
        (0..self.rows).step_by(step).map(move |start| start..self.rows.min(start + step))
    }

    /// Reads `rows` into `block`, with all threads of the current pool.
    pub fn read(&self, rows: Range<usize>, block: &mut Block) -> Result<()> {
        let size = self.element.bytes();
        block.bytes.resize(rows.len() * self.cols * size, 0);
        block.rows = rows.clone();
        match self.order {
            Order::Transposed { width } if width != rows.len() => {
                let strip = rows.len() * size;
                let lines = (READ_BYTES / strip).max(1);
                let read = |(n, chunk): (usize, &mut [u8])| {
                    chunk.chunks_exact_mut(strip).enumerate().try_for_each(|(i, line)| {
                        let at = ((n * lines + i) * width + rows.start) * size;
                        self.file.read_at(self.offset + at as u64, line)
                    })
                };
                block.bytes.par_chunks_mut(strip * lines).enumerate().try_for_each(read)
            }
            _ => {
                // Outputs first, or a strip that is the whole width: one run of bytes.
                let start = match self.order {
                    Order::RowMajor => rows.start * self.cols * size,
                    Order::Transposed { .. } => 0,
                };
                let read = |(n, chunk): (usize, &mut [u8])| {
                    self.file.read_at(self.offset + (start + n * READ_BYTES) as u64, chunk)
                };
                block.bytes.par_chunks_mut(READ_BYTES).enumerate().try_for_each(read)
            }
        }
    }

    /// Interleaves up to 16 rows of `block` from its row `first` on; `lanes`
    /// beyond the inputs and rows beyond the matrix become zero.
    pub fn deal(&self, block: &Block, first: usize, lanes: &mut [Lanes]) {
        match self.element {
            Element::F32 => self.deal_with(block, first, lanes, f32::from_le_bytes),
            Element::F16 => self.deal_with(block, first, lanes, |b| f16::from_le_bytes(b).to_f32()),
            Element::Bf16 => self.deal_with(block, first, lanes, |[low, high]| {
                f32::from_bits(u32::from_le_bytes([0, 0, low, high]))
            }),
            Element::F8E4m3 => {
                let table = e4m3_table();
                self.deal_with(block, first, lanes, |[code]| table[code as usize])
            }
        }
        self.scale(block.rows.start + first, lanes);
    }

    #[inline(always)]
    fn deal_with<const SIZE: usize>(
        &self,
        block: &Block,
        first: usize,
        lanes: &mut [Lanes],
        value: impl Fn([u8; SIZE]) -> f32,
    ) {
        let rows = PANEL_ROWS.min(block.rows.len() - first);
        let (inputs, padding) = lanes.split_at_mut(self.cols);
        padding.fill([0.0; PANEL_ROWS]);
        if rows < PANEL_ROWS {
            inputs.fill([0.0; PANEL_ROWS]);
        }
        let (elements, _) = block.bytes.as_chunks::<SIZE>();
        match self.order {
            Order::Transposed { .. } => {
                for (lane, line) in inputs.iter_mut().zip(elements.chunks_exact(block.rows.len())) {
                    for (out, &bytes) in lane.iter_mut().zip(&line[first..first + rows]) {
                        *out = value(bytes);
                    }
                }
            }
            Order::RowMajor => {
                // Short runs of inputs keep the interleaved side in the nearest cache.
                for (n, inputs) in inputs.chunks_mut(64).enumerate() {
                    for r in 0..rows {
                        let row = &elements[(first + r) * self.cols + n * 64..][..inputs.len()];
                        for (lane, &bytes) in inputs.iter_mut().zip(row) {
                            lane[r] = value(bytes);
                        }
                    }
                }
            }
        }
    }

    fn scale(&self, first_row: usize, lanes: &mut [Lanes]) {
        if self.scales.is_empty() {
            return;
        }
        let of_row = |row: usize| {
            let index = if self.scales.len() == 1 { 0 } else { row };
            self.scales.get(index).copied().unwrap_or(0.0)
        };
        let scales: Lanes = std::array::from_fn(|r| of_row(first_row + r));
        for lane in lanes {
            for r in 0..PANEL_ROWS {
                lane[r] *= scales[r];
            }
        }
    }
}

impl Element {
    pub fn of(dtype: &Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Element::F32),
            Dtype::F16 => Some(Element::F16),
            Dtype::Bf16 => Some(Element::Bf16),
            Dtype::F8E4m3 => Some(Element::F8E4m3),
            _ => None,
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
            Element::F8E4m3 => 1,
        }
    }

    /// Little-endian bytes -> values.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Element::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Element::F16 => {
                bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
            }
            Element::Bf16 => {
                bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
            }
            Element::F8E4m3 => {
                let table = e4m3_table();
                bytes.iter().map(|&code| table[code as usize]).collect()
            }
        }
    }
}

/// The values of float8 e4m3fn: 1 sign, 4 exponent (bias 7), 3 mantissa bits; 0x7f is NaN.
fn e4m3_table() -> [f32; 256] {
    std::array::from_fn(|code| {
        let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
        let (exponent, mantissa) = (code >> 3 & 15, (code & 7) as f32);
        sign * match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa / 512.0,
            _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent as i32 - 7),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_its_known_values() {
        let table = e4m3_table();
        assert_eq!(table[0x38], 1.0);
        assert_eq!(table[0x7e], 448.0);
        assert_eq!(table[0x01], 2f32.powi(-9));
        assert_eq!(table[0xb8], -1.0);
        assert!(table[0x7f].is_nan() && table[0xff].is_nan());
    }
}
