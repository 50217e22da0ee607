//! The matrix product as it is defined, one output at a time.

use half::bf16;
use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::WeightFormat;

use super::panels::Panels;

/// `x · matrixᵀ` for one row, in the order of operations of [`super`].
pub fn matmul_row(x: &[f32], matrix: &Panels) -> Vec<f32> {
    (0..matrix.rows).map(|output| dot(x, matrix, output)).collect()
}

fn dot(x: &[f32], matrix: &Panels, output: usize) -> f32 {
    let panel = matrix.panel(output / PANEL_ROWS);
    let lane = output % PANEL_ROWS;
    let format = matrix.format;
    let Some(group) = format.group() else {
        return x
            .iter()
            .enumerate()
            .fold(0.0, |sum, (i, &x)| code(format, panel, lane, i).mul_add(x, sum));
    };
    let mut total = 0.0;
    for (g, x) in x.chunks(group).enumerate() {
        let part = x
            .iter()
            .enumerate()
            .fold(0.0, |sum, (i, &x)| code(format, panel, lane, g * group + i).mul_add(x, sum));
        let at = format.panel_code_bytes(matrix.cols) + (g * PANEL_ROWS + lane) * 2;
        let scale = bf16::from_le_bytes([panel[at], panel[at + 1]]).to_f32();
        total = scale.mul_add(part, total);
    }
    total
}

/// A weight without its scale.
fn code(format: WeightFormat, panel: &[u8], lane: usize, input: usize) -> f32 {
    let at = (input / format.line_cols() * PANEL_ROWS + lane) * 4;
    let word = u32::from_le_bytes([panel[at], panel[at + 1], panel[at + 2], panel[at + 3]]);
    match format {
        WeightFormat::F32 => f32::from_bits(word),
        WeightFormat::Bf16 => f32::from_bits(word >> (input % 2 * 16) << 16),
        WeightFormat::Int8 { .. } => (word >> (input % 4 * 8) & 255) as f32 - 128.0,
        WeightFormat::Int4 { .. } => {
            (word >> (input % 4 * 8 + input % 8 / 4 * 4) & 15) as f32 - 8.0
        }
    }
}
