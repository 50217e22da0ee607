//! Random weights, made in the order in which a panel stores them.
//!
//! Codes are uniform over what the format can hold, so a scale of
//! `deviation / root mean square of the codes` gives the wanted deviation. Each
//! scale has a random sign: the codes of int4 are not symmetric, the weights are.

use half::bf16;
use llama4rs_tensor::WeightFormat;

/// Root mean square of the codes -8..=7.
const INT4_RMS: f32 = 4.636809;

/// Root mean square of the codes -127..=127 where 0 comes twice as often as the others.
const INT8_RMS: f32 = 73.46768;

/// Highest value over the deviation of numbers that are uniform around 0.
const UNIFORM_PEAK: f32 = 1.732_050_8;

/// The random numbers of one tensor.
pub(crate) struct RandomTensor {
    key: u64,
    deviation: f32,
}

impl RandomTensor {
    /// Numbers that depend on `seed` and `name`.
    pub fn new(seed: u64, name: &str, deviation: f32) -> Self {
        let digest = blake3::hash(format!("{seed} {name}").as_bytes());
        let mut key = [0; 8];
        key.copy_from_slice(&digest.as_bytes()[..8]);
        Self { key: u64::from_le_bytes(key), deviation }
    }

    /// Values around 1, for norms.
    pub fn around_one(&self, count: usize) -> Vec<f32> {
        let words = Words::new(self.key, 0);
        let peak = self.deviation * UNIFORM_PEAK;
        (0..count as u64).map(|n| 1.0 + uniform(words.word(n) as u32, peak)).collect()
    }

    /// Panel `number` of all panels of the stack; no row or input of it is padding.
    pub fn panel(&self, format: WeightFormat, cols: usize, number: usize, panel: &mut [u8]) {
        let words = Words::new(self.key, number as u64 + 1);
        let (codes, scales) = panel.split_at_mut(format.panel_code_bytes(cols));
        for (n, bytes) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *bytes = words.word(n as u64).to_le_bytes();
        }
        let peak = self.deviation * UNIFORM_PEAK;
        match format {
            WeightFormat::F32 => {
                for bytes in codes.as_chunks_mut().0 {
                    *bytes = uniform(u32::from_le_bytes(*bytes), peak).to_le_bytes();
                }
            }
            WeightFormat::Bf16 => {
                for bytes in codes.as_chunks_mut::<2>().0 {
                    let value = uniform((u16::from_le_bytes(*bytes) as u32) << 16, peak);
                    *bytes = ((value.to_bits() >> 16) as u16).to_le_bytes();
                }
            }
            WeightFormat::Int8 { .. } => {
                // -128 is not a code.
                codes.iter_mut().for_each(|byte| *byte = if *byte == 0 { 128 } else { *byte });
                self.scales(&words, INT8_RMS, scales);
            }
            WeightFormat::Int4 { .. } => self.scales(&words, INT4_RMS, scales),
        }
    }

    fn scales(&self, words: &Words, rms: f32, scales: &mut [u8]) {
        let scale = bf16::from_f32(self.deviation / rms);
        for (n, bytes) in scales.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let negative = words.word(!(n as u64)) & 1 == 1;
            *bytes = if negative { -scale } else { scale }.to_le_bytes();
        }
    }
}

/// Uniform in `-peak..peak`.
fn uniform(word: u32, peak: f32) -> f32 {
    word as i32 as f32 * (peak / 2f32.powi(31))
}

/// A sequence of random words of which any can be had at once (SplitMix64).
struct Words(u64);

impl Words {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    fn new(key: u64, stream: u64) -> Self {
        Self(mix(key ^ mix(stream.wrapping_mul(Self::STEP))))
    }

    fn word(&self, n: u64) -> u64 {
        mix(self.0.wrapping_add(n.wrapping_mul(Self::STEP)))
    }
}

fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_mean_and_the_deviation_that_were_asked_for() {
        let cols = 512;
        for name in ["f32", "bf16", "int8/g32", "int8/g64", "int4/g32", "int4/g128"] {
            let format: WeightFormat = name.parse().unwrap();
            let random = RandomTensor::new(3, "w", 0.25);
            let mut values = Vec::new();
            for p in 0..8 {
                let mut panel = vec![0; format.panel_bytes(cols)];
                random.panel(format, cols, p, &mut panel);
                values.extend(format.decode(&panel, 16, cols));
            }
            let count = values.len() as f64;
            let mean = values.iter().map(|&w| w as f64).sum::<f64>() / count;
            let square = values.iter().map(|&w| w as f64 * w as f64).sum::<f64>() / count;
            assert!(mean.abs() < 0.01, "{name}: mean {mean}");
            assert!((square.sqrt() - 0.25).abs() < 0.005, "{name}: {}", square.sqrt());
        }
    }

    #[test]
    fn panels_differ_and_codes_are_legal() {
        let format: WeightFormat = "int8".parse().unwrap();
        let random = RandomTensor::new(0, "w", 1.0);
        let mut panels = [(); 2].map(|()| vec![0; format.panel_bytes(1024)]);
        for (p, panel) in panels.iter_mut().enumerate() {
            random.panel(format, 1024, p, panel);
            assert!(!panel[..format.panel_code_bytes(1024)].contains(&0));
        }
        assert_ne!(panels[0], panels[1]);
    }
}
