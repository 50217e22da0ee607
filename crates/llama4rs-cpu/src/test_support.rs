//! What the tests share: CPUs of every kind, random values, a simple quantiser,
//! comparisons with readable reports.

use std::sync::OnceLock;

use half::bf16;
use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::{AlignedBytes, PackedMatrix, WeightFormat};
use proptest::prelude::*;

use crate::simd::Dispatch;
use crate::{Arithmetic, Cpu, InstructionSet, Tensor};

/// Every instruction set of this processor.
pub fn all_dispatches() -> Vec<(InstructionSet, Dispatch)> {
    InstructionSet::available().into_iter().map(|set| (set, Dispatch::new(set).unwrap())).collect()
}

/// A CPU for every instruction set and for 1, 2 and 4 threads; the first is the plainest.
pub fn all_cpus() -> &'static [Cpu] {
    static CPUS: OnceLock<Vec<Cpu>> = OnceLock::new();
    CPUS.get_or_init(|| cpus_with(Arithmetic::Fast))
}

/// [`all_cpus`] with exact arithmetic.
pub fn exact_cpus() -> &'static [Cpu] {
    static CPUS: OnceLock<Vec<Cpu>> = OnceLock::new();
    CPUS.get_or_init(|| cpus_with(Arithmetic::Exact))
}

fn cpus_with(arithmetic: Arithmetic) -> Vec<Cpu> {
    let cpu = |set, n| Cpu::with_instruction_set(n, set).unwrap().with_arithmetic(arithmetic);
    InstructionSet::available()
        .into_iter()
        .flat_map(|set| [1, 2, 4].map(|threads| cpu(set, threads)))
        .collect()
}

/// The best CPU with two threads.
pub fn best_cpu() -> &'static Cpu {
    &all_cpus()[all_cpus().len() - 2]
}

/// [`best_cpu`] with exact arithmetic.
pub fn best_exact_cpu() -> &'static Cpu {
    &exact_cpus()[exact_cpus().len() - 2]
}

/// One of every weight format.
pub const FORMATS: [WeightFormat; 8] = [
    WeightFormat::F32,
    WeightFormat::Bf16,
    WeightFormat::Int8 { group: 32 },
    WeightFormat::Int8 { group: 64 },
    WeightFormat::Int8 { group: 128 },
    WeightFormat::Int4 { group: 32 },
    WeightFormat::Int4 { group: 64 },
    WeightFormat::Int4 { group: 128 },
];

/// Any of [`FORMATS`].
pub fn any_format() -> impl Strategy<Value = WeightFormat> {
    prop::sample::select(FORMATS.to_vec())
}

/// Sizes that divide nothing, and some that do.
pub fn any_size() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 129, 192])
}

/// A small generator of repeatable values (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    pub fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// `count` of [`Random::value`].
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }

    /// A tensor of [`Random::value`].
    pub fn tensor(&mut self, rows: usize, cols: usize) -> Tensor {
        Tensor::from_values(&self.values(rows * cols), cols).unwrap()
    }

    /// A stack of matrices of [`Random::value`].
    pub fn matrix(
        &mut self,
        format: WeightFormat,
        stack: usize,
        rows: usize,
        cols: usize,
    ) -> PackedMatrix {
        pack(&self.values(stack * rows * cols), format, stack, rows, cols)
    }
}

/// Packs plain weights; the integer formats round to the group's largest magnitude.
pub fn pack(
    weights: &[f32],
    format: WeightFormat,
    stack: usize,
    rows: usize,
    cols: usize,
) -> PackedMatrix {
    let panel_bytes = format.panel_bytes(cols);
    let mut bytes = AlignedBytes::zeroed(stack * format.matrix_bytes(rows, cols).unwrap()).unwrap();
    let mut panels = bytes.chunks_exact_mut(panel_bytes);
    for matrix in weights.chunks_exact(rows * cols) {
        for rows in matrix.chunks(PANEL_ROWS * cols) {
            let panel = panels.next().unwrap();
            match format.group() {
                None => format.encode_float_panel(rows, cols, panel),
                Some(group) => encode_integers(format, group, rows, cols, panel),
            }
        }
    }
    PackedMatrix::new(format, stack, rows, cols, bytes.into()).unwrap()
}

fn encode_integers(
    format: WeightFormat,
    group: usize,
    rows: &[f32],
    cols: usize,
    panel: &mut [u8],
) {
    let largest_code = if matches!(format, WeightFormat::Int8 { .. }) { 127.0 } else { 7.0 };
    let padded = format.padded_cols(cols);
    let mut codes = vec![0i8; PANEL_ROWS * padded];
    let mut scales = vec![bf16::ZERO; PANEL_ROWS * (padded / group)];
    for (r, row) in rows.chunks_exact(cols).enumerate() {
        for (g, weights) in row.chunks(group).enumerate() {
            let largest = weights.iter().fold(0.0f32, |m, w| m.max(w.abs()));
            let scale = bf16::from_f32(largest / largest_code);
            scales[r * (padded / group) + g] = scale;
            for (i, weight) in weights.iter().enumerate() {
                let code = (weight / scale.to_f32()).round();
                let lowest = if largest_code == 7.0 { -8.0 } else { -127.0 };
                codes[r * padded + g * group + i] = code.clamp(lowest, largest_code) as i8;
            }
        }
    }
    format.encode_integer_panel(&codes, &scales, cols, panel);
}

/// How many floats lie between two floats.
pub fn distance(a: f32, b: f32) -> u64 {
    let ordered = |x: f32| {
        let bits = x.to_bits() as i32 as i64;
        if bits < 0 {
            i32::MIN as i64 - bits
        } else {
            bits
        }
    };
    ordered(a).abs_diff(ordered(b))
}

/// Panics with the first difference unless the bits are equal. Whatever is not a
/// number equals whatever is not a number.
#[track_caller]
pub fn assert_bits(what: &str, expected: &[f32], got: &[f32]) {
    assert_eq!(expected.len(), got.len(), "{what}: number of values");
    let differs = |(e, g): (&f32, &f32)| e.to_bits() != g.to_bits() && !(e.is_nan() && g.is_nan());
    if let Some(i) = expected.iter().zip(got).position(differs) {
        let count = expected.iter().zip(got).filter(|&(e, g)| differs((e, g))).count();
        panic!(
            "{what}: value {i} is {}, not {}; {count} of {} values differ",
            got[i],
            expected[i],
            got.len()
        );
    }
}

/// Panics with the largest difference unless every value is within `tolerance`
/// of the largest expected magnitude.
#[track_caller]
pub fn assert_close(what: &str, expected: &[f64], got: &[f32], tolerance: f64) {
    assert_eq!(expected.len(), got.len(), "{what}: number of values");
    let size = expected.iter().fold(1e-30f64, |m, e| m.max(e.abs()));
    for (i, (&e, &g)) in expected.iter().zip(got).enumerate() {
        let error = (g as f64 - e).abs() / size;
        assert!(error <= tolerance, "{what}: value {i} is {g}, not {e} (error {error:.2e})");
    }
}
