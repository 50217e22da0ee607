//! `out[t] = table[ids[t]]`: rows of a packed matrix as plain floats.
//!
//! A value is `code * scale`, rounded once, or the stored float itself.

use half::bf16;
use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::WeightFormat;

use super::matmul::Panels;
use crate::parallel::{Shared, Threads};
use crate::Tensor;

/// Rows that one thread does by itself.
const GRAIN: usize = 4;

/// Decodes the rows `ids` of `table` into `out`, which has its shape.
pub fn embed(threads: &Threads, table: &Panels, ids: &[u32], out: &mut Tensor) {
    let cols = table.cols;
    let out = Shared::new(out.values_mut());
    threads.for_ranges(ids.len(), GRAIN, |range| {
        for t in range {
            // SAFETY: every row is one task's.
            let out = unsafe { out.part(t * cols..(t + 1) * cols) };
            decode_row(table, ids[t] as usize, out);
        }
    });
}

fn decode_row(table: &Panels, row: usize, out: &mut [f32]) {
    let format = table.format;
    let panel = table.panel(row / PANEL_ROWS);
    let lane = row % PANEL_ROWS;
    let (lines, scales) = panel.split_at(format.panel_code_bytes(table.cols));
    let words = lines.chunks_exact(64).map(|line| {
        let word = &line[lane * 4..lane * 4 + 4];
        u32::from_le_bytes([word[0], word[1], word[2], word[3]])
    });
    let scale = |column: usize, group: usize| {
        let at = (column / group * PANEL_ROWS + lane) * 2;
        bf16::from_le_bytes([scales[at], scales[at + 1]]).to_f32()
    };
    for (i, (out, word)) in out.chunks_mut(format.line_cols()).zip(words).enumerate() {
        let scale = |group| scale(i * format.line_cols(), group);
        for (j, out) in out.iter_mut().enumerate() {
            *out = match format {
                WeightFormat::F32 => f32::from_bits(word),
                WeightFormat::Bf16 => f32::from_bits(word >> (16 * j) << 16),
                WeightFormat::Int8 { group } => {
                    ((word >> (8 * j) & 255) as f32 - 128.0) * scale(group)
                }
                WeightFormat::Int4 { group } => {
                    ((word >> crate::simd::int4_shift(j) & 15) as f32 - 8.0) * scale(group)
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::Backend;

    use crate::test_support::{all_cpus, assert_bits, Random, FORMATS};

    #[test]
    fn rows_are_those_of_the_plain_table() {
        let random = &mut Random(11);
        for format in FORMATS {
            for (rows, cols) in [(1, 1), (50, 33), (17, 200)] {
                let table = random.matrix(format, 1, rows, cols);
                let plain = table.decode(0);
                let ids: Vec<u32> = (0..30).map(|_| random.below(rows) as u32).collect();
                let expected: Vec<f32> = ids
                    .iter()
                    .flat_map(|&id| plain[id as usize * cols..][..cols].to_vec())
                    .collect();
                for cpu in all_cpus() {
                    let mut got = cpu.empty();
                    cpu.embed(&table, &ids, &mut got).unwrap();
                    assert_bits(&format.to_string(), &expected, got.values());
                }
            }
        }
    }
}
