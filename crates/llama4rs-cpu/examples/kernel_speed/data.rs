//! Random weights and activations, and what products of them should be.

use llama4rs_cpu::Arithmetic;
use llama4rs_tensor::{AlignedBytes, PackedMatrix, WeightFormat};

/// Bytes of random codes with sensible scales.
pub fn random_matrix(format: WeightFormat, stack: usize, rows: usize, cols: usize) -> PackedMatrix {
    let panel_bytes = format.panel_bytes(cols);
    let mut bytes = AlignedBytes::zeroed(stack * format.matrix_bytes(rows, cols).expect("a size"))
        .expect("memory");
    let mut state = 1u64;
    for panel in bytes.chunks_exact_mut(panel_bytes) {
        let codes = format.panel_code_bytes(cols);
        for word in panel[..codes].chunks_exact_mut(8) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            word.copy_from_slice(&(state ^ state >> 33).to_le_bytes());
        }
        match format {
            // Exponents near zero.
            WeightFormat::F32 => panel.chunks_exact_mut(4).for_each(|b| b[3] = b[3] & 0x80 | 0x3D),
            WeightFormat::Bf16 => panel.chunks_exact_mut(2).for_each(|b| b[1] = b[1] & 0x80 | 0x3D),
            // 2^-7 as bf16.
            _ => panel[codes..].chunks_exact_mut(2).for_each(|b| b.copy_from_slice(&[0x00, 0x3C])),
        }
    }
    PackedMatrix::new(format, stack, rows, cols, bytes.into()).expect("the right length")
}

/// Values in -1..1.
pub fn random_values(count: usize) -> Vec<f32> {
    let mut state = 7u64;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Compares a few outputs of `x · weightsᵀ` with double precision.
pub fn check(x: &[f32], weights: &PackedMatrix, out: &[f32], arithmetic: Arithmetic) {
    let (rows, cols) = (weights.rows(), weights.cols());
    // Rounding of activations is spread like noise over the terms of a sum.
    let tolerance = match arithmetic {
        Arithmetic::Exact => 1e-6,
        Arithmetic::Fast => 0.05 / (cols as f64).sqrt(),
    };
    for i in (0..out.len()).step_by(out.len() / 16) {
        let x = &x[i / rows * cols..][..cols];
        let (mut sum, mut size) = (0.0, 0.0);
        for (col, &x) in x.iter().enumerate() {
            let weight = weights.format().weight(weights.matrix(0), cols, i % rows, col);
            sum += x as f64 * weight as f64;
            size += (x as f64 * weight as f64).abs();
        }
        assert!((out[i] as f64 - sum).abs() <= tolerance * size, "{i}: {} is not {sum}", out[i]);
    }
}
