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
