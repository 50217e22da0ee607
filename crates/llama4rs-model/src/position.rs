//! What a token's position does: rotary angles and attention temperature.
//!
//! Both are computed per step, in double precision, for the step's tokens only;
//! no table grows with the context, and ten million is as good as ten.

use llama4rs_checkpoint::{RopeScaling, TemperatureTuning, TextConfig};

/// Rotary frequencies of one model, radians per token for each pair of a head.
///
/// `f_j = theta^(-2j/d)` (arXiv 2104.09864), stretched for long contexts as in
/// Llama 3.1's reference implementation when the checkpoint says so.
#[derive(Clone, Debug)]
pub struct RotaryFrequencies(Vec<f64>);

impl RotaryFrequencies {
    /// The frequencies of a model.
    pub fn new(config: &TextConfig) -> Self {
        let pairs = config.head_dim / 2;
        let frequency = |j: usize| config.rope_theta.powf(-(j as f64) / pairs as f64);
        let stretch = |f| config.rope_scaling.as_ref().map_or(f, |scaling| stretched(f, scaling));
        Self((0..pairs).map(frequency).map(stretch).collect())
    }

    /// Radians per token, one per pair.
    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }

    /// Appends `cos, sin` of each pair at `position`.
    pub fn rotation(&self, position: usize, out: &mut Vec<f32>) {
        for frequency in &self.0 {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            out.extend([cos as f32, sin as f32]);
        }
    }
}

/// Llama 3.1's scaling: long wavelengths are stretched by `factor`, short ones
/// kept, those between blended. With `low == high` nothing is between.
fn stretched(frequency: f64, scaling: &RopeScaling) -> f64 {
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings,
    } = *scaling;
    let turns = original_max_position_embeddings as f64 * frequency / std::f64::consts::TAU;
    if turns < low_freq_factor {
        frequency / factor
    } else if turns > high_freq_factor || high_freq_factor == low_freq_factor {
        frequency
    } else {
        let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// The factor of a query at `position` in layers without RoPE:
/// `1 + attn_scale · ln(1 + floor((position + 1) / floor_scale))`
/// (arXiv 2501.19399; Meta's and transformers' Llama 4).
pub fn query_scale(tuning: &TemperatureTuning, position: usize) -> f32 {
    let steps = ((position + 1) as f64 / tuning.floor_scale).floor();
    (1.0 + tuning.attn_scale * steps.ln_1p()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use llama4rs_checkpoint::Config;
    use std::path::Path;

    fn text(rope: &str) -> TextConfig {
        let json = format!(
            r#"{{"model_type": "llama4_text", "hidden_size": 256, "vocab_size": 8 {rope}}}"#
        );
        Config::from_json(&json, Path::new("test")).unwrap().text
    }

    #[test]
    fn scout_keeps_35_frequencies_and_divides_29() {
        let plain = RotaryFrequencies::new(&text(""));
        let scout = RotaryFrequencies::new(&text(
            r#", "rope_scaling": {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0,
                "high_freq_factor": 1.0, "original_max_position_embeddings": 8192}"#,
        ));
        for (j, (p, s)) in plain.as_slice().iter().zip(scout.as_slice()).enumerate() {
            assert_eq!(*s, if j < 35 { *p } else { p / 16.0 }, "pair {j}");
        }
        assert!((scout.as_slice()[34] - 9.3847e-4).abs() < 1e-8);
        assert!((scout.as_slice()[63] - 1.5345e-7).abs() < 1e-11);
    }

    /// What attention sees of RoPE is the rotation between two positions. Within
    /// a chunk, chunk-local rotations give the one of the absolute positions.
    #[test]
    fn rotations_within_a_chunk_are_right_up_to_ten_million() {
        let frequencies = RotaryFrequencies::new(&text(""));
        let chunk = 8192;
        for start in [0usize, 1 << 20, 10_485_760 - 8192, 100_000_000 / 8192 * 8192] {
            for (a, b) in [(0, 8191), (17, 18), (4000, 5000), (8190, 8191)] {
                let (mut left, mut right) = (Vec::new(), Vec::new());
                frequencies.rotation((start + a) % chunk, &mut left);
                frequencies.rotation((start + b) % chunk, &mut right);
                for (j, f) in frequencies.as_slice().iter().enumerate() {
                    let [ca, sa, cb, sb] =
                        [left[2 * j], left[2 * j + 1], right[2 * j], right[2 * j + 1]];
                    let turned = (b as f64 - a as f64) * f;
                    assert!(((ca * cb + sa * sb) as f64 - turned.cos()).abs() < 3e-7);
                    assert!(((ca * sb - sa * cb) as f64 - turned.sin()).abs() < 3e-7);
                }
            }
        }
    }

    #[test]
    fn temperature_follows_the_table() {
        let tuning = TemperatureTuning { floor_scale: 8192.0, attn_scale: 0.1 };
        for (position, expected) in [
            (0, 1.0),
            (8190, 1.0),
            (8191, 1.06931),
            (65535, 1.21972),
            (131071, 1.28332),
            (1048575, 1.48598),
            (10485759, 1.71554),
        ] {
            let scale = query_scale(&tuning, position);
            assert!((scale - expected).abs() < 5e-6, "{position}: {scale}");
        }
    }
}
