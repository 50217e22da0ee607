//! Sixteen rows of weights -> one panel.
//!
//! The input is interleaved as a panel is: `lanes[i][r]` is input `i` of row `r`,
//! so every loop runs over 16 rows at once and no sum crosses lanes. The same
//! code is compiled for several instruction sets; as it neither fuses nor
//! reorders operations, each gives the same bits.
//!
//! **int4.** Per row and group the scale is chosen to minimise the squared
//! error. Candidates put the weight of largest magnitude near code -8, the
//! longer end of the range: `scale = -peak / 8 * factor`. The best of them is
//! refined by least squares for its own codes. Each candidate is rounded to bf16
//! *before* its codes are chosen, so what is compared is what is stored.
//!
//! **int8.** `scale = |peak| / 127`, rounded up in bf16 so that nothing clips.

use half::bf16;
use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::WeightFormat;

/// One input of the 16 rows of a panel.
pub(crate) type Lanes = [f32; PANEL_ROWS];

const ZERO: Lanes = [0.0; PANEL_ROWS];

/// Where the weight of largest magnitude may land, as a fraction of code -8. The first
/// serves where errors are beyond single precision and cannot be compared.
const FACTORS: [f32; 12] = [1.0, 0.95, 1.05, 1.1, 0.9, 0.86, 0.82, 0.78, 0.74, 0.7, 0.66, 0.62];

/// Times that the best scale is refitted to its codes.
const REFITS: usize = 2;

/// Scales below this are zero: their reciprocals would overflow.
const TINY: f32 = 1e-36;

/// The largest bf16: what would round to infinity stays here.
const BF16_MAX: f32 = 3.3895314e38;

/// Added to a float of small magnitude, leaves it rounded to a whole number in the low bits.
const ROUND: f32 = 12582912.0;

/// What packing one panel lost, and whether its input was sound.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PanelStats {
    /// Sum of the squared differences.
    pub error: f64,
    /// Sum of the squared weights.
    pub norm: f64,
    /// A row (0..16) that holds NaN or infinity.
    pub not_finite: Option<usize>,
}

/// Packs `lanes` (the inputs padded as `format` needs) into `panel`.
pub(crate) fn pack_panel(format: WeightFormat, lanes: &[Lanes], panel: &mut [u8]) -> PanelStats {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: the processor has the features that the function is compiled for.
            return unsafe { pack_panel_avx512(format, lanes, panel) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { pack_panel_avx2(format, lanes, panel) };
        }
    }
    pack_panel_with(format, lanes, panel)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn pack_panel_avx512(format: WeightFormat, lanes: &[Lanes], panel: &mut [u8]) -> PanelStats {
    pack_panel_with(format, lanes, panel)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn pack_panel_avx2(format: WeightFormat, lanes: &[Lanes], panel: &mut [u8]) -> PanelStats {
    pack_panel_with(format, lanes, panel)
}

#[inline(always)]
fn pack_panel_with(format: WeightFormat, lanes: &[Lanes], panel: &mut [u8]) -> PanelStats {
    let mut stats = PanelStats { not_finite: first_not_finite(lanes), ..PanelStats::default() };
    let Some(group) = format.group() else {
        match format {
            WeightFormat::F32 => pack_f32(lanes, panel, &mut stats),
            _ => pack_bf16(lanes, panel, &mut stats),
        }
        return stats;
    };
    let (codes, scales) = panel.split_at_mut(lanes.len() / format.line_cols() * 64);
    let groups = lanes.chunks_exact(group);
    let lines = codes.chunks_exact_mut(group / format.line_cols() * 64);
    for ((lanes, lines), scales) in groups.zip(lines).zip(scales.chunks_exact_mut(32)) {
        let scale = match format {
            WeightFormat::Int4 { .. } => int4_scale(lanes),
            _ => int8_scale(lanes),
        };
        match format {
            WeightFormat::Int4 { .. } => write_int4(lanes, &scale, lines, &mut stats),
            _ => write_int8(lanes, &scale, lines, &mut stats),
        }
        for (bytes, scale) in scales.chunks_exact_mut(2).zip(scale) {
            bytes.copy_from_slice(&bf16::from_f32(scale).to_le_bytes());
        }
    }
    stats
}

/// A lane with a NaN or an infinity, found by the exponent bits.
#[inline(always)]
fn first_not_finite(lanes: &[Lanes]) -> Option<usize> {
    let mut largest = [0u32; PANEL_ROWS];
    for x in lanes {
        for r in 0..PANEL_ROWS {
            largest[r] = largest[r].max(x[r].to_bits() & 0x7fff_ffff);
        }
    }
    largest.iter().position(|&bits| bits >= 0x7f80_0000)
}

/// The bf16 scale of every row that loses least.
#[inline(always)]
fn int4_scale(lanes: &[Lanes]) -> Lanes {
    let peak = peak(lanes);
    let mut best = Candidate::EMPTY;
    for factor in FACTORS {
        best.challenge(lanes, &map(&peak, |peak| round_bf16(peak * (factor * -0.125))));
    }
    for _ in 0..REFITS {
        let refit = map(&best.fit, round_bf16);
        best.challenge(lanes, &refit);
    }
    best.scale
}

/// The best scales so far, their errors, and the least-squares scales of their codes.
struct Candidate {
    scale: Lanes,
    error: Lanes,
    fit: Lanes,
}

impl Candidate {
    const EMPTY: Self = Self { scale: ZERO, error: [f32::INFINITY; PANEL_ROWS], fit: ZERO };

    /// Takes over `scale` in the rows where it loses less.
    #[inline(always)]
    fn challenge(&mut self, lanes: &[Lanes], scale: &Lanes) {
        let inverse = map(scale, inverse);
        let (mut error, mut along, mut square) = (ZERO, ZERO, ZERO);
        for x in lanes {
            for r in 0..PANEL_ROWS {
                let code = clamp(x[r] * inverse[r], -8.0, 7.0) + ROUND - ROUND;
                let lost = x[r] - code * scale[r];
                error[r] += lost * lost;
                along[r] += code * x[r];
                square[r] += code * code;
            }
        }
        for r in 0..PANEL_ROWS {
            // The first candidate wins over an overflowing error, too.
            let better = error[r] < self.error[r] || self.scale[r] == 0.0;
            self.scale[r] = if better { scale[r] } else { self.scale[r] };
            self.error[r] = if better { error[r] } else { self.error[r] };
            let fit = if square[r] > 0.0 { along[r] / square[r] } else { 0.0 };
            self.fit[r] = if better { fit } else { self.fit[r] };
        }
    }
}

#[inline(always)]
fn int8_scale(lanes: &[Lanes]) -> Lanes {
    map(&peak(lanes), |peak| {
        let exact = peak.abs() / 127.0;
        f32::from_bits((exact.to_bits() + 0xffff) & 0xffff_0000)
    })
}

#[inline(always)]
fn write_int4(lanes: &[Lanes], scale: &Lanes, lines: &mut [u8], stats: &mut PanelStats) {
    let (scale, inverse) = usable(scale);
    let (mut error, mut norm) = (ZERO, ZERO);
    for (x, line) in lanes.chunks_exact(8).zip(lines.chunks_exact_mut(64)) {
        let mut words = [0u32; PANEL_ROWS];
        for b in 0..8 {
            // Input b is the low nibble of byte b, input 4 + b its high nibble.
            let shift = b % 4 * 8 + b / 4 * 4;
            for r in 0..PANEL_ROWS {
                let rounded = clamp(x[b][r] * inverse[r], -8.0, 7.0) + ROUND;
                let lost = x[b][r] - (rounded - ROUND) * scale[r];
                error[r] += lost * lost;
                norm[r] += x[b][r] * x[b][r];
                words[r] |= (rounded.to_bits().wrapping_add(8) & 15) << shift;
            }
        }
        write_words(&words, line);
    }
    stats.add(&error, &norm);
}

#[inline(always)]
fn write_int8(lanes: &[Lanes], scale: &Lanes, lines: &mut [u8], stats: &mut PanelStats) {
    let (scale, inverse) = usable(scale);
    let (mut error, mut norm) = (ZERO, ZERO);
    for (x, line) in lanes.chunks_exact(4).zip(lines.chunks_exact_mut(64)) {
        let mut words = [0u32; PANEL_ROWS];
        for b in 0..4 {
            for r in 0..PANEL_ROWS {
                let rounded = clamp(x[b][r] * inverse[r], -127.0, 127.0) + ROUND;
                let lost = x[b][r] - (rounded - ROUND) * scale[r];
                error[r] += lost * lost;
                norm[r] += x[b][r] * x[b][r];
                words[r] |= (rounded.to_bits().wrapping_add(128) & 255) << (b * 8);
            }
        }
        write_words(&words, line);
    }
    stats.add(&error, &norm);
}

#[inline(always)]
fn pack_f32(lanes: &[Lanes], panel: &mut [u8], stats: &mut PanelStats) {
    for (x, line) in lanes.iter().zip(panel.chunks_exact_mut(64)) {
        write_words(&x.map(f32::to_bits), line);
    }
    for x in lanes.chunks(64) {
        let mut norm = ZERO;
        for x in x {
            for r in 0..PANEL_ROWS {
                norm[r] += x[r] * x[r];
            }
        }
        stats.add(&ZERO, &norm);
    }
}

#[inline(always)]
fn pack_bf16(lanes: &[Lanes], panel: &mut [u8], stats: &mut PanelStats) {
    // 32 lines of two inputs: short enough for sums in single precision.
    for (x, lines) in lanes.chunks(64).zip(panel.chunks_mut(32 * 64)) {
        let (mut error, mut norm) = (ZERO, ZERO);
        for (x, line) in x.chunks_exact(2).zip(lines.chunks_exact_mut(64)) {
            let mut words = [0u32; PANEL_ROWS];
            for b in 0..2 {
                for r in 0..PANEL_ROWS {
                    let rounded = clamp(round_bf16(x[b][r]), -BF16_MAX, BF16_MAX);
                    let lost = x[b][r] - rounded;
                    error[r] += lost * lost;
                    norm[r] += x[b][r] * x[b][r];
                    words[r] |= rounded.to_bits() >> 16 << (b * 16);
                }
            }
            write_words(&words, line);
        }
        stats.add(&error, &norm);
    }
}

impl PanelStats {
    #[inline(always)]
    fn add(&mut self, error: &Lanes, norm: &Lanes) {
        for r in 0..PANEL_ROWS {
            self.error += error[r] as f64;
            self.norm += norm[r] as f64;
        }
    }
}

/// The signed weight of largest magnitude of every row.
#[inline(always)]
fn peak(lanes: &[Lanes]) -> Lanes {
    let mut peak = ZERO;
    for x in lanes {
        for r in 0..PANEL_ROWS {
            peak[r] = if x[r].abs() > peak[r].abs() { x[r] } else { peak[r] };
        }
    }
    peak
}

/// Scales with the tiny ones zeroed, and their reciprocals.
#[inline(always)]
fn usable(scale: &Lanes) -> (Lanes, Lanes) {
    (map(scale, |s| if s.abs() > TINY { s } else { 0.0 }), map(scale, inverse))
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale.abs() > TINY {
        1.0 / scale
    } else {
        0.0
    }
}

/// The nearest bf16, ties to even; the argument is finite.
#[inline(always)]
fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// Comparisons in the form that is one instruction each.
#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high {
        x
    } else {
        high
    }
}

#[inline(always)]
fn map(lanes: &Lanes, f: impl Fn(f32) -> f32) -> Lanes {
    let mut out = ZERO;
    for r in 0..PANEL_ROWS {
        out[r] = f(lanes[r]);
    }
    out
}

#[inline(always)]
fn write_words(words: &[u32; PANEL_ROWS], line: &mut [u8]) {
    for (bytes, word) in line.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llama4rs_tensor::format::GROUP_SIZES;
    use proptest::prelude::*;

    /// Standard normal numbers times 0.02 (Box and Muller).
    fn gaussian(count: usize, seed: u64) -> Vec<Lanes> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 40) as f32 + 0.5) / (1u64 << 24) as f32
        };
        let mut normal = || {
            let (radius, angle) = (uniform(), uniform() * std::f32::consts::TAU);
            (-2.0 * radius.ln()).sqrt() * angle.cos()
        };
        (0..count).map(|_| std::array::from_fn(|_| normal() * 0.02)).collect()
    }

    fn pack(format: WeightFormat, lanes: &[Lanes]) -> (Vec<u8>, PanelStats) {
        let mut panel = vec![0; format.panel_bytes(lanes.len())];
        let stats = pack_panel(format, lanes, &mut panel);
        (panel, stats)
    }

    fn relative(stats: &PanelStats) -> f64 {
        (stats.error / stats.norm).sqrt()
    }

    #[test]
    fn int4_errors_on_gaussian_weights_are_the_promised_ones() {
        let lanes = gaussian(8192, 1);
        for (group, bound) in [(32, 0.082), (64, 0.091), (128, 0.098)] {
            let (_, stats) = pack(WeightFormat::Int4 { group }, &lanes);
            println!("int4/g{group}: {:.5}", relative(&stats));
            assert!(relative(&stats) <= bound, "g{group}: {}", relative(&stats));
        }
        for group in GROUP_SIZES {
            let (_, stats) = pack(WeightFormat::Int8 { group }, &lanes);
            println!("int8/g{group}: {:.5}", relative(&stats));
            assert!(relative(&stats) <= 0.008, "g{group}: {}", relative(&stats));
        }
    }

    #[test]
    fn zeros_denormals_and_giants_survive() {
        for format in ["int4/g32", "int8/g32", "bf16", "f32"] {
            let format: WeightFormat = format.parse().unwrap();
            for value in [0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e-30, 1e30, -3e38] {
                let mut lanes = vec![ZERO; 64];
                lanes[3] = [value; PANEL_ROWS];
                let (panel, stats) = pack(format, &lanes);
                assert_eq!(stats.not_finite, None);
                let decoded = format.decode(&panel, PANEL_ROWS, 64);
                for (i, got) in decoded.into_iter().enumerate() {
                    let expected = lanes[i % 64][i / 64];
                    // What is far below single precision's range may vanish.
                    let bound = (expected.abs() * 0.01).max(1e-36);
                    assert!((got - expected).abs() <= bound, "{format} {value:e}: {got:e} at {i}");
                }
            }
        }
    }

    #[test]
    fn the_row_of_a_bad_weight_is_found() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut lanes = gaussian(64, 3);
            lanes[63][11] = bad;
            for format in ["int4/g32", "int8/g64", "bf16", "f32"] {
                let (_, stats) = pack(format.parse().unwrap(), &lanes);
                assert_eq!(stats.not_finite, Some(11));
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_was_measured(
            seed in any::<u64>(),
            groups in 1usize..4,
            group in prop::sample::select(GROUP_SIZES.to_vec()),
            name in prop::sample::select(vec!["int4", "int8", "bf16", "f32"]),
            spread in -20i32..20,
        ) {
            let format = match name {
                "int4" => WeightFormat::Int4 { group },
                "int8" => WeightFormat::Int8 { group },
                plain => plain.parse().unwrap(),
            };
            let mut lanes = gaussian(groups * group, seed);
            for (i, lane) in lanes.iter_mut().enumerate() {
                // Rows of different size, one of them zero, and an outlier now and then.
                *lane = std::array::from_fn(|r| match (r, i % 41) {
                    (5, _) => 0.0,
                    (6, 7) => lane[r] * 50.0,
                    _ => lane[r] * 2f32.powi(spread * r as i32 / 8),
                });
            }
            let (panel, stats) = pack(format, &lanes);
            let mut baseline = vec![0; panel.len()];
            let slow = pack_panel_with(format, &lanes, &mut baseline);
            prop_assert!(panel == baseline, "instruction sets differ");
            prop_assert_eq!((stats.error, stats.norm), (slow.error, slow.norm));
            let (mut error, mut norm) = (0.0, 0.0);
            for (i, got) in format.decode(&panel, PANEL_ROWS, lanes.len()).into_iter().enumerate() {
                let (r, col) = (i / lanes.len(), i % lanes.len());
                let lost = (lanes[col][r] - got) as f64;
                error += lost * lost;
                norm += (lanes[col][r] as f64).powi(2);
                let peak = lanes[col / group * group..][..group.min(lanes.len() - col / group * group)]
                    .iter()
                    .fold(0f32, |peak, lane| peak.max(lane[r].abs()));
                // Half a step, the peak's side of int4 a whole one where clipping pays.
                let bound = match format {
                    WeightFormat::F32 => 0.0,
                    WeightFormat::Bf16 => lanes[col][r].abs() / 256.0,
                    WeightFormat::Int8 { .. } => peak / 127.0 * 0.51,
                    WeightFormat::Int4 { .. } => peak * 0.5,
                };
                prop_assert!(lost.abs() as f32 <= bound, "{format} row {r} input {col}: {lost}");
            }
            prop_assert!((stats.error - error).abs() <= 1e-4 * error + 1e-12 * norm);
            prop_assert!((stats.norm - norm).abs() <= 1e-4 * norm);
        }
    }

    #[test]
    #[ignore = "a measurement: cargo test --release -p llama4rs-checkpoint -- --ignored --nocapture"]
    fn throughput() {
        let lanes = gaussian(5120, 1);
        for name in ["int4/g32", "int4/g64", "int4/g128", "int8", "bf16", "f32"] {
            let format: WeightFormat = name.parse().unwrap();
            let mut panel = vec![0; format.panel_bytes(lanes.len())];
            for (kind, pack) in [
                ("dispatched", pack_panel as fn(_, &[Lanes], &mut [u8]) -> _),
                ("baseline", |f, l, p| pack_panel_with(f, l, p)),
            ] {
                let start = std::time::Instant::now();
                let mut weights = 0;
                while start.elapsed().as_secs_f64() < 0.5 {
                    std::hint::black_box(pack(format, std::hint::black_box(&lanes), &mut panel));
                    weights += lanes.len() * PANEL_ROWS;
                }
                let rate = weights as f64 / start.elapsed().as_secs_f64() / 1e6;
                println!("{name} {kind}: {rate:.0} Mweights/s per core");
            }
        }
    }
}
