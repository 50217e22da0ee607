//! Logits to one token.
//!
//! The order is transformers': repetition penalty, temperature, top-k, top-p,
//! min-p, then one draw. The draw for token `n` of a request is a function of
//! its seed and `n` alone.
//!
//! Probabilities are counts of 2^-40 of the best token's, so every sum is exact, in any order,
//! and a device that follows the same rule draws the same token from the same logits.

use llama4rs_tensor::Draw;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result};

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// 0 takes the largest logit; else logits are divided by it.
    pub temperature: f32,
    /// Keeps the most likely tokens until the mass before a token exceeds this. 1 keeps all.
    pub top_p: f32,
    /// Keeps this many most likely tokens. 0 keeps all.
    pub top_k: usize,
    /// Drops tokens less likely than this share of the best one's probability.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen (arXiv 1909.05858).
    pub repetition_penalty: f32,
    /// Seed of the request's draws.
    pub seed: u64,
    /// `Some(n)`: report log probabilities of the choice and of the `n` best.
    pub logprobs: Option<usize>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            logprobs: None,
        }
    }
}

impl SamplingOptions {
    /// Refuses values without meaning, naming the accepted range.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, name: &str, range: &str, value: f32| match ok {
            true => Ok(()),
            false => Err(Error::Request(format!("{name} must be {range}, got {value}"))),
        };
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        check(temperature >= 0.0 && temperature.is_finite(), "temperature", ">= 0", temperature)?;
        check(top_p > 0.0 && top_p <= 1.0, "top_p", "in (0, 1]", top_p)?;
        check((0.0..=1.0).contains(&min_p), "min_p", "in [0, 1]", min_p)?;
        check(
            repetition_penalty > 0.0 && repetition_penalty.is_finite(),
            "repetition_penalty",
            "> 0",
            repetition_penalty,
        )
    }
}

/// The chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Its log probability under the model's own distribution, when asked for.
    pub logprob: Option<f32>,
    /// The best tokens and their log probabilities, best first, when asked for.
    pub top_logprobs: Option<Vec<(u32, f32)>>,
}

/// Chooses the tokens of one request.
#[derive(Debug)]
pub struct Sampler {
    options: SamplingOptions,
    /// Tokens that the repetition penalty applies to.
    seen: std::collections::BTreeSet<u32>,
    drawn: u64,
    /// Scratch: `(logit, token)`.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler for a request whose prompt is `prompt`.
    pub fn new(options: SamplingOptions, prompt: &[u32]) -> Self {
        let penalised = options.repetition_penalty != 1.0;
        Self {
            seen: if penalised { prompt.iter().copied().collect() } else { Default::default() },
            options,
            drawn: 0,
            candidates: Vec::new(),
        }
    }

    /// How the next token is drawn, if it depends on the logits alone and nothing else is asked for:
    /// then a device may draw it, for [`take`](Self::take).
    pub fn draw(&self) -> Option<Draw> {
        let Self { options, .. } = self;
        let plain = options.repetition_penalty == 1.0 && options.logprobs.is_none();
        plain.then(|| self.next_draw())
    }

    /// Takes the token that was drawn as [`draw`](Self::draw) says.
    pub fn take(&mut self, token: u32) -> Result<Choice> {
        if token == Draw::NO_TOKEN {
            return Err(Error::NotFinite);
        }
        self.drawn += 1;
        Ok(Choice { token, logprob: None, top_logprobs: None })
    }

    /// Chooses the next token from `logits` `[vocab]`.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Choice> {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(Error::NotFinite);
        }
        let report = self.options.logprobs.map(|n| LogProbs::new(logits, n));
        let token = self.choose(logits);
        if self.options.repetition_penalty != 1.0 {
            self.seen.insert(token);
        }
        self.drawn += 1;
        Ok(Choice {
            token,
            logprob: report.as_ref().map(|r| r.of(logits[token as usize])),
            top_logprobs: report.map(|r| r.top),
        })
    }

    fn next_draw(&self) -> Draw {
        let SamplingOptions { temperature, top_p, min_p, top_k, seed, .. } = self.options;
        let random = || {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_word_pos(2 * self.drawn as u128);
            rng.next_u64()
        };
        let random = if temperature == 0.0 { 0 } else { random() };
        let top_k = u32::try_from(top_k).unwrap_or(0);
        Draw { random, temperature, top_p, min_p, top_k }
    }

    fn choose(&mut self, logits: &[f32]) -> u32 {
        self.candidates.clear();
        self.candidates.extend(logits.iter().zip(0..).map(|(&logit, token)| (logit, token)));
        for &token in &self.seen {
            if let Some((logit, _)) = self.candidates.get_mut(token as usize) {
                let penalty = self.options.repetition_penalty;
                let scaled = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                // The difference of two infinities would be no number.
                *logit = scaled.clamp(f32::MIN, f32::MAX);
            }
        }
        let draw = self.next_draw();
        draw_from(&mut self.candidates, &draw)
    }
}

/// Larger logit first, then smaller id: a total order, so ties are settled too.
fn better(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

fn best(candidates: &[(f32, u32)]) -> u32 {
    candidates.iter().min_by(|a, b| better(a, b)).map_or(0, |&(_, token)| token)
}

/// Draws from the truncated distribution, the kept tokens taken by number.
fn draw_from(candidates: &mut Vec<(f32, u32)>, draw: &Draw) -> u32 {
    let best = best(candidates);
    if draw.temperature == 0.0 {
        return best;
    }
    let peak = candidates.iter().map(|c| c.0).fold(f32::NEG_INFINITY, f32::max);
    let powers = draw.powers_of_two();
    let mass = |logit: f32| mass((logit - peak) * powers);
    let top_k = draw.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, better);
        candidates.truncate(top_k);
    }
    if draw.top_p < 1.0 {
        let all: u64 = candidates.iter().map(|c| mass(c.0)).sum();
        keep_nucleus(candidates, (all as f64 * draw.top_p as f64) as u64, mass);
    }
    candidates.sort_unstable_by_key(|c| c.1);
    let least = (draw.min_p * UNIT as f32) as u64;
    let kept = || candidates.iter().map(|&(logit, token)| (mass(logit), token));
    let kept = || kept().filter(|&(mass, _)| mass >= least);
    let all: u64 = kept().map(|(mass, _)| mass).sum();
    let mut left = ((draw.random as u128 * all as u128) >> 64) as u64;
    for (mass, token) in kept() {
        if left < mass {
            return token;
        }
        left -= mass;
    }
    best
}

/// The best token's mass.
const UNIT: u64 = 1 << 40;

/// `2^x` in parts of [`UNIT`], rounded down, for `x <= 0`. Each operation is one of IEEE 754 in single
/// precision, in this order, so that devices get the same bits.
fn mass(x: f32) -> u64 {
    if x < -41.5 {
        return 0;
    }
    let whole = (x + 0.5).floor();
    let part = x - whole;
    let power = POWERS.iter().rev().fold(0.0f32, |sum, &term| sum * part + term);
    let scale = f32::from_bits(((127 + 40 + whole as i32) as u32) << 23);
    (power * scale) as u64
}

/// `ln(2)^k / k!`: 2^x for |x| <= 1/2 within 6e-9.
const POWERS: [f32; 8] = [
    1.0,
    std::f32::consts::LN_2,
    0.240_226_5,
    0.055_504_11,
    0.009_618_129,
    0.001_333_355_8,
    0.000_154_035_3,
    0.000_015_252_734,
];

/// Keeps the best candidates, best first, up to the one at which the mass before
/// it exceeds `goal`. Sorts only as many as it needs.
fn keep_nucleus(candidates: &mut Vec<(f32, u32)>, goal: u64, mass: impl Fn(f32) -> u64) {
    let mut sorted = 0;
    let mut before = 0;
    loop {
        let next = (sorted * 4).max(256).min(candidates.len());
        if next < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(next - sorted - 1, better);
        }
        candidates[sorted..next].sort_unstable_by(better);
        for index in sorted..next {
            if before > goal {
                candidates.truncate(index);
                return;
            }
            before += mass(candidates[index].0);
        }
        if next == candidates.len() {
            return;
        }
        sorted = next;
    }
}

/// Log probabilities under the model's own distribution (temperature 1).
struct LogProbs {
    log_sum: f64,
    top: Vec<(u32, f32)>,
}

impl LogProbs {
    fn new(logits: &[f32], count: usize) -> Self {
        let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        let sum: f64 = logits.iter().map(|&logit| (logit as f64 - peak).exp()).sum();
        let mut this = Self { log_sum: peak + sum.ln(), top: Vec::new() };
        let mut ranked: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
        let count = count.min(ranked.len());
        if count > 0 {
            ranked.select_nth_unstable_by(count - 1, better);
            ranked.truncate(count);
            ranked.sort_unstable_by(better);
            this.top = ranked.iter().map(|&(logit, token)| (token, this.of(logit))).collect();
        }
        this
    }

    fn of(&self, logit: f32) -> f32 {
        (logit as f64 - self.log_sum) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frequencies(logits: &[f32], options: &SamplingOptions, draws: usize) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        let mut sampler = Sampler::new(options.clone(), &[]);
        for _ in 0..draws {
            counts[sampler.sample(logits).unwrap().token as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [1.0f32, 0.0, -1.0, 2.0];
        let options = SamplingOptions { temperature: 0.8, seed: 3, ..Default::default() };
        let weights: Vec<f64> = logits.iter().map(|&l| (l as f64 / 0.8).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (seen, weight) in frequencies(&logits, &options, 40_000).iter().zip(&weights) {
            assert!((seen - weight / total).abs() < 0.01, "{seen} against {}", weight / total);
        }
    }

    #[test]
    fn truncations_keep_what_they_promise() {
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let logits = [4.0f32.ln(), 2.0f32.ln(), 0.0, 0.0];
        let base = SamplingOptions { temperature: 1.0, ..Default::default() };
        let kept = |options: SamplingOptions| -> Vec<bool> {
            frequencies(&logits, &options, 4000).iter().map(|&f| f > 0.0).collect()
        };
        assert_eq!(kept(base.clone()), [true, true, true, true]);
        assert_eq!(kept(SamplingOptions { top_k: 1, ..base.clone() }), [true, false, false, false]);
        // The mass before the second token is 0.5, which does not exceed 0.5.
        let top_p = |p| kept(SamplingOptions { top_p: p, ..base.clone() });
        assert_eq!(top_p(0.4), [true, false, false, false]);
        assert_eq!(top_p(0.6), [true, true, false, false]);
        assert_eq!(
            kept(SamplingOptions { min_p: 0.4, ..base.clone() }),
            [true, true, false, false]
        );
    }

    #[test]
    fn repetition_penalty_lowers_seen_tokens() {
        let options = SamplingOptions { repetition_penalty: 2.0, ..Default::default() };
        let mut sampler = Sampler::new(options, &[0]);
        assert_eq!(sampler.sample(&[3.0, 2.0, -1.0]).unwrap().token, 1);
        assert_eq!(sampler.sample(&[3.0, 2.0, 1.6]).unwrap().token, 2);
    }

    #[test]
    fn a_penalty_beyond_all_bounds_still_leaves_an_order() {
        for (repetition_penalty, logits) in [(1e-40, [0.5, 1.0]), (f32::MAX, [-3.0, -1.0])] {
            for min_p in [0.0, 0.5] {
                let options = SamplingOptions {
                    temperature: 1e-3,
                    repetition_penalty,
                    min_p,
                    ..Default::default()
                };
                // The first token's logit leaves the range in one case, the second's in the other.
                let seen = u32::from(repetition_penalty < 1.0);
                let mut sampler = Sampler::new(options, &[seen]);
                assert_eq!(sampler.sample(&logits).unwrap().token, 1, "{repetition_penalty}");
            }
        }
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let options =
            SamplingOptions { temperature: 2.0, top_k: 1, logprobs: Some(2), ..Default::default() };
        let choice = Sampler::new(options, &[]).sample(&[0.0, 1.0, 3.0]).unwrap();
        let log_sum = (1.0f64 + 1f64.exp() + 3f64.exp()).ln();
        assert!((choice.logprob.unwrap() as f64 - (3.0 - log_sum)).abs() < 1e-6);
        let top = choice.top_logprobs.unwrap();
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn not_a_number_is_an_error() {
        let mut sampler = Sampler::new(SamplingOptions::default(), &[]);
        assert!(matches!(sampler.sample(&[0.0, f32::NAN]), Err(Error::NotFinite)));
    }

    proptest! {
        /// The nucleus found by partial sorting is the one found by sorting everything.
        #[test]
        fn nucleus_equals_full_sort(
            logits in prop::collection::vec(-3f32..3.0, 1..3000),
            top_p in 0.01f64..1.0,
        ) {
            let weight = |logit: f32| mass(logit - 3.0);
            let mut all: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
            let mut fast = all.clone();
            let goal = (top_p * logits.iter().map(|&l| weight(l)).sum::<u64>() as f64) as u64;
            keep_nucleus(&mut fast, goal, weight);
            all.sort_by(better);
            let mut before = 0;
            let expected: Vec<_> = all
                .into_iter()
                .take_while(|c| {
                    let keep = before <= goal;
                    before += weight(c.0);
                    keep
                })
                .collect();
            prop_assert_eq!(fast, expected);
        }

        /// Masses are powers of two, rounded down.
        #[test]
        fn masses_are_powers_of_two(x in -45f32..0.0) {
            let expected = (x as f64).exp2() * UNIT as f64;
            let error = (mass(x) as f64 - expected).abs();
            prop_assert!(error <= 1.0 + 2e-7 * expected, "{x}: {} {expected}", mass(x));
        }

        /// The same seed gives the same tokens.
        #[test]
        fn same_seed_same_tokens(seed in any::<u64>(), logits in prop::collection::vec(-3f32..3.0, 2..50)) {
            let options = SamplingOptions { temperature: 1.0, top_p: 0.9, seed, ..Default::default() };
            let run = || {
                let mut sampler = Sampler::new(options.clone(), &[]);
                (0..8).map(|_| sampler.sample(&logits).unwrap().token).collect::<Vec<_>>()
            };
            prop_assert_eq!(run(), run());
        }
    }
}
