//! Packed weight layouts, drawn byte by byte.
//!
//! A matrix `[rows, cols]` (outputs by inputs) is cut into *panels* of
//! [`PANEL_ROWS`] = 16 rows; the last panel is filled up with zero rows. Within
//! a panel the 16 rows are interleaved so that one 64-byte load feeds 16 lanes,
//! lane `r` holding row `r`, and a matrix product runs down the inputs with one
//! accumulator lane per output: no sums across lanes, one order of additions
//! whatever the batch. All numbers are little-endian.
//!
//! | format | one 64-byte line holds | bits per weight |
//! |---|---|---|
//! | `f32`  | input `i` of 16 rows | 32 |
//! | `bf16` | inputs `2i, 2i+1` of 16 rows | 16 |
//! | `int8` | inputs `4i .. 4i+4` of 16 rows, each `code + 128` | 8 + 16/group |
//! | `int4` | inputs `8i .. 8i+8` of 16 rows, each `code + 8` | 4 + 16/group |
//!
//! In an `int4` line the 32-bit word of row `r` holds input `8i + b` in the low
//! nibble of byte `b` and input `8i + 4 + b` in its high nibble, `b = 0..4`.
//!
//! The integer formats are symmetric, `weight = code * scale`, with one bf16
//! scale per row and group of inputs. A panel is all its code lines, then its
//! scales as `[group][16 rows]` bf16, then zeros up to a multiple of 64 bytes.
//! Inputs are padded with zero weights to a whole line (`f32`, `bf16`) or a
//! whole group (`int8`, `int4`).

mod codec;

use std::fmt;
use std::str::FromStr;

use crate::bytes::ALIGNMENT;
use crate::{Error, Result};

/// Rows that one panel interleaves.
pub const PANEL_ROWS: usize = 16;

/// Group sizes that the integer formats accept.
pub const GROUP_SIZES: [usize; 3] = [32, 64, 128];

/// Group size when only `int4` or `int8` is said.
pub const DEFAULT_GROUP: usize = 64;

/// How one weight matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// IEEE single precision.
    F32,
    /// The upper half of a single.
    Bf16,
    /// Symmetric 8-bit codes, -127..=127, one bf16 scale per `group` inputs of a row.
    Int8 {
        /// Inputs that share a scale.
        group: usize,
    },
    /// Symmetric 4-bit codes, -8..=7, one bf16 scale per `group` inputs of a row.
    Int4 {
        /// Inputs that share a scale.
        group: usize,
    },
}

impl WeightFormat {
    /// Inputs in one 64-byte line of a panel.
    pub fn line_cols(self) -> usize {
        match self {
            WeightFormat::F32 => 1,
            WeightFormat::Bf16 => 2,
            WeightFormat::Int8 { .. } => 4,
            WeightFormat::Int4 { .. } => 8,
        }
    }

    /// Inputs that share a scale, for the integer formats.
    pub fn group(self) -> Option<usize> {
        match self {
            WeightFormat::F32 | WeightFormat::Bf16 => None,
            WeightFormat::Int8 { group } | WeightFormat::Int4 { group } => Some(group),
        }
    }

    /// `cols` rounded up to what a panel stores.
    pub fn padded_cols(self, cols: usize) -> usize {
        cols.next_multiple_of(self.group().unwrap_or(self.line_cols()))
    }

    /// Bytes of the code lines of one panel.
    pub fn panel_code_bytes(self, cols: usize) -> usize {
        self.padded_cols(cols) / self.line_cols() * 64
    }

    /// Bytes from one panel to the next.
    pub fn panel_bytes(self, cols: usize) -> usize {
        let scales = self.group().map_or(0, |g| self.padded_cols(cols) / g * PANEL_ROWS * 2);
        (self.panel_code_bytes(cols) + scales).next_multiple_of(ALIGNMENT)
    }

    /// Bytes of a whole matrix; `None` when the sizes are absurd.
    pub fn matrix_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        const LIMIT: usize = 1 << 48;
        if rows == 0 || cols == 0 || rows > LIMIT || cols > LIMIT {
            return None;
        }
        rows.div_ceil(PANEL_ROWS).checked_mul(self.panel_bytes(cols))
    }

    /// Bits of storage per weight, scales included, padding not.
    pub fn bits_per_weight(self) -> f64 {
        let codes = 32.0 / self.line_cols() as f64;
        codes + self.group().map_or(0.0, |g| 16.0 / g as f64)
    }

    /// The format's family name: `f32`, `bf16`, `int8` or `int4`.
    pub fn name(self) -> &'static str {
        match self {
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::Int8 { .. } => "int8",
            WeightFormat::Int4 { .. } => "int4",
        }
    }
}

impl fmt::Display for WeightFormat {
    /// `f32`, `bf16`, `int8/g64`, `int4/g128`, …
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group() {
            None => f.write_str(self.name()),
            Some(group) => write!(f, "{}/g{group}", self.name()),
        }
    }
}

impl FromStr for WeightFormat {
    type Err = Error;

    /// Reads `f32`, `bf16`, `int8`, `int4`, `int8/g32`, `int4/g128`, …
    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::UnknownFormat { name: text.to_owned() };
        let (name, group) = match text.split_once("/g") {
            None => (text, None),
            Some((name, group)) => (name, Some(group.parse::<usize>().map_err(|_| unknown())?)),
        };
        if group.is_some_and(|g| !GROUP_SIZES.contains(&g)) {
            return Err(unknown());
        }
        match (name, group) {
            ("f32", None) => Ok(WeightFormat::F32),
            ("bf16", None) => Ok(WeightFormat::Bf16),
            ("int8", group) => Ok(WeightFormat::Int8 { group: group.unwrap_or(DEFAULT_GROUP) }),
            ("int4", group) => Ok(WeightFormat::Int4 { group: group.unwrap_or(DEFAULT_GROUP) }),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_per_weight_are_the_promised_ones() {
        for (name, bits) in
            [("int4/g32", 4.5), ("int4", 4.25), ("int4/g128", 4.125), ("int8", 8.25)]
        {
            let format: WeightFormat = name.parse().unwrap();
            assert_eq!(format.bits_per_weight(), bits, "{name}");
            let bytes = format.matrix_bytes(5120, 8192).unwrap();
            assert_eq!(
                bytes as f64 * 8.0 / (5120.0 * 8192.0),
                bits,
                "{name}: no padding at Scout's sizes"
            );
        }
    }

    #[test]
    fn names_round_trip() {
        for name in ["f32", "bf16", "int8/g32", "int8/g64", "int4/g64", "int4/g128"] {
            assert_eq!(name.parse::<WeightFormat>().unwrap().to_string(), name);
        }
        for name in ["int4/g7", "int3", "f32/g64", "int4/g", ""] {
            assert!(name.parse::<WeightFormat>().is_err(), "{name:?}");
        }
    }
}
