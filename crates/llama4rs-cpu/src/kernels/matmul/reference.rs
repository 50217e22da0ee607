//! The matrix product as it is defined, one output at a time.

use half::bf16;
use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::WeightFormat;

use super::panels::Panels;
use crate::Arithmetic;

/// `x · matrixᵀ` for one row, in the order of operations of [`super`].
pub fn matmul_row(x: &[f32], matrix: &Panels, arithmetic: Arithmetic) -> Vec<f32> {
    let dot = match (arithmetic, matrix.format) {
        (Arithmetic::Exact, _) | (_, WeightFormat::F32) => dot,
        (Arithmetic::Fast, WeightFormat::Bf16) => pair_dot,
        _ => integer_dot,
    };
    (0..matrix.rows).map(|output| dot(x, matrix, output)).collect()
}

fn pair_dot(x: &[f32], matrix: &Panels, output: usize) -> f32 {
    let panel = matrix.panel(output / PANEL_ROWS);
    let product = |i: usize, sum: f32| {
        let weight = code(matrix.format, panel, output % PANEL_ROWS, i);
        let weight = if weight.is_subnormal() { 0.0 } else { weight };
        let factor = x[i] * 2f32.powi(64);
        let factor = if factor.abs() < 2f32.powi(14) { 0.0 } else { factor };
        weight.mul_add(bf16::from_f32(factor).to_f32(), sum)
    };
    let pair = |sum, first: usize| {
        let sum = if first + 1 < x.len() { product(first + 1, sum) } else { sum };
        product(first, sum)
    };
    (0..x.len()).step_by(2).fold(0.0, pair) * 2f32.powi(-64)
}

fn integer_dot(x: &[f32], matrix: &Panels, output: usize) -> f32 {
    let panel = matrix.panel(output / PANEL_ROWS);
    let lane = output % PANEL_ROWS;
    let group = matrix.format.group().unwrap();
    let mut total = 0.0;
    for (g, x) in x.chunks(group).enumerate() {
        let top = x.iter().fold(0.0, |top: f32, x| top.max(x.abs()));
        let (mut x_scale, mut sum) = (0.0, 0);
        if x.iter().any(|x| !x.is_finite()) {
            x_scale = f32::NAN;
        } else if top >= 1e-30 {
            x_scale = top / 127.0;
            for (i, x) in x.iter().enumerate() {
                let x = (x * (127.0 / top)).round_ties_even() as i32;
                sum += x * code(matrix.format, panel, lane, g * group + i) as i32;
            }
        }
        let scale = scale(panel, lane, matrix, g) * x_scale;
        total = (sum as f32).mul_add(scale, total);
    }
    total
}

fn scale(panel: &[u8], lane: usize, matrix: &Panels, group: usize) -> f32 {
    let at = matrix.format.panel_code_bytes(matrix.cols) + (group * PANEL_ROWS + lane) * 2;
    bf16::from_le_bytes([panel[at], panel[at + 1]]).to_f32()
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
        total = scale(panel, lane, matrix, g).mul_add(part, total);
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
