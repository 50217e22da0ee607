//! Writing and reading single panels: slow, plain, and the meaning of every layout.

use half::bf16;

use super::{WeightFormat, PANEL_ROWS};

impl WeightFormat {
    /// Writes one floating-point panel. `rows` holds up to 16 rows of `cols`
    /// values, row-major; missing rows become zeros. `panel` is zeroed and
    /// [`WeightFormat::panel_bytes`] long.
    ///
    /// # Panics
    /// When called on an integer format, whose codes come from a quantiser.
    pub fn encode_float_panel(self, rows: &[f32], cols: usize, panel: &mut [u8]) {
        for (r, row) in rows.chunks_exact(cols).enumerate() {
            for (i, &value) in row.iter().enumerate() {
                match self {
                    WeightFormat::F32 => {
                        let at = (i * PANEL_ROWS + r) * 4;
                        panel[at..at + 4].copy_from_slice(&value.to_le_bytes());
                    }
                    WeightFormat::Bf16 => {
                        let at = (i / 2 * PANEL_ROWS + r) * 4 + i % 2 * 2;
                        panel[at..at + 2].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
                    }
                    _ => panic!("{self} panels are written by encode_integer_panel"),
                }
            }
        }
    }

    /// Writes one integer panel from `codes` (`[16][padded cols]`) and `scales`
    /// (`[16][groups]`). Rows beyond the matrix have zero codes and scales.
    ///
    /// # Panics
    /// When called on a floating-point format.
    pub fn encode_integer_panel(
        self,
        codes: &[i8],
        scales: &[bf16],
        cols: usize,
        panel: &mut [u8],
    ) {
        let group = self.group().expect("an integer format");
        let padded = self.padded_cols(cols);
        let (lines, scale_bytes) = panel.split_at_mut(self.panel_code_bytes(cols));
        lines.fill(0);
        for r in 0..PANEL_ROWS {
            for i in 0..padded {
                let code = codes[r * padded + i];
                match self {
                    WeightFormat::Int8 { .. } => {
                        lines[(i / 4 * PANEL_ROWS + r) * 4 + i % 4] = (code as i16 + 128) as u8;
                    }
                    _ => {
                        let nibble = (code + 8) as u8 & 15;
                        lines[(i / 8 * PANEL_ROWS + r) * 4 + i % 4] |= nibble << (i % 8 / 4 * 4);
                    }
                }
            }
            for (g, scale) in scales[r * (padded / group)..][..padded / group].iter().enumerate() {
                let at = (g * PANEL_ROWS + r) * 2;
                scale_bytes[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
    }

    /// One weight of a matrix, straight from the definition of the layout.
    pub fn weight(self, matrix: &[u8], cols: usize, row: usize, col: usize) -> f32 {
        let panel = &matrix[row / PANEL_ROWS * self.panel_bytes(cols)..];
        let r = row % PANEL_ROWS;
        let scale = |group: usize| {
            let at = self.panel_code_bytes(cols) + (col / group * PANEL_ROWS + r) * 2;
            bf16::from_le_bytes([panel[at], panel[at + 1]]).to_f32()
        };
        match self {
            WeightFormat::F32 => {
                let at = (col * PANEL_ROWS + r) * 4;
                f32::from_le_bytes([panel[at], panel[at + 1], panel[at + 2], panel[at + 3]])
            }
            WeightFormat::Bf16 => {
                let at = (col / 2 * PANEL_ROWS + r) * 4 + col % 2 * 2;
                bf16::from_le_bytes([panel[at], panel[at + 1]]).to_f32()
            }
            WeightFormat::Int8 { group } => {
                let byte = panel[(col / 4 * PANEL_ROWS + r) * 4 + col % 4];
                (byte as i32 - 128) as f32 * scale(group)
            }
            WeightFormat::Int4 { group } => {
                let byte = panel[(col / 8 * PANEL_ROWS + r) * 4 + col % 4];
                let nibble = byte >> (col % 8 / 4 * 4) & 15;
                (nibble as i32 - 8) as f32 * scale(group)
            }
        }
    }

    /// All weights of a matrix, `[rows, cols]` row-major.
    pub fn decode(self, matrix: &[u8], rows: usize, cols: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(rows * cols);
        for row in 0..rows {
            out.extend((0..cols).map(|col| self.weight(matrix, cols, row, col)));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::GROUP_SIZES;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn float_panels_round_trip(
            rows in 1usize..=16,
            cols in 1usize..70,
            wide in any::<bool>(),
            seed in any::<u32>(),
        ) {
            let format = if wide { WeightFormat::F32 } else { WeightFormat::Bf16 };
            let value = |i: usize| {
                let raw = (i as u32).wrapping_mul(2654435761).wrapping_add(seed) as f32 / 1e9 - 2.0;
                bf16::from_f32(raw).to_f32()
            };
            let plain: Vec<f32> = (0..rows * cols).map(value).collect();
            let mut panel = vec![0; format.panel_bytes(cols)];
            format.encode_float_panel(&plain, cols, &mut panel);
            prop_assert_eq!(format.decode(&panel, rows, cols), plain);
        }

        #[test]
        fn integer_panels_round_trip(
            cols in 1usize..300,
            group in prop::sample::select(GROUP_SIZES.to_vec()),
            wide in any::<bool>(),
            seed in any::<u32>(),
        ) {
            let format =
                if wide { WeightFormat::Int8 { group } } else { WeightFormat::Int4 { group } };
            let padded = format.padded_cols(cols);
            let hash = |i: usize| (i as u32 ^ seed).wrapping_mul(2654435761) >> 16;
            let codes: Vec<i8> = (0..16 * padded)
                .map(|i| if wide { (hash(i) % 255) as i32 - 127 } else { (hash(i) % 16) as i32 - 8 } as i8)
                .collect();
            let groups = padded / group;
            let scales: Vec<bf16> =
                (0..16 * groups).map(|i| bf16::from_f32(hash(i + 7) as f32 / 65536.0 - 0.5)).collect();
            let mut panel = vec![0xAA; format.panel_bytes(cols)];
            format.encode_integer_panel(&codes, &scales, cols, &mut panel);
            for row in 0..16 {
                for col in 0..cols {
                    let expected =
                        codes[row * padded + col] as f32 * scales[row * groups + col / group].to_f32();
                    prop_assert_eq!(format.weight(&panel, cols, row, col), expected);
                }
            }
        }
    }
}
