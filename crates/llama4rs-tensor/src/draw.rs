//! How a token is chosen from a row of logits.

/// One choice. The rule is that of the engine's sampler, which every device follows bit for bit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// 64 random bits.
    pub random: u64,
    /// Logits are divided by it; 0 takes the largest.
    pub temperature: f32,
    /// Mass that is kept; 1 keeps all.
    pub top_p: f32,
    /// Least share of the best token's probability.
    pub min_p: f32,
    /// Tokens that are kept; 0 keeps all.
    pub top_k: u32,
}

impl Draw {
    /// Takes the largest logit.
    pub const LARGEST: Self =
        Self { random: 0, temperature: 0.0, top_p: 1.0, min_p: 0.0, top_k: 0 };
    /// What stands for a token where a logit is no finite number.
    pub const NO_TOKEN: u32 = u32::MAX;

    /// `log2(e) / temperature`, finite: exponents of two for each unit of a logit.
    pub fn powers_of_two(&self) -> f32 {
        (std::f32::consts::LOG2_E / self.temperature).min(f32::MAX)
    }

    /// Whether the options have a meaning.
    pub fn is_valid(&self) -> bool {
        let Self { temperature, top_p, min_p, .. } = *self;
        temperature >= 0.0
            && temperature.is_finite()
            && top_p > 0.0
            && top_p <= 1.0
            && (0.0..=1.0).contains(&min_p)
    }
}
